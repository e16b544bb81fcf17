"""Box formats and overlaps. Relative boxes are fractions of the image size without padding."""

import torch
from torch import Tensor

from cond_detr_kernels.boxes import cxcywh_to_xyxy, generalized_iou, iou

__all__ = ["cxcywh_to_xyxy", "generalized_iou", "iou", "xyxy_to_cxcywh", "xyxy_to_xywh"]


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) from left, top, right, bottom to centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) from left, top, right, bottom to left, top, width, height, as COCO's files have them."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)
