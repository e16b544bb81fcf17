"""``torch.ops.cond_detr.linear_sum_assignment`` and ``.match``, and the functions that people call."""

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
from cond_detr_kernels.assignment.reference import PAPER_WEIGHTS, MatchWeights, raise_for_status
from cond_detr_kernels.checks import check_same, check_shape


@torch.library.register_fake("cond_detr::linear_sum_assignment")
def _(cost: Tensor, maximize: bool) -> tuple[Tensor, Tensor, Tensor]:
    problems, rows, cols = cost.shape
    pairs = torch.sym_min(rows, cols)  # type: ignore[no-untyped-call]
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
    """Solves the linear sum assignment problem, or a batch of them, with the contract of SciPy's function of that name.

    Args:
        cost: (..., rows, cols) costs, a NumPy array (or anything that becomes one) or a torch tensor on the CPU or a
            CUDA device; bool, integer or floating point, solved in float64. +inf forbids a pair.
        maximize: look for the assignment of greatest total instead.

    Returns:
        Row and column indices, each (..., min(rows, cols)) int64, of the type and on the device of ``cost``. The row
        indices are in ascending order.

    Raises:
        ValueError: fewer than two axes; NaN or -inf in the costs (+inf to maximise); or no complete assignment without
            a forbidden pair. On a CUDA device finding out waits for the result.
    """
    if isinstance(cost, Tensor):
        _check_matrix(cost.shape, not cost.is_complex(), str(cost.dtype))
        tensor = cost.detach().double().reshape(math.prod(cost.shape[:-2]), *cost.shape[-2:]).contiguous()
        rows, cols, status = torch.ops.cond_detr.linear_sum_assignment(tensor, maximize)
        _raise(status.cpu().numpy(), cost.shape[:-2])
    else:
        cost = np.asarray(cost)
        _check_matrix(cost.shape, cost.dtype.kind in "biuf", str(cost.dtype))
        array = np.ascontiguousarray(cost, np.float64).reshape(math.prod(cost.shape[:-2]), *cost.shape[-2:])
        rows, cols, status = _numpy.linear_sum_assignment(array, maximize)
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
    """Hungarian matching of all decoder layers and images at once, costs included, on the device of the predictions.

    The cost of giving a target to a query is ``label * focal + l1 * L1 - giou * GIoU`` (Conditional DETR, section 3.4;
    the classification term is the focal cost of Deformable DETR), in fp32 and from the logits.

    Args:
        logits: (L, B, Q, C) class logits of L decoder layers.
        boxes: (L, B, Q, 4) predicted boxes, cxcywh, relative to the image size.
        target_labels: (B, T) int64 classes in [0, C), padded to T targets.
        target_boxes: (B, T, 4) boxes as above, padded.
        target_count: (B,) int64, how many of the T are targets.
        weights: weights of the three terms, and which class term.
        strict: wait for the result, and raise if costs had to be replaced.

    Returns:
        pred_index: (L, B, T) int64, the query that each target is given; unique among a problem's targets, -1 for
            padding and for targets that go empty-handed because there are more of them than queries.
        status: (L, B) int32 of :class:`MatchStatus`; SANITISED where NaN, infinite values or an unknown label made
            costs that had to be replaced. Nothing is raised for those unless ``strict``: looking makes the host wait.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit; with ``strict`` also SciPy's sentence about
            invalid entries, with the layer and the image.
    """
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
