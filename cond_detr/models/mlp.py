"""Multi-layer perceptrons, as in the prediction heads."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them: (..., inputs) -> (..., outputs).

    Args:
        inputs: input channels.
        hidden: channels between the layers.
        outputs: output channels.
        num_layers: number of linear layers.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, num_layers: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (num_layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers to (..., inputs)."""
        for layer in self.layers[:-1]:
            x = F.relu_(layer(x))
        return self.layers[-1](x)
