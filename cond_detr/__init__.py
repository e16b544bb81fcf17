"""Conditional DETR that trains quickly (Meng et al., ICCV 2021)."""

from cond_detr.config import PRESETS, Config, preset
from cond_detr.criterion import Criterion
from cond_detr.drawing import draw_detections
from cond_detr.errors import InputError
from cond_detr.models import DETR, ConditionalDETR, Detector
from cond_detr.predictions import Detections, Predictions

__all__ = [
    "DETR",
    "PRESETS",
    "ConditionalDETR",
    "Config",
    "Criterion",
    "Detections",
    "Detector",
    "InputError",
    "Predictions",
    "draw_detections",
    "preset",
]
__version__ = "0.1.0"
