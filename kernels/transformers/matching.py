"""Matching as the transformers package's criteria do it, for all layers at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cond_detr_kernels.assignment.functional import match, match_costs
from cond_detr_kernels.assignment.reference import MatchWeights
from cond_detr_kernels.boxes import cxcywh_to_xyxy, generalized_iou
from cond_detr_kernels.transformers.layers import Layers, Targets

# Matchers with DETR's cost of a class
SOFTMAX = ("HungarianMatcher",)


def by_class(matcher: Any, layers: Layers, targets: Targets) -> Tensor:
    """Matches by the cost of a class, L1 and GIoU, with the weights of any of the package's matchers.

    Returns:
        (L, B, T) query of each target, -1 where there is none.
    """
    softmax = not getattr(matcher, "use_focal_loss", type(matcher).__name__ not in SOFTMAX)
    weights = MatchWeights(
        matcher.class_cost,
        matcher.bbox_cost,
        matcher.giou_cost,
        getattr(matcher, "alpha", 0.25),
        getattr(matcher, "gamma", 2.0),
        softmax,
    )
    return match(layers.logits, layers.boxes, targets.labels, targets.boxes, targets.counts, weights=weights)[0]


def by_tokens(matcher: Any, layers: Layers, targets: Targets) -> Tensor:
    """Matches by the mean focal cost of the tokens of a class (Grounding DINO), L1 and GIoU: (L, B, T) as above."""
    tokens = tokens_of(layers.outputs[0]["label_maps"], targets)
    tokens = tokens / tokens.sum(-1, keepdim=True).clamp(min=1)
    with torch.no_grad():
        cost = matcher.class_cost * (tokens @ token_cost(layers.logits.float()).transpose(-1, -2))
        boxes = layers.boxes.float()
        cost = cost + matcher.bbox_cost * (targets.boxes[:, :, None] - boxes[:, :, None]).abs().sum(-1)
        wanted, found = cxcywh_to_xyxy(targets.boxes.float())[:, :, None], cxcywh_to_xyxy(boxes)[:, :, None]
        cost = cost - matcher.giou_cost * generalized_iou(wanted, found)
    return match_costs(cost, targets.sizes)


def token_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0, tiny: float = 1e-8) -> Tensor:
    """Focal cost of tokens, elementwise; finite where logits are -inf, as those beyond the end of a text are."""
    p = logits.sigmoid()
    return -alpha * (1 - p) ** gamma * (p + tiny).log() + (1 - alpha) * p**gamma * (1 - p + tiny).log()


def tokens_of(label_maps: Sequence[Tensor], targets: Targets) -> Tensor:
    """(B, T, C) which logits belong to the class of each target, from the maps (classes, C) of each image."""
    return torch.stack([maps[labels] for maps, labels in zip(label_maps, targets.labels, strict=True)])
