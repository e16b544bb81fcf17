"""Overlaps of boxes."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) from centre x, centre y, width, height to left, top, right, bottom."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise generalised IoU of xyxy boxes: (..., 4), (..., 4) -> (...) (Rezatofighi et al., CVPR 2019).

    Two boxes without area give 0 rather than NaN.
    """
    intersection, union = _intersection_and_union(a, b)
    hull = _area(torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]))
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise intersection over union of xyxy boxes: (..., 4), (..., 4) -> (...); 0 for boxes without area."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low_a, high_a, low_b, high_b = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    intersection = _area((torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0))
    return intersection, _area(high_a - low_a) + _area(high_b - low_b) - intersection


def _area(size: Tensor) -> Tensor:
    """Width times height, (..., 2) -> (...), without the host-device synchronisation in the backward of ``prod``."""
    width, height = size.unbind(-1)
    return width * height
