"""Sine embeddings of image positions and of reference points (Conditional DETR, section 3.1; DETR, appendix A.4)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_embedding(position: Tensor, dim: int) -> Tensor:
    """Embeds angles: (...) radians at the lowest frequency -> (..., dim), sines and cosines interleaved."""
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=position.device) * (2 / dim)
    angle = position[..., None] / TEMPERATURE**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def point_embedding(points: Tensor, dim: int) -> Tensor:
    """Embeds (..., 2) points (x, y) in [0, 1] as the image positions are embedded: (..., dim), y before x."""
    x, y = (points.float() * (2 * math.pi)).unbind(-1)
    return torch.cat([sine_embedding(y, dim // 2), sine_embedding(x, dim // 2)], dim=-1)


class ImagePosition(NamedTuple):
    """Embedded positions of B feature maps, or of one that stands for all, an axis at a time.

    Attributes:
        y: (B, H, d / 2) of the rows.
        x: (B, W, d / 2) of the columns.
    """

    y: Tensor
    x: Tensor

    def dense(self) -> Tensor:
        """(B, H * W, d), row by row, y before x."""
        height, width = self.y.shape[1], self.x.shape[1]
        y = self.y[:, :, None].expand(-1, -1, width, -1)
        x = self.x[:, None].expand(-1, height, -1, -1)
        return torch.cat([y, x], dim=-1).flatten(1, 2)

    def project(self, linear: nn.Linear) -> Tensor:
        """``linear`` of the dense embedding, (B, H * W, d_out), by projecting H + W rows instead of H * W.

        For the embedding is [y, x], and so its projection the sum of one of y and one of x.
        """
        half = self.y.shape[-1]
        y = F.linear(self.y, linear.weight[:, :half], linear.bias)
        x = F.linear(self.x, linear.weight[:, half:])
        return (y[:, :, None] + x[:, None]).flatten(1, 2)


def image_position(padding: Tensor, dim: int) -> ImagePosition:
    """Embeds the positions of padded images, fp32.

    Positions count from 1 and are divided by the size of the image without padding.

    Args:
        padding: (B, H, W) bool, True below and to the right of each image.
        dim: of the embedding, both axes together.
    """
    # counted in integers, which CUDA sums deterministically
    valid = (~padding).int()
    y, x = valid[:, :, 0].cumsum(1).float(), valid[:, 0].cumsum(1).float()
    y = y / (y[:, -1:] + 1e-6) * (2 * math.pi)
    x = x / (x[:, -1:] + 1e-6) * (2 * math.pi)
    return ImagePosition(sine_embedding(y, dim // 2), sine_embedding(x, dim // 2))
