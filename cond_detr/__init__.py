"""Conditional DETR that trains quickly (Meng et al., ICCV 2021)."""

from cond_detr.config import PRESETS, Config, preset
from cond_detr.errors import InputError
from cond_detr.models.conditional_detr import ConditionalDETR
from cond_detr.predictions import Detections, Predictions

__all__ = ["PRESETS", "ConditionalDETR", "Config", "Detections", "InputError", "Predictions", "preset"]
__version__ = "0.1.0"
