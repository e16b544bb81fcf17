"""Images that are given as arrays or tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cond_detr.errors import InputError

# Channels, and how Pillow calls images with so many
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DTYPES = {torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64}


def from_array(pixels: NDArray[Any]) -> Image.Image:
    """An image of an array.

    Args:
        pixels: (H, W) or (H, W, C) uint8: gray, RGB or RGBA, whose transparency is ignored.

    Raises:
        InputError: if it has another shape or dtype.
    """
    gray = pixels[..., None] if pixels.ndim == 2 else pixels
    if gray.ndim != 3 or gray.shape[2] not in MODES or gray.dtype != np.uint8:
        expected = "(H, W), (H, W, 3) or (H, W, 4) uint8, in the order RGB"
        raise InputError(f"an image array must be {expected}, got {pixels.shape} {pixels.dtype}")
    if gray.shape[2] == 1:
        gray = gray[..., 0]
    return Image.fromarray(np.ascontiguousarray(gray)).convert("RGB")


def from_tensor(pixels: Tensor) -> Image.Image:
    """An image of a tensor.

    Args:
        pixels: (C, H, W) or (H, W), on any device: gray, RGB or RGBA; uint8, or floats in [0, 1], which are rounded to
            8 bits.

    Raises:
        InputError: if it has another shape or dtype, or values that are none of pixels, such as normalised ones.
    """
    shape = tuple(pixels.shape)
    if pixels.layout != torch.strided or pixels.is_meta or pixels.dtype not in DTYPES:
        kind = f"{pixels.dtype}, {pixels.layout}, on {pixels.device}"
        raise InputError(
            f"an image tensor must be uint8, or floats in [0, 1], with pixels that can be read, got {kind}"
        )
    channels = pixels.detach()[None] if pixels.dim() == 2 else pixels.detach()
    if channels.dim() != 3 or (shape[0] not in MODES and pixels.dim() == 3):
        raise InputError(f"an image tensor must be (3, H, W), (1, H, W), (4, H, W) or (H, W), got {shape}")
    if channels.is_floating_point():
        low, high = (float(each) for each in channels.aminmax()) if channels.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            found = f"got values from {low:.3g} to {high:.3g}"
            raise InputError(f"an image tensor of floats must have values in [0, 1], not normalised ones; {found}")
        channels = (channels.float() * 255).round().to(torch.uint8)
    return from_array(channels.permute(1, 2, 0).cpu().numpy())
