"""From decoded images to network inputs: the paper's augmentation, and the plain resizing of evaluation and prediction.

Randomness comes from a generator that the caller seeds per image and epoch, so a sample does not depend on the worker
that makes it nor on where training was interrupted.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from typing_extensions import TypeIs

from cond_detr.config import DataConfig
from cond_detr.errors import InputError

Size: TypeAlias = tuple[int, int]  # width, height
ImageLike: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Fractions of the image size. For the paper's 800 and its least scale of 0.6 they come to short sides of 480, 512 ...
# 800, and before a random crop to 400, 500 or 600 with crops of 384 to 600.
NUM_SCALES = 11
SCALES_BEFORE_CROP = (0.5, 0.625, 0.75)
CROP_SIZES = (0.48, 0.75)


@dataclass(frozen=True)
class Annotated:
    """An image with its boxes (n, 4) float32 xyxy in pixels and labels (n,) int64."""

    image: Image.Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def open_image(source: ImageLike, *, turn: bool = True, stride: int = 1) -> Image.Image:
    """Decodes an image to RGB, turned as its EXIF tag says unless ``turn`` is False.

    Raises:
        InputError: the file is missing or not a readable image, the array is not (H, W, 3) uint8, or a side is smaller
            than ``stride``, the network's.
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
    """RGB with 8 bits, without what else the file said, so that nobody turns it again."""
    image = ImageOps.exif_transpose(image) if turn else image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}), expected 8 or 16")
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def is_one(images: Any) -> TypeIs[ImageLike]:
    """Whether it is one image and no sequence of images."""
    return isinstance(images, (str, Path, Image.Image, np.ndarray))


def resized(size: Size, short: int, longest: int) -> Size:
    """(width, height) scaled to a short side, or less where the long side would exceed ``longest``."""
    width, height = size
    if max(size) / min(size) * short > longest:
        short = round(longest * min(size) / max(size))
    if width < height:
        return max(1, short), max(1, int(short * height / width))
    return max(1, int(short * width / height)), max(1, short)


def normalise(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) fp32 with ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    return ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1).contiguous()


def to_network_input(image: Image.Image, short: int, longest: int) -> Tensor:
    """The preparation that evaluation and prediction share: resize, normalise."""
    size = resized(image.size, short, longest)
    return normalise(image if size == image.size else image.resize(size, Image.Resampling.BILINEAR))


def check_size(image: Image.Image, stride: int, name: str) -> None:
    if min(image.size) < stride:
        width, height = image.size
        raise InputError(f"{name} is {width}x{height} pixels, smaller than the network's stride of {stride}")


def flip(sample: Annotated) -> Annotated:
    width = sample.image.width
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return replace(sample, image=sample.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes=boxes)


def resize(sample: Annotated, size: Size) -> Annotated:
    """Scales to (width, height)."""
    if size == sample.image.size:
        return sample
    ratio = [size[0] / sample.image.width, size[1] / sample.image.height]
    image = sample.image.resize(size, Image.Resampling.BILINEAR)
    return replace(sample, image=image, boxes=sample.boxes * np.array([*ratio, *ratio], np.float32))


def crop(sample: Annotated, left: int, top: int, width: int, height: int) -> Annotated:
    """Cuts out a region; boxes are clipped to it and dropped where nothing of them remains."""
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    image = sample.image.crop((left, top, left + width, top + height))
    return Annotated(image, boxes[keep], sample.labels[keep])


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image: everything that was drawn, so that the result's size is known before the image is.

    Attributes:
        flip: from left to right.
        first_size: (width, height) to scale to before cropping, or None.
        crop: (left, top, width, height) to cut out, or None.
        size: final (width, height).
    """

    flip: bool
    first_size: Size | None
    crop: tuple[int, int, int, int] | None
    size: Size


def draw_crop(size: Size, smallest: int, largest: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A region with sides drawn from [smallest, largest], or the image's where that is less."""
    width, height = (int(rng.integers(min(side, smallest), min(side, largest), endpoint=True)) for side in size)
    left = int(rng.integers(0, size[0] - width, endpoint=True))
    top = int(rng.integers(0, size[1] - height, endpoint=True))
    return left, top, width, height


def draw_augmentation(size: Size, data: DataConfig, rng: np.random.Generator) -> Augmentation:
    """Training augmentation as ``data.augment`` says (:class:`~cond_detr.config.DataConfig`), for a (width, height)."""
    mirrored = data.augment != "none" and rng.random() < 0.5
    short = data.image_size
    if data.augment != "paper":
        return Augmentation(mirrored, None, None, resized(size, short, data.max_size))
    first_size = region = None
    if rng.random() < 0.5:
        first_size = resized(size, round(rng.choice(SCALES_BEFORE_CROP) * short), 10**6)
        region = draw_crop(first_size, round(CROP_SIZES[0] * short), round(CROP_SIZES[1] * short), rng)
        size = region[2:]
    scale = rng.choice(np.linspace(data.min_scale, 1, NUM_SCALES))
    return Augmentation(mirrored, first_size, region, resized(size, round(scale * short), data.max_size))


def augment(sample: Annotated, drawn: Augmentation) -> Annotated:
    if drawn.flip:
        sample = flip(sample)
    if drawn.first_size:
        sample = resize(sample, drawn.first_size)
    if drawn.crop:
        sample = crop(sample, *drawn.crop)
    return resize(sample, drawn.size)
