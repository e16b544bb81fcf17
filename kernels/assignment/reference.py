"""Matching as the literature writes it: a cost matrix in PyTorch, SciPy for the assignment, one problem at a time."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment as scipy_linear_sum_assignment
from torch import Tensor

# Stands in for a cost that is NaN or infinite; the same number as in csrc/assignment/cost.h
SANITISED_COST = 1e9


class MatchStatus(IntEnum):
    """What became of one matching problem."""

    OK = 0
    SANITISED = 1  # NaN or infinite costs were replaced by a large one
    INFEASIBLE = 2  # forbidden pairs leave no complete assignment


class MatchWeights(NamedTuple):
    """Weights of the matching cost ``label * class + l1 * L1 - giou * GIoU``.

    The class term is the focal loss for the class minus that against it, with ``alpha`` and ``gamma``; with ``softmax``
    it is minus the probability of the class by softmax over all classes (plain DETR).
    """

    label: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    softmax: bool = False


PAPER_WEIGHTS = MatchWeights()


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss for a class minus the one against it, elementwise: what choosing the class would cost."""
    positive = alpha * torch.sigmoid(-logits) ** gamma * -F.logsigmoid(logits)
    negative = (1 - alpha) * torch.sigmoid(logits) ** gamma * -F.logsigmoid(-logits)
    return positive - negative


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of every pair of cxcywh boxes: (N, 4), (M, 4) -> (N, M)."""
    low_a, high_a = a[:, None, :2] - a[:, None, 2:] / 2, a[:, None, :2] + a[:, None, 2:] / 2
    low_b, high_b = b[None, :, :2] - b[None, :, 2:] / 2, b[None, :, :2] + b[None, :, 2:] / 2
    intersection = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = a[:, None, 2:].prod(-1) + b[None, :, 2:].prod(-1) - intersection
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    return intersection / union - (hull - union) / hull


def match_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, weights: MatchWeights) -> Tensor:
    """Cost of giving each target to each prediction: (Q, C), (Q, 4), (n,), (n, 4) -> (n, Q)."""
    if weights.softmax:
        label_cost = -logits.softmax(-1)[:, labels].T
    else:
        label_cost = focal_cost(logits, weights.alpha, weights.gamma)[:, labels].T
    l1 = (target_boxes[:, None] - boxes[None]).abs().sum(-1)
    return weights.label * label_cost + weights.l1 * l1 - weights.giou * pairwise_giou(target_boxes, boxes)


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
    """The reference of :func:`cond_detr_kernels.match`: same arguments, same results, on the host."""
    layers, batch, _, _ = logits.shape
    pred_index = torch.full((layers, batch, target_labels.shape[1]), -1, dtype=torch.int64)
    status = torch.zeros(layers, batch, dtype=torch.int32)
    for layer in range(layers):
        for image in range(batch):
            count = int(target_count[image])
            cost = match_cost(
                logits[layer, image].float(),
                boxes[layer, image].float(),
                target_labels[image, :count],
                target_boxes[image, :count].float(),
                weights,
            ).cpu()
            finite = cost.abs() < SANITISED_COST
            if not finite.all():
                status[layer, image] = MatchStatus.SANITISED
            targets, queries = scipy_linear_sum_assignment(cost.where(finite, SANITISED_COST).double().numpy())
            pred_index[layer, image, torch.from_numpy(targets)] = torch.from_numpy(queries)
    if strict:
        raise_for_status(status.numpy(), ("layer", "image"))
    return pred_index.to(logits.device), status.to(logits.device)


def raise_for_status(status: NDArray[np.int32], axes: Sequence[str]) -> None:
    """Raises SciPy's sentence for the first problem that was not solved as given, and says which of a batch it is.

    Args:
        status: of :class:`MatchStatus`, with an axis for each of ``axes``.
        axes: what the axes count.
    """
    for code, sentence in (
        (MatchStatus.SANITISED, "matrix contains invalid numeric entries"),
        (MatchStatus.INFEASIBLE, "cost matrix is infeasible"),
    ):
        bad = np.argwhere(status == code)
        if len(bad):
            where = ", ".join(f"{axis} {index}".strip() for axis, index in zip(axes, bad[0], strict=True))
            raise ValueError(f"{sentence} ({where})" if where else sentence)
