"""Classification losses of DETRs for sparse targets: a term for all logits, corrected where a target is matched.

A few of a million logits have a target. So each loss is the sum of its negative term over all of them, plus the
difference to the positive term at those few. No one-hot targets are made, and a step reads the logits half as often.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr_kernels.transformers.layers import Pairs


class SparseLoss(NamedTuple):
    """A classification loss in its two terms.

    Attributes:
        negative: the elementwise loss of logits without a target.
        positive: the elementwise loss of logits with one, and the IoU of the query's box with the target's.
    """

    negative: Callable[[Tensor], Tensor]
    positive: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor, pairs: Pairs) -> Tensor:
        """The loss of each layer, summed: (L,).

        Args:
            logits: (L, B, Q, C).
            labels: (B, T) int64 classes of the targets.
            quality: (L, B, P) IoU of each pair, detached.
            pairs: queries and targets; no query has two targets.

        Raises:
            RuntimeError: if a label is none of the C classes; on a CUDA device by its own assertion, later.
        """
        matched = of_class(pairs.of_queries(logits), pairs.of_targets(labels))
        correction = self.positive(matched, quality) - self.negative(matched)
        return self.negative(logits).sum((1, 2, 3)) + pairs.total(correction)


def focal(alpha: float, gamma: float = 2.0) -> SparseLoss:
    """Sigmoid focal loss (Lin et al., ICCV 2017); with ``alpha`` below 0 without weights."""
    weight, rest = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    return SparseLoss(
        lambda x: rest * power(x.sigmoid(), gamma) * F.softplus(x),
        lambda x, _: weight * power((-x).sigmoid(), gamma) * F.softplus(-x),
    )


def varifocal(alpha: float, gamma: float) -> SparseLoss:
    """Varifocal loss (Zhang et al., CVPR 2021, equation 2)."""
    return SparseLoss(
        lambda x: alpha * power(x.detach().sigmoid(), gamma) * F.softplus(x),
        lambda x, quality: quality * cross_entropy(x, quality),
    )


def matchability_aware(alpha: float | None, gamma: float) -> SparseLoss:
    """Matchability-aware loss (DEIM: Huang et al., CVPR 2025, equation 4), negative terms weighted by ``alpha``."""
    weight = 1.0 if alpha is None else alpha
    return SparseLoss(
        lambda x: weight * power(x.detach().sigmoid(), gamma) * F.softplus(x),
        lambda x, quality: cross_entropy(x, quality**gamma),
    )


def iou_aware(alpha: float, gamma: float = 2.0) -> SparseLoss:
    """IoU-aware classification loss (LW-DETR: Chen et al., 2024, equation 1): the target is p^alpha IoU^(1 - alpha)."""

    def positive(x: Tensor, quality: Tensor) -> Tensor:
        return cross_entropy(x, (x.detach().sigmoid() ** alpha * quality ** (1 - alpha)).clamp(min=0.01))

    return SparseLoss(lambda x: power(x.sigmoid(), gamma) * F.softplus(x), positive)


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (L, B, P, C) at the class of each pair, (L, B, P)."""
    return logits.gather(-1, labels.long()[..., None]).squeeze(-1)


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``; a square as a product, whose backward takes half the time."""
    return base * base if exponent == 2 else base**exponent


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Elementwise -(target log p + (1 - target) log(1 - p)) with p = sigmoid(logits)."""
    return F.softplus(logits) - target * logits


def softmax(logits: Tensor, labels: Tensor, pairs: Pairs, no_object_weight: float) -> Tensor:
    """DETR's softmax cross-entropy, each layer's mean with the weights of its queries (Carion et al., ECCV 2020).

    Args:
        logits: (L, B, Q, C + 1), the last one for no object.
        labels: (B, T) int64 classes of the targets.
        pairs: queries and targets.
        no_object_weight: weight of queries without a target; the others have 1.

    Returns:
        (L,).
    """
    log_total = logits.logsumexp(-1)
    nothing = no_object_weight * (log_total - logits[..., -1])
    wanted = pairs.of_targets(labels)
    # the package takes a target that is no object as well
    weight = torch.where(wanted == logits.shape[-1] - 1, no_object_weight, 1.0)
    matched = weight * (pairs.of_queries(log_total) - of_class(pairs.of_queries(logits), wanted))
    loss = nothing.sum((1, 2)) + pairs.total(matched - pairs.of_queries(nothing))
    queries = logits.shape[1] * logits.shape[2]
    return loss / (no_object_weight * queries + pairs.total(weight - no_object_weight))
