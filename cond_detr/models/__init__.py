"""The detectors and their parts."""

from cond_detr.classes import Classes
from cond_detr.config import Config, ModelConfig
from cond_detr.errors import InputError
from cond_detr.models.conditional_detr import ConditionalDETR
from cond_detr.models.detector import Detector
from cond_detr.models.detr import DETR
from cond_detr.models.resnet import LAYOUTS

__all__ = ["DETR", "MODELS", "ConditionalDETR", "Detector", "build"]

MODELS: dict[str, type[Detector]] = {"conditional-detr": ConditionalDETR, "detr": DETR}


def build(config: Config, classes: Classes) -> Detector:
    """The untrained detector of some settings.

    Raises:
        InputError: settings that are unknown or exclude each other.
    """
    check(config.model)
    return MODELS[config.model.kind](config, classes)


def check(m: ModelConfig) -> None:
    """Raises the sentence for settings that make no model."""
    if m.kind not in MODELS:
        raise InputError(f"unknown model {m.kind!r}; there are {', '.join(MODELS)}")
    if m.backbone not in LAYOUTS:
        raise InputError(f"unknown backbone {m.backbone!r}; there are {', '.join(LAYOUTS)}")
    if m.d_model % (4 * m.num_heads):
        raise InputError(f"d_model must be a multiple of 4 * num_heads, got {m.d_model} and {m.num_heads} heads")
    standard = ModelConfig()
    if m.kind == "detr":
        for name in ("spatial_query", "projection", "fused_attn"):
            if getattr(m, name) != getattr(standard, name):
                raise InputError(
                    f"--{name.replace('_', '-')} belongs to conditional cross-attention, which plain DETR lacks"
                )
    elif m.spatial_query in {"csq-t", "csq-p", "csq-c"} and m.projection != standard.projection:
        raise InputError(
            f"--projection {m.projection} is a form of the transformation of the embedding, "
            f"of which --spatial-query {m.spatial_query} has none"
        )
