"""Attention maps of detections: weights of each head, and plots of them."""

from cond_detr.attention_maps.drawing import draw
from cond_detr.attention_maps.maps import DetectionMaps, detection_maps

__all__ = ["DetectionMaps", "detection_maps", "draw"]
