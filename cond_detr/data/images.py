"""Decoding images, and resizing them for evaluation and prediction."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from typing_extensions import TypeIs

from cond_detr.errors import InputError

Size: TypeAlias = tuple[int, int]  # width, height
ImageLike: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]
# Loads an image by its file name and the size that the annotations say
ImageLoader: TypeAlias = Callable[[str, Size], Image.Image]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def open_image(source: ImageLike, *, turn: bool = True, stride: int = 1) -> Image.Image:
    """Decodes an image to 8-bit RGB.

    Args:
        source: path, PIL image or (H, W, 3) uint8 RGB array.
        turn: whether to rotate it as its EXIF tag says.
        stride: stride of the network, in pixels, the shortest side allowed.

    Raises:
        InputError: if the file is missing or is not a readable image, the array is not (H, W, 3) uint8, or the image
            is too small.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise InputError(f"an image array must be (H, W, 3) uint8, got {source.shape} {source.dtype}")
        image, name = Image.fromarray(source), "image"
    elif isinstance(source, (str, Path, Image.Image)):
        name = "image" if isinstance(source, Image.Image) else f"image {source}"
        image = _decode(source, turn, name)
    else:
        raise InputError(f"an image must be a path, a PIL image or an array, got {type(source).__name__}")
    check_size(image, stride, name)
    return image


def _decode(source: str | Path | Image.Image, turn: bool, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file that can be read
            if isinstance(source, Image.Image):
                return _upright(source, turn)
            with Image.open(source) as image:
                return _upright(image, turn)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist") from None
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{name} cannot be read: {str(error) or type(error).__name__}") from None


def _upright(image: Image.Image, turn: bool) -> Image.Image:
    """Converts to 8-bit RGB, rotated by the EXIF tag if wanted, and drops the metadata, so that this happens once."""
    image = ImageOps.exif_transpose(image) if turn else image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}), expected 8 or 16")
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def is_one(images: Any) -> TypeIs[ImageLike]:
    """Whether the argument is a single image rather than a sequence of images."""
    return isinstance(images, (str, Path, Image.Image, np.ndarray))


def resized(size: Size, short: int, longest: int) -> Size:
    """Scales a size, keeping its aspect ratio.

    Args:
        size: (width, height) in pixels.
        short: new length of the short side.
        longest: longest long side allowed; the short side is less than ``short`` where it would be exceeded.
    """
    width, height = size
    if max(size) / min(size) * short > longest:
        short = round(longest * min(size) / max(size))
    if width < height:
        return max(1, short), max(1, int(short * height / width))
    return max(1, int(short * width / height)), max(1, short)


def normalise(image: Image.Image) -> Tensor:
    """Converts an RGB image to (3, H, W) fp32, normalised by ImageNet's mean and standard deviation."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    return ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1).contiguous()


def to_network_input(image: Image.Image, short: int, longest: int) -> Tensor:
    """Prepares an RGB image for the network as in evaluation: resizes it as :func:`resized` and normalises it."""
    size = resized(image.size, short, longest)
    return normalise(image if size == image.size else image.resize(size, Image.Resampling.BILINEAR))


def check_size(image: Image.Image, stride: int, name: str) -> None:
    """Checks that both sides of an image have at least ``stride`` pixels.

    Raises:
        InputError: if not; ``name`` stands for the image in the message.
    """
    if min(image.size) < stride:
        width, height = image.size
        raise InputError(f"{name} is {width}x{height} pixels, smaller than the network's stride of {stride}")
