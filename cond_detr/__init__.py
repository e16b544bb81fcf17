"""Conditional DETR that trains quickly (Meng et al., ICCV 2021).

Public names are imported on first use, so that ``cond-detr --help`` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cond_detr.version import __version__ as __version__

if TYPE_CHECKING:
    from cond_detr.config import Config as Config
    from cond_detr.detector import DETR as DETR
    from cond_detr.detector import ConditionalDETR as ConditionalDETR
    from cond_detr.detector import Detector as Detector
    from cond_detr.errors import InputError as InputError
    from cond_detr.models.predictions import Predictions as Predictions
    from cond_detr.predict.detections import Detection as Detection
    from cond_detr.predict.detections import Detections as Detections
    from cond_detr.predict.drawing import draw_detections as draw_detections
    from cond_detr.presets import PRESETS as PRESETS
    from cond_detr.presets import preset as preset
    from cond_detr.train.criterion import Criterion as Criterion

_HOMES = {
    "PRESETS": "presets",
    "preset": "presets",
    "Config": "config",
    "InputError": "errors",
    "ConditionalDETR": "detector",
    "DETR": "detector",
    "Detector": "detector",
    "Detection": "predict.detections",
    "Detections": "predict.detections",
    "Predictions": "models.predictions",
    "draw_detections": "predict.drawing",
    "Criterion": "train.criterion",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cond_detr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
