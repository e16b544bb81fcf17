"""What training does to a network for its own sake, and takes back: frozen parts, and gradient checkpointing."""

import contextlib
from collections.abc import Iterator

from cond_detr.config import TrainConfig
from cond_detr.models.network import Network
from cond_detr.models.recompute import set_recomputing
from cond_detr.train.freezing import freeze


@contextlib.contextmanager
def prepared(network: Network, train: TrainConfig) -> Iterator[None]:
    """Freezes parts of a network and turns on gradient checkpointing, as the settings say, for a block of code."""
    frozen = freeze(network, train.freeze)
    set_recomputing(network, train.checkpointing)
    try:
        yield
    finally:
        set_recomputing(network, recompute=False)
        for parameter in frozen:
            parameter.requires_grad_(True)
