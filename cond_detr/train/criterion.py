"""The training loss (section 3.4): classification, L1 and generalised IoU after matching, for all decoder layers."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy, generalized_iou
from cond_detr.config import LossConfig
from cond_detr.data.batching import Targets
from cond_detr.models.predictions import Predictions
from cond_detr.train.matcher import HungarianMatcher
from cond_detr_kernels import MatchWeights


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        total: scalar, the weighted sum over all terms and layers.
        classification: scalar, unweighted, of the last layer.
        l1: scalar, unweighted, of the last layer.
        giou: scalar, unweighted, of the last layer.
        sanitised: (B,) bool, True for images whose predictions were not finite.
    """

    total: Tensor
    classification: Tensor
    l1: Tensor
    giou: Tensor
    sanitised: Tensor


class Criterion:
    """Matches predictions with targets and computes the losses (section 3.4).

    There is no host-device synchronisation, and every prediction takes part in the autograd graph for any targets, so
    that images without objects need no special case, with one process or several.

    Args:
        weights: losses and their weights.
    """

    def __init__(self, weights: LossConfig) -> None:
        self.weights = weights
        self.matcher = HungarianMatcher(
            MatchWeights(
                weights.class_weight,
                weights.l1_weight,
                weights.giou_weight,
                weights.focal_alpha,
                weights.focal_gamma,
                softmax=weights.classification == "softmax",
            ),
            weights.matcher,
        )

    def __call__(self, predictions: Predictions, targets: Targets, num_boxes: Tensor, share: float = 1.0) -> Losses:
        """Computes the losses of a batch.

        Args:
            predictions: predictions of L layers for B images.
            targets: padded targets of the B images.
            num_boxes: scalar that the sums are divided by: the number of targets in the step, divided by the number of
                processes.
            share: the batch's fraction of this process's part of the step; the softmax loss, a mean, is multiplied by
                it.
        """
        pred_index, sanitised = self.matcher(predictions, targets)
        classes = class_targets(pred_index, targets.labels, *predictions.logits.shape[2:])
        if self.weights.classification == "softmax":
            classification = softmax_loss(predictions.logits, classes, self.weights.no_object_weight) * share
        else:
            focal = focal_loss(predictions.logits, classes, self.weights.focal_alpha, self.weights.focal_gamma)
            classification = focal / num_boxes
        l1, giou = box_losses(predictions.boxes, targets.boxes, pred_index)
        l1, giou = l1 / num_boxes, giou / num_boxes
        total = (
            self.weights.class_weight * classification + self.weights.l1_weight * l1 + self.weights.giou_weight * giou
        )
        return Losses(total.sum(), classification[-1].detach(), l1[-1].detach(), giou[-1].detach(), sanitised)


def class_targets(pred_index: Tensor, labels: Tensor, num_queries: int, num_logits: int) -> Tensor:
    """One-hot classification targets (L, B, Q, C) bool, all False for queries without a target.

    Padding is scattered to an extra query, which is cut off, so that no boolean indexing is needed.

    Args:
        pred_index: (L, B, T) int64 query of each target, -1 where there is none.
        labels: (B, T) int64 classes of the targets.
        num_queries: Q.
        num_logits: C, the "no object" class of the softmax loss included.
    """
    layers, batch, _ = pred_index.shape
    slot = pred_index.where(pred_index >= 0, num_queries)
    classes = labels.new_full((layers, batch, num_queries + 1), num_logits)
    classes = classes.scatter(2, slot, labels.expand_as(pred_index))[..., :num_queries]
    # torch's one_hot reads the values on the host
    return classes[..., None] == torch.arange(num_logits, device=labels.device)


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), summed per layer.

    Args:
        logits: (L, B, Q, C).
        targets: (L, B, Q, C) bool.
        alpha: weight of positive targets; negative ones have 1 - alpha.
        gamma: exponent of the modulating factor.

    Returns:
        (L,).
    """
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = (logits.sigmoid() - targets).abs()
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * wrong**gamma * cross_entropy).sum(dim=(1, 2, 3))


def softmax_loss(logits: Tensor, targets: Tensor, no_object_weight: float) -> Tensor:
    """DETR's softmax cross-entropy, averaged per layer with the weights of the queries.

    Args:
        logits: (L, B, Q, C + 1), the last one for no object.
        targets: (L, B, Q, C + 1) bool, all False for queries without an object.
        no_object_weight: weight of those queries; the others have 1.

    Returns:
        (L,).
    """
    matched = targets.any(-1)
    log_p = logits.log_softmax(-1)
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    loss = -torch.where(matched, log_p.where(targets, zero).sum(-1), log_p[..., -1])
    weight = torch.where(matched, 1.0, no_object_weight)
    return (weight * loss).sum((1, 2)) / weight.sum((1, 2))


def box_losses(boxes: Tensor, target_boxes: Tensor, pred_index: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and generalised IoU losses of the matched boxes, summed per layer.

    Args:
        boxes: (L, B, Q, 4) predicted boxes, cxcywh in fractions of the image size.
        target_boxes: (B, T, 4) target boxes, likewise.
        pred_index: (L, B, T) int64 query of each target, -1 where there is none.

    Returns:
        L1 and GIoU losses, (L,) each.
    """
    matched = boxes.gather(2, pred_index.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
    target_boxes = target_boxes.expand_as(matched)
    valid = pred_index >= 0
    l1 = (matched - target_boxes).abs().sum(-1)
    giou = 1 - generalized_iou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(target_boxes))
    zero = torch.zeros((), dtype=boxes.dtype, device=boxes.device)
    return l1.where(valid, zero).sum(dim=(1, 2)), giou.where(valid, zero).sum(dim=(1, 2))
