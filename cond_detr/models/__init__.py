"""The detectors and their parts."""

from cond_detr.classes import Classes
from cond_detr.config import Config
from cond_detr.errors import InputError
from cond_detr.models.conditional_detr import ConditionalDETR
from cond_detr.models.detector import Detector
from cond_detr.models.detr import DETR

__all__ = ["DETR", "MODELS", "ConditionalDETR", "Detector", "build"]

MODELS: dict[str, type[Detector]] = {model.kind: model for model in (ConditionalDETR, DETR)}


def build(config: Config, classes: Classes) -> Detector:
    """The untrained detector of some settings.

    Raises:
        InputError: settings that are unknown or exclude each other.
    """
    if config.model.kind not in MODELS:
        raise InputError(f"unknown model {config.model.kind!r}; there are {', '.join(MODELS)}")
    return MODELS[config.model.kind](config, classes)
