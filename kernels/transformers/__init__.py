"""The transformers package's detectors, faster: ``accelerate()`` before training, and nothing else changes.

from cond_detr_kernels.transformers import accelerate

print(accelerate())
"""

try:
    import transformers.loss.loss_utils as _losses  # noqa: F401
except ImportError as error:
    raise ImportError(
        "cond_detr_kernels.transformers accelerates the transformers package's detectors: pip install "
        "'transformers>=5.15'"
    ) from error

from cond_detr_kernels.transformers.accelerated import Acceleration, accelerate, restore

__all__ = ["Acceleration", "accelerate", "restore"]
