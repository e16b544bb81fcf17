"""Whether the settings in a file make the network that its tensors are of."""

import torch

from cond_detr.errors import InputError
from cond_detr.models.model import new_network
from cond_detr.weights.checkpoint import Checkpoint

# A layer of an encoder or decoder has more than that
TENSORS_PER_LAYER = 8


def check_buildable(saved: Checkpoint) -> None:
    """Checks, before any memory is allocated, that a checkpoint's tensors fit the network of its settings.

    Raises:
        InputError: if they do not fit, or the settings are invalid.
    """
    m = saved.config.model
    if max(m.encoder_layers, m.decoder_layers) > len(saved.model) // TENSORS_PER_LAYER:
        raise InputError(f"checkpoint {saved.path} has fewer tensors than its settings say that there are layers")
    try:
        with torch.device("meta"):
            saved.check(new_network(saved.config, len(saved.classes)))
    except InputError as error:
        raise InputError(f"{saved.path} cannot be used: {error}") from None
    except RuntimeError:  # sizes that overflow
        raise InputError(f"{saved.path} cannot be used: its settings make a model that fits into no memory") from None
