"""The training loss (section 3.4): classification, L1 and generalised IoU after matching, for all decoder layers."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy, generalized_iou, iou
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
        query_groups: sets of object queries, each matched on its own; their losses are averaged.
        denoising: sets of queries made from the targets, which need no matching; their mean loss is added.
    """

    def __init__(self, weights: LossConfig, query_groups: int = 1, denoising: int = 0) -> None:
        self.weights = weights
        self.query_groups = query_groups
        self.denoising = denoising
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
            predictions: predictions of L layers for B images, of all sets of queries one after the other.
            targets: padded targets of the B images.
            num_boxes: scalar that the sums are divided by: the number of targets in the step, divided by the number of
                processes.
            share: the batch's fraction of this process's part of the step; the softmax loss, a mean, is multiplied by
                it.
        """
        layers = len(predictions.logits)
        noised = self.denoising * targets.labels.shape[1]
        found = by_set(predictions, 0, predictions.logits.shape[2] - noised, self.query_groups)
        pred_index, sanitised = self.matcher(found, targets)
        terms = self._terms(found, targets, pred_index, None)
        classification, l1, giou = self._normalised(terms, num_boxes, share, layers)
        total = self._weighted(classification, l1, giou)
        if self.denoising:
            copies = by_set(predictions, -noised, noised, self.denoising)
            real = real_targets(targets)
            index = torch.arange(real.shape[1], device=real.device).where(real, -1).expand(len(copies.logits), -1, -1)
            terms = self._terms(copies, targets, index, real)
            total = total + self._weighted(*self._normalised(terms, num_boxes, share, layers))
        return Losses(total.sum(), classification[-1].detach(), l1[-1].detach(), giou[-1].detach(), sanitised)

    def _terms(
        self, predictions: Predictions, targets: Targets, pred_index: Tensor, counted: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classification, L1 and GIoU losses, (L,) each: sums, but for the softmax loss.

        Args:
            predictions: predictions of L layers for B images, of Q queries.
            targets: padded targets of the B images.
            pred_index: (L, B, T) int64 query of each target, -1 where there is none.
            counted: (B, Q) bool, the queries whose class counts; None for all.
        """
        kind, gamma = self.weights.classification, self.weights.focal_gamma
        logits = predictions.logits
        classes = class_targets(pred_index, targets.labels, *logits.shape[2:])
        if kind == "softmax":
            classification = softmax_loss(logits, classes, self.weights.no_object_weight, counted)
        else:
            if kind == "focal":
                each = focal_loss(logits, classes, self.weights.focal_alpha, gamma)
            else:
                quality = matched_iou(predictions.boxes.detach(), targets.boxes, pred_index)[..., None] * classes
                varifocal = kind == "varifocal"
                each = varifocal_loss(logits, quality) if varifocal else matchability_loss(logits, quality, classes)
            if counted is not None:
                each = each.where(counted[..., None], torch.zeros((), dtype=each.dtype, device=each.device))
            classification = each.sum(dim=(1, 2, 3))
        return classification, *box_losses(predictions.boxes, targets.boxes, pred_index)

    def _normalised(
        self, terms: tuple[Tensor, Tensor, Tensor], num_boxes: Tensor, share: float, layers: int
    ) -> list[Tensor]:
        """The terms (L * sets,) as means over sets and boxes: (L,) each."""
        classification, l1, giou = (term.view(layers, -1).mean(1) for term in terms)
        softmax = self.weights.classification == "softmax"
        return [classification * share if softmax else classification / num_boxes, l1 / num_boxes, giou / num_boxes]

    def _weighted(self, classification: Tensor, l1: Tensor, giou: Tensor) -> Tensor:
        weights = self.weights
        return weights.class_weight * classification + weights.l1_weight * l1 + weights.giou_weight * giou


def by_set(predictions: Predictions, first: int, length: int, sets: int) -> Predictions:
    """Some of the queries as ``sets`` times as many layers, for matching and losses take any number of layers at once.

    Args:
        predictions: predictions of L layers for B images.
        first: index of the first query.
        length: number of queries, all sets together.
        sets: number of sets; of each layer they follow one another.
    """
    if sets == 1 and length == predictions.logits.shape[2]:
        return predictions

    def folded(values: Tensor) -> Tensor:
        layers, batch = values.shape[:2]
        values = values.narrow(2, first % values.shape[2], length)
        return values.reshape(layers, batch, sets, length // sets, -1).transpose(1, 2).flatten(0, 1)

    return Predictions(folded(predictions.logits), folded(predictions.boxes))


def real_targets(targets: Targets) -> Tensor:
    """(B, T) bool, False where targets are padding."""
    return torch.arange(targets.labels.shape[1], device=targets.counts.device) < targets.counts[:, None]


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
    """Sigmoid focal loss (Lin et al., ICCV 2017).

    Args:
        logits: (L, B, Q, C).
        targets: (L, B, Q, C) bool.
        alpha: weight of positive targets; negative ones have 1 - alpha.
        gamma: exponent of the modulating factor.

    Returns:
        (L, B, Q, C).
    """
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = (logits.sigmoid() - targets).abs()
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * cross_entropy


def varifocal_loss(logits: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021, equation 2), with its constants.

    A positive target is the IoU of its box, and weighs as much: -q (q log p + (1 - q) log(1 - p)). Negative ones are
    focal: -alpha p^gamma log(1 - p).

    Args:
        logits: (L, B, Q, C).
        quality: (L, B, Q, C) IoU of the matched box at its class, else 0.
        alpha: weight of negative targets.
        gamma: exponent of the modulating factor of negative targets.

    Returns:
        (L, B, Q, C).
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    score = logits.detach().sigmoid()
    return torch.where(quality > 0, quality, alpha * score**gamma) * cross_entropy


def matchability_loss(logits: Tensor, quality: Tensor, targets: Tensor, gamma: float = 1.5) -> Tensor:
    """Matchability-aware loss (DEIM: Huang et al., CVPR 2025, equation 4), with its constant.

    A positive target is the IoU to the power gamma: -(q^gamma log p + (1 - q^gamma) log(1 - p)). Negative ones are
    focal: -p^gamma log(1 - p).

    Args:
        logits: (L, B, Q, C).
        quality: (L, B, Q, C) IoU of the matched box at its class, else 0.
        targets: (L, B, Q, C) bool, True at the class of a matched query; a box that misses its target counts as well.
        gamma: exponent.

    Returns:
        (L, B, Q, C).
    """
    target = quality**gamma
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross_entropy * torch.where(targets, 1.0, logits.detach().sigmoid() ** gamma)


def softmax_loss(logits: Tensor, targets: Tensor, no_object_weight: float, counted: Tensor | None = None) -> Tensor:
    """DETR's softmax cross-entropy, averaged per layer with the weights of the queries.

    Args:
        logits: (L, B, Q, C + 1), the last one for no object.
        targets: (L, B, Q, C + 1) bool, all False for queries without an object.
        no_object_weight: weight of those queries; the others have 1.
        counted: (B, Q) bool, the queries that count; None for all.

    Returns:
        (L,).
    """
    matched = targets.any(-1)
    log_p = logits.log_softmax(-1)
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    loss = -torch.where(matched, log_p.where(targets, zero).sum(-1), log_p[..., -1])
    weight = torch.where(matched, 1.0, no_object_weight)
    if counted is not None:
        weight = weight * counted
    return (weight * loss).sum((1, 2)) / weight.sum((1, 2)).clamp(min=torch.finfo(loss.dtype).tiny)


def matched_iou(boxes: Tensor, target_boxes: Tensor, pred_index: Tensor) -> Tensor:
    """IoU of each query's box with its target, (L, B, Q), 0 without one.

    Args:
        boxes: (L, B, Q, 4) predicted boxes, cxcywh in fractions of the image size.
        target_boxes: (B, T, 4) target boxes, likewise.
        pred_index: (L, B, T) int64 query of each target, -1 where there is none.
    """
    queries = boxes.shape[2]
    matched = boxes.gather(2, pred_index.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
    overlap = iou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(target_boxes.expand_as(matched)))
    slot = pred_index.where(pred_index >= 0, queries)
    return boxes.new_zeros(*boxes.shape[:2], queries + 1).scatter(2, slot, overlap)[..., :queries]


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
