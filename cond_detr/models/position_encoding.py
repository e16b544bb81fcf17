"""Sine embeddings of image positions and of reference points (Conditional DETR, section 3.1; DETR, appendix A.4)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_embedding(position: Tensor, dim: int) -> Tensor:
    """Embeds positions (...) as (..., dim): sines and cosines of decreasing frequencies, interleaved.

    Args:
        position: (...) angles at the highest frequency, in radians.
        dim: channels of the embedding.
    """
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=position.device) * (2 / dim)
    angle = position[..., None] / TEMPERATURE**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def point_embedding(points: Tensor, dim: int) -> Tensor:
    """Embeds points (..., 2), (x, y) in [0, 1], like image positions: (..., dim), the channels of y first."""
    x, y = (points.float() * (2 * math.pi)).unbind(-1)
    return torch.cat([sine_embedding(y, dim // 2), sine_embedding(x, dim // 2)], dim=-1)


class ImagePosition(NamedTuple):
    """Position embeddings of B feature maps, or of one that stands for all, stored for each axis separately.

    Attributes:
        y: (B or 1, H, d / 2) embeddings of the rows.
        x: (B or 1, W, d / 2) embeddings of the columns.
    """

    y: Tensor
    x: Tensor

    def dense(self) -> Tensor:
        """Embeddings of all positions, (B or 1, H * W, d), row by row; the channels of y before those of x."""
        height, width = self.y.shape[1], self.x.shape[1]
        y = self.y[:, :, None].expand(-1, -1, width, -1)
        x = self.x[:, None].expand(-1, height, -1, -1)
        return torch.cat([y, x], dim=-1).flatten(1, 2)

    def project(self, linear: nn.Linear) -> Tensor:
        """Applies a linear layer to the dense embeddings, (B or 1, H * W, d_out), at the cost of H + W rows.

        The embedding of a position is [y, x], so its projection is the sum of a projection of y and one of x.
        """
        half = self.y.shape[-1]
        y = F.linear(self.y, linear.weight[:, :half], linear.bias)
        x = F.linear(self.x, linear.weight[:, half:])
        return (y[:, :, None] + x[:, None]).flatten(1, 2)


def image_position(padding: Tensor, dim: int) -> ImagePosition:
    """Embeds the positions of padded feature maps, in fp32.

    Positions count from 1 and are divided by the size of the feature map without padding.

    Args:
        padding: (B, H, W) bool, True where padded, at the right and at the bottom.
        dim: channels of the embedding, both axes together.
    """
    # counted in integers, which CUDA sums deterministically
    valid = (~padding).int()
    y, x = valid[:, :, 0].cumsum(1).float(), valid[:, 0].cumsum(1).float()
    y = y / (y[:, -1:] + 1e-6) * (2 * math.pi)
    x = x / (x[:, -1:] + 1e-6) * (2 * math.pi)
    return ImagePosition(sine_embedding(y, dim // 2), sine_embedding(x, dim // 2))
