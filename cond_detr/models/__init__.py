"""The detectors and their parts."""

import torch

from cond_detr.checkpoints import Checkpoint
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


def check_buildable(saved: Checkpoint) -> None:
    """Checks that a checkpoint's settings make a model that its tensors fit, before memory is spent.

    Raises:
        InputError: they do not.
    """
    m = saved.config.model
    if max(m.encoder_layers, m.decoder_layers) > len(saved.model):
        raise InputError(f"checkpoint {saved.path} has fewer tensors than its settings say that there are layers")
    try:
        with torch.device("meta"):
            saved.check(build(saved.config, saved.classes))
    except InputError as error:
        raise InputError(f"{saved.path} cannot be used: {error}") from None
    except RuntimeError:  # sizes that overflow
        raise InputError(f"{saved.path} cannot be used: its settings make a model that fits into no memory") from None
