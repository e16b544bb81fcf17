"""The training loss: focal classification, L1 and generalised IoU after matching, for every decoder layer at once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy, generalized_iou
from cond_detr.config import LossConfig
from cond_detr.data.batching import Targets
from cond_detr.matcher import HungarianMatcher
from cond_detr.predictions import Predictions
from cond_detr_kernels import MatchWeights


class Losses(NamedTuple):
    """Scalars: ``total`` is weighted and summed over all layers; the parts are the last layer's, unweighted.

    ``sanitised`` (B,) bool tells the images whose predictions were not finite.
    """

    total: Tensor
    classification: Tensor
    l1: Tensor
    giou: Tensor
    sanitised: Tensor


class Criterion:
    """Matches predictions with targets and compares them (section 3.4).

    Nothing here asks the host for a value, and every output takes part in the graph whatever the targets are: images
    without objects need no special case, on one process or many.
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
        """Losses of a batch.

        Args:
            predictions: of L layers for B images.
            targets: padded targets of the B images.
            num_boxes: scalar that the sums are divided by: the number of targets, or its share where several batches
                or processes make one step.
            share: of the step, of this process, that the batch is; the softmax loss, a mean, is multiplied by it.
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
    """Targets (L, B, Q, C) bool of C logits: the class of matched queries, all False for the others.

    Padding is sent to a slot beyond the last query, which is cut off: a scatter without a single boolean index.
    """
    layers, batch, _ = pred_index.shape
    slot = pred_index.where(pred_index >= 0, num_queries)
    classes = labels.new_full((layers, batch, num_queries + 1), num_logits)
    classes = classes.scatter(2, slot, labels.expand_as(pred_index))[..., :num_queries]
    # torch's one_hot looks at the values on the host
    return classes[..., None] == torch.arange(num_logits, device=labels.device)


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss summed per layer: (L, B, Q, C), (L, B, Q, C) bool -> (L,). Lin et al., ICCV 2017."""
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = (logits.sigmoid() - targets).abs()
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * wrong**gamma * cross_entropy).sum(dim=(1, 2, 3))


def softmax_loss(logits: Tensor, targets: Tensor, no_object_weight: float) -> Tensor:
    """Cross-entropy averaged per layer with the queries' weights: (L, B, Q, C + 1), the same bool -> (L,). As in DETR.

    Queries that are all False in ``targets`` have the last class, no object, and ``no_object_weight``; the others 1.
    """
    matched = targets.any(-1)
    log_p = logits.log_softmax(-1)
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    loss = -torch.where(matched, log_p.where(targets, zero).sum(-1), log_p[..., -1])
    weight = torch.where(matched, 1.0, no_object_weight)
    return (weight * loss).sum((1, 2)) / weight.sum((1, 2))


def box_losses(boxes: Tensor, target_boxes: Tensor, pred_index: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU losses of the matched boxes summed per layer: (L, B, Q, 4), (B, T, 4), (L, B, T) -> (L,), (L,)."""
    matched = boxes.gather(2, pred_index.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
    target_boxes = target_boxes.expand_as(matched)
    valid = pred_index >= 0
    l1 = (matched - target_boxes).abs().sum(-1)
    giou = 1 - generalized_iou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(target_boxes))
    zero = torch.zeros((), dtype=boxes.dtype, device=boxes.device)
    return l1.where(valid, zero).sum(dim=(1, 2)), giou.where(valid, zero).sum(dim=(1, 2))
