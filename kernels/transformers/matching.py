"""Matching as the transformers package's criteria do it, for all layers at once."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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


@torch.no_grad()
def by_tokens(matcher: Any, layers: Layers, targets: Targets) -> Tensor:
    """Matches by the mean focal cost of the tokens of a class (Grounding DINO), L1 and GIoU: (L, B, T) as above."""
    tokens = tokens_of(layers.outputs[0]["label_maps"], targets).float()
    logits, boxes, wanted = layers.logits.float(), layers.boxes.float(), targets.boxes.float()
    with torch.autocast(logits.device.type, enabled=False):
        mean = tokens / tokens.sum(-1, keepdim=True).clamp(min=1)
        cost = matcher.class_cost * (mean @ token_cost(logits).transpose(-1, -2))
    cost = cost + matcher.bbox_cost * (wanted[:, :, None] - boxes[:, :, None]).abs().sum(-1)
    overlap = generalized_iou(cxcywh_to_xyxy(wanted)[:, :, None], cxcywh_to_xyxy(boxes)[:, :, None])
    return match_costs(cost - matcher.giou_cost * overlap, targets.sizes)


def token_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0, tiny: float = 1e-8) -> Tensor:
    """Focal cost of tokens, elementwise; finite where logits are -inf, as those beyond the end of a text are."""
    p = logits.sigmoid()
    return -alpha * (1 - p) ** gamma * (p + tiny).log() + (1 - alpha) * p**gamma * (1 - p + tiny).log()


def tokens_of(label_maps: Sequence[Tensor], targets: Targets) -> Tensor:
    """(B, T, C) which logits belong to the class of each target, from the maps (classes, C) of each image."""
    # a row more, for the padding of images whose text has no classes
    maps = (F.pad(each, (0, 0, 0, 1)) for each in label_maps)
    return torch.stack([each[labels] for each, labels in zip(maps, targets.labels, strict=True)])
