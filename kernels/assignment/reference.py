"""Reference implementation of matching: cost matrices in PyTorch, assignment by SciPy, one problem at a time."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Replaces costs that are NaN or infinite; the same number as in csrc/assignment/cost.h
SANITISED_COST = 1e9


class MatchStatus(IntEnum):
    """Outcome of a matching problem."""

    OK = 0
    SANITISED = 1  # NaN or infinite costs were replaced by a large one
    INFEASIBLE = 2  # forbidden pairs leave no complete assignment


class MatchWeights(NamedTuple):
    """Weights of the matching cost ``label * class + l1 * L1 - giou * GIoU``.

    Attributes:
        label: weight of the classification term.
        l1: weight of the L1 distance of the boxes.
        giou: weight of their generalised IoU.
        alpha: alpha of the focal classification term: the focal loss with the class as positive target minus that with
            it as negative target.
        gamma: gamma of the same.
        softmax: use minus the softmax probability of the class as classification term instead, as in plain DETR.
    """

    label: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    softmax: bool = False


PAPER_WEIGHTS = MatchWeights()


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal cost of classes, elementwise: focal loss with a positive target minus that with a negative one."""
    positive = alpha * torch.sigmoid(-logits) ** gamma * -F.logsigmoid(logits)
    negative = (1 - alpha) * torch.sigmoid(logits) ** gamma * -F.logsigmoid(-logits)
    return positive - negative


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of all pairs of cxcywh boxes: (N, 4), (M, 4) -> (N, M)."""
    low_a, high_a = a[:, None, :2] - a[:, None, 2:] / 2, a[:, None, :2] + a[:, None, 2:] / 2
    low_b, high_b = b[None, :, :2] - b[None, :, 2:] / 2, b[None, :, :2] + b[None, :, 2:] / 2
    intersection = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = a[:, None, 2:].prod(-1) + b[None, :, 2:].prod(-1) - intersection
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    return intersection / union - (hull - union) / hull


def match_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, weights: MatchWeights) -> Tensor:
    """Cost matrix (n, Q) of one image and layer (Conditional DETR, section 3.4).

    Args:
        logits: (Q, C) class logits.
        boxes: (Q, 4) predicted boxes, cxcywh.
        labels: (n,) int64 classes of the targets.
        target_boxes: (n, 4) boxes of the targets, cxcywh.
        weights: weights of the terms.
    """
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
    """Reference of :func:`cond_detr_kernels.match`, with the same arguments and results, computed on the host."""
    from scipy.optimize import linear_sum_assignment  # importing it takes half a second, which only the reference needs

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
            targets, queries = linear_sum_assignment(cost.where(finite, SANITISED_COST).double().numpy())
            pred_index[layer, image, torch.from_numpy(targets)] = torch.from_numpy(queries)
    if strict:
        raise_for_status(status.numpy(), ("layer", "image"))
    return pred_index.to(logits.device), status.to(logits.device)


def raise_for_status(status: NDArray[np.int32], axes: Sequence[str]) -> None:
    """Checks that all problems were solved as given.

    Args:
        status: :class:`MatchStatus` of each problem, with an axis for each of ``axes``.
        axes: names of the axes, for the message.

    Raises:
        ValueError: if not, with SciPy's message and the indices of the first such problem.
    """
    for code, sentence in (
        (MatchStatus.SANITISED, "matrix contains invalid numeric entries"),
        (MatchStatus.INFEASIBLE, "cost matrix is infeasible"),
    ):
        bad = np.argwhere(status == code)
        if len(bad):
            where = ", ".join(f"{axis} {index}".strip() for axis, index in zip(axes, bad[0], strict=True))
            raise ValueError(f"{sentence} ({where})" if where else sentence)
