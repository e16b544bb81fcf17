"""Sine embeddings of image positions and of reference points (Conditional DETR, section 3.1; DETR, appendix A.4)."""

import math

import torch
from torch import Tensor

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


def image_embedding(padding: Tensor, dim: int) -> Tensor:
    """Embeds the positions of padded images: (B, H, W) bool, True where padded -> (B, H, W, dim) fp32, y before x.

    Positions count valid pixels from 1 and are divided by the size of the image without padding.
    """
    # counted in integers, which CUDA sums deterministically
    valid = (~padding).int()
    y, x = valid.cumsum(1).float(), valid.cumsum(2).float()
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    return torch.cat([sine_embedding(y, dim // 2), sine_embedding(x, dim // 2)], dim=-1)
