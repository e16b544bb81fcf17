"""Parts of the network that keep their weights in training, such as a pretrained backbone for a little data."""

from collections.abc import Iterator

from torch import nn

from cond_detr.models.network import Network

# What each choice of the setting freezes: everything up to that part
PARTS = {
    "nothing": (),
    "backbone": ("backbone",),
    "encoder": ("backbone", "input_proj", "encoder"),
    "decoder": ("backbone", "input_proj", "encoder", "query_embed", "reference_point", "decoder"),
}


def frozen_parts(network: Network, up_to: str) -> Iterator[nn.Module]:
    """Yields the modules that the setting ``freeze`` names."""
    for name in PARTS[up_to]:
        part = getattr(network, name)
        if part is not None:  # queries that are boxes have no embeddings
            yield part


def freeze(network: Network, up_to: str) -> list[nn.Parameter]:
    """Stops the training of parts; returns their parameters that were trained before."""
    trained = [each for part in frozen_parts(network, up_to) for each in part.parameters() if each.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    return trained


def train_unfrozen(module: nn.Module, network: Network, up_to: str) -> None:
    """Puts a module into training mode, but for the frozen parts of its network: no dropout, batch norm as it is."""
    module.train()
    for part in frozen_parts(network, up_to):
        part.eval()
