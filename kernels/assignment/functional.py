"""Public functions of linear sum assignment and matching, and the fakes of their operators."""

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

# Loading _C registers the operators
from cond_detr_kernels import _C as _C
from cond_detr_kernels import _numpy
from cond_detr_kernels.assignment.reference import PAPER_WEIGHTS, SANITISED_COST, MatchWeights, raise_for_status
from cond_detr_kernels.checks import check_number, check_same, check_shape


@torch.library.register_fake("cond_detr::linear_sum_assignment")
def _(cost: Tensor, maximize: bool) -> tuple[Tensor, Tensor, Tensor]:
    problems, rows, cols = cost.shape
    pairs = torch.sym_min(rows, cols)
    return (
        cost.new_empty((problems, pairs), dtype=torch.int64),
        cost.new_empty((problems, pairs), dtype=torch.int64),
        cost.new_empty((problems,), dtype=torch.int32),
    )


@torch.library.register_fake("cond_detr::match")
def _(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    target_count: Tensor,
    label_weight: float,
    l1_weight: float,
    giou_weight: float,
    alpha: float,
    gamma: float,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    layers, batch = logits.shape[:2]
    return (
        logits.new_empty((layers, batch, target_labels.shape[1]), dtype=torch.int64),
        logits.new_empty((layers, batch), dtype=torch.int32),
    )


@overload
def linear_sum_assignment(cost: Tensor, maximize: bool = False) -> tuple[Tensor, Tensor]: ...


@overload
def linear_sum_assignment(cost: ArrayLike, maximize: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


def linear_sum_assignment(cost: Any, maximize: bool = False) -> tuple[Any, Any]:
    """Solves one or a batch of linear sum assignment problems, with the interface of SciPy's function of that name.

    Args:
        cost: (..., rows, cols) costs, a torch tensor on the CPU or a CUDA device, or a NumPy array or anything that
            converts to one; bool, integer or floating point, solved in float64. +inf forbids a pair.
        maximize: maximise the total instead of minimising it; -inf then forbids a pair.

    Returns:
        Row and column indices, each (..., min(rows, cols)) int64, of the type and on the device of ``cost``. The row
        indices are in ascending order.

    Raises:
        ValueError: if there are fewer than two axes, the costs have NaN or -inf (+inf to maximise), or every complete
            assignment has a forbidden pair. On a CUDA device this check is a host-device synchronisation. Also if a
            tensor is sparse, or on another device.
        TypeError: if the costs are an array of text, or ``maximize`` is not True or False.
    """
    if maximize not in (True, False):
        raise TypeError(f"maximize must be True or False, got {maximize!r}")
    if isinstance(cost, Tensor):
        if cost.layout != torch.strided or cost.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"expected a dense tensor on the CPU or a CUDA device, got {cost.layout} on {cost.device.type}"
            )
        _check_matrix(cost.shape, not cost.is_complex(), str(cost.dtype))
        if 0 in cost.shape:  # the other sizes may be anything
            empty = cost.new_empty((*cost.shape[:-2], min(cost.shape[-2:])), dtype=torch.int64)
            return empty, empty.clone()
        tensor = cost.detach().double().reshape(math.prod(cost.shape[:-2]), *cost.shape[-2:]).contiguous()
        rows, cols, status = torch.ops.cond_detr.linear_sum_assignment(tensor, maximize)
        _raise(status.cpu().numpy(), cost.shape[:-2])
    else:
        cost = np.asarray(cost)
        if cost.dtype.kind in "US":
            rule = "to dtype('float64') according to the rule 'safe'"  # as SciPy says it
            raise TypeError(f"Cannot cast array data from {cost.dtype!r} {rule}")
        _check_matrix(cost.shape, cost.dtype.kind in "biuf", str(cost.dtype))
        if 0 in cost.shape:
            shape = (*cost.shape[:-2], min(cost.shape[-2:]))
            return np.empty(shape, np.int64), np.empty(shape, np.int64)
        array = np.ascontiguousarray(cost, np.float64).reshape(math.prod(cost.shape[:-2]), *cost.shape[-2:])
        rows, cols, status = _numpy.linear_sum_assignment(array, maximize, torch.get_num_threads())
        _raise(status, cost.shape[:-2])
    shape = (*cost.shape[:-2], min(cost.shape[-2:]))
    return rows.reshape(shape), cols.reshape(shape)


def match(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    target_count: Tensor,
    *,
    weights: MatchWeights = PAPER_WEIGHTS,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes costs and Hungarian matching of all decoder layers and images at once, on the device of the predictions.

    The cost of matching a target to a query is ``label * focal + l1 * L1 - giou * GIoU`` (Conditional DETR, section
    3.4; the classification term is the focal cost of Deformable DETR), computed in fp32 from the logits.

    Args:
        logits: (L, B, Q, C) class logits of L decoder layers.
        boxes: (L, B, Q, 4) predicted boxes, cxcywh, relative to the image size.
        target_labels: (B, T) int64 classes in [0, C), padded to T targets.
        target_boxes: (B, T, 4) boxes as above, padded.
        target_count: (B,) int64, the number of targets of each image, the first of the T.
        weights: weights of the three terms, and the kind of classification term.
        strict: raise an error if costs had to be replaced, which takes a host-device synchronisation.

    Returns:
        pred_index: (L, B, T) int64, the query matched to each target, unique within a layer and image; -1 for padding,
            and for targets left over if there are more of them than queries.
        status: (L, B) int32 of :class:`MatchStatus`; SANITISED where NaN, infinite values or an unknown label led to
            costs that were replaced. No error is raised for those unless ``strict``.

    Raises:
        ValueError: if the shape, dtype or device of an argument does not fit; with ``strict`` also if costs had to be
            replaced, with SciPy's message and the first such layer and image.
        TypeError: if a tensor, ``weights`` or one of them is something else.
    """
    if not isinstance(weights, MatchWeights):
        raise TypeError(f"weights must be MatchWeights, got {type(weights).__name__}")
    for name, weight in zip(weights._fields, weights, strict=True):
        check_number(f"weights.{name}", weight)
    layers, batch, queries = _leading_sizes(logits)
    check_shape("boxes", boxes, "(L, B, Q, 4)", (layers, batch, queries, 4))
    check_shape("target_labels", target_labels, "(B, T)", (batch, None))
    check_shape("target_boxes", target_boxes, "(B, T, 4)", (batch, target_labels.shape[1], 4))
    check_shape("target_count", target_count, "(B,)", (batch,))
    names = ("logits", "boxes", "target_labels", "target_boxes", "target_count")
    tensors = (logits, boxes, target_labels, target_boxes, target_count)
    check_same(names, tensors, "device")
    for name, tensor in zip(names, tensors, strict=True):
        integral = name in ("target_labels", "target_count")
        if tensor.is_floating_point() == integral or tensor.is_complex():
            kind = "an integer" if integral else "a floating point"
            raise ValueError(f"{name} must be {kind} tensor, got {tensor.dtype}")
    pred_index, status = torch.ops.cond_detr.match(
        logits.detach().float().contiguous(),
        boxes.detach().float().contiguous(),
        target_labels.long().contiguous(),
        target_boxes.detach().float().contiguous(),
        target_count.long().contiguous(),
        *weights,
    )
    if strict:
        raise_for_status(status.cpu().numpy(), ("layer", "image"))
    return pred_index, status


def match_costs(cost: Tensor, sizes: Sequence[int]) -> Tensor:
    """Matching as :func:`match` does it, of costs that are there already.

    There is no host-device synchronisation; costs that are not finite are replaced by a large one.

    Args:
        cost: (L, B, T, Q) cost of matching each target to each query, padded to T targets.
        sizes: number of targets of each image, the first of the T.

    Returns:
        (L, B, T) int64 query of each target, -1 for padding, and for targets left over.
    """
    pred_index = cost.new_full(cost.shape[:3], -1, dtype=torch.int64)
    cost = cost.detach().double()
    cost = cost.where(cost.abs() < SANITISED_COST, SANITISED_COST)
    for image, size in enumerate(sizes):
        if size:
            problems = cost[:, image, :size].contiguous()
            targets, queries, _ = torch.ops.cond_detr.linear_sum_assignment(problems, False)
            pred_index[:, image].scatter_(1, targets, queries)
    return pred_index


def _leading_sizes(logits: Tensor) -> tuple[int, int, int]:
    check_shape("logits", logits, "(L, B, Q, C)", (None, None, None, None))
    layers, batch, queries, _ = logits.shape
    return layers, batch, queries


def _check_matrix(shape: Sequence[int], numeric: bool, dtype: str) -> None:
    if len(shape) < 2:
        raise ValueError(f"expected a matrix (2-D array) or a batch of them, got a {len(shape)}-D array")
    if not numeric:
        raise ValueError(f"expected a matrix containing numerical entries, got {dtype}")


def _raise(status: NDArray[np.int32], batch_shape: Sequence[int]) -> None:
    raise_for_status(status.reshape(batch_shape), ["problem", *[""] * len(batch_shape)][: len(batch_shape)])
