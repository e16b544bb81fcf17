"""Exponential moving average of a model's weights, which is evaluated and saved instead of them."""

import torch
from torch import Tensor, nn

from cond_detr.models.model import Model


class WeightAverage:
    """The moving average of a model's weights.

    Args:
        model: the model, whose present weights are the initial average.
        decay: decay of the average per step, such as 0.9998; lower in the first steps, to forget the initial weights.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = model.copy()
        self.model.network.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Updates the average after an optimiser step of the network, the ``step``-th counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(_tensors(self.model.network), _tensors(network), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([ours for ours, _ in moving], [theirs for _, theirs in moving], 1 - decay)
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
