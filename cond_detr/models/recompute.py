"""Gradient checkpointing (Chen et al., 2016): activations are computed again in the backward pass instead of kept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module that can run its parts with gradient checkpointing.

    Attributes:
        recompute: whether it does; off unless training asks for it.
    """

    recompute = False

    def run(self, part: nn.Module, *arguments: Any) -> Tensor:
        """Runs one of the parts."""
        if self.recompute and torch.is_grad_enabled():
            result: Tensor = checkpoint(part, *arguments, use_reentrant=False)
            return result
        output: Tensor = part(*arguments)
        return output


def set_recomputing(network: nn.Module, recompute: bool) -> None:
    """Turns gradient checkpointing on or off in all parts of a network that can do it."""
    for module in network.modules():
        if isinstance(module, Recomputing):
            module.recompute = recompute
