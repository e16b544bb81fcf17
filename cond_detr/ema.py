"""Exponential moving average of a model's weights, evaluated and saved in their place."""

import copy

import torch
from torch import Tensor, nn

from cond_detr.models.detector import Detector


class WeightAverage:
    """Follows a model.

    Args:
        model: to follow, from where it is now.
        decay: of the average per step, such as 0.9998; less in the first steps, so that the start is soon forgotten.
    """

    def __init__(self, model: Detector, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follows the model's ``step``-th step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([ours for ours, _ in moving], [theirs for _, theirs in moving], 1 - decay)
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
