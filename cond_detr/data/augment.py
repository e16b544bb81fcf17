"""The paper's augmentation (section 4.1): flips, scales and crops.

The caller seeds a random generator for each image and epoch, so that a sample depends neither on the worker that makes
it nor on interruptions of the training.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cond_detr.config import DataConfig
from cond_detr.data.images import Size, resized

# Fractions of the image size. For the paper's 800 and its least scale of 0.6 they come to short sides of 480, 512 ...
# 800, and before a random crop to 400, 500 or 600 with crops of 384 to 600.
NUM_SCALES = 11
SCALES_BEFORE_CROP = (0.5, 0.625, 0.75)
CROP_SIZES = (0.48, 0.75)


@dataclass(frozen=True)
class Annotated:
    """An image with its ground truth.

    Attributes:
        image: RGB.
        boxes: (n, 4) float32 xyxy in pixels.
        labels: (n,) int64 indices of the classes.
    """

    image: Image.Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def flip(sample: Annotated) -> Annotated:
    """Mirrors an image and its boxes from left to right."""
    width = sample.image.width
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return replace(sample, image=sample.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes=boxes)


def resize(sample: Annotated, size: Size) -> Annotated:
    """Scales an image and its boxes to ``size``, (width, height) in pixels."""
    if size == sample.image.size:
        return sample
    ratio = [size[0] / sample.image.width, size[1] / sample.image.height]
    image = sample.image.resize(size, Image.Resampling.BILINEAR)
    return replace(sample, image=image, boxes=sample.boxes * np.array([*ratio, *ratio], np.float32))


def crop(sample: Annotated, left: int, top: int, width: int, height: int) -> Annotated:
    """Cuts out a region, in pixels; boxes are clipped to it, and dropped if they lie outside."""
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    image = sample.image.crop((left, top, left + width, top + height))
    return Annotated(image, boxes[keep], sample.labels[keep])


@dataclass(frozen=True)
class Augmentation:
    """The random choices for one image, drawn before it is decoded so that its final size is known.

    Attributes:
        flip: whether to mirror it from left to right.
        first_size: (width, height) to scale to before cropping, or None.
        crop: (left, top, width, height) to cut out, or None.
        size: final (width, height).
    """

    flip: bool
    first_size: Size | None
    crop: tuple[int, int, int, int] | None
    size: Size


def draw_crop(size: Size, smallest: int, largest: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a region (left, top, width, height) in pixels inside an image.

    Args:
        size: (width, height) of the image.
        smallest: shortest side of the region; the image's side if that is shorter.
        largest: longest side of the region, likewise.
        rng: random generator.
    """
    width, height = (int(rng.integers(min(side, smallest), min(side, largest), endpoint=True)) for side in size)
    left = int(rng.integers(0, size[0] - width, endpoint=True))
    top = int(rng.integers(0, size[1] - height, endpoint=True))
    return left, top, width, height


def draw_augmentation(size: Size, data: DataConfig, rng: np.random.Generator) -> Augmentation:
    """Draws the training augmentation of an image, of the kind ``data.augment``.

    Args:
        size: (width, height) of the image.
        data: kind of augmentation and sizes.
        rng: random generator.
    """
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
    """Applies an augmentation that was drawn for this image."""
    if drawn.flip:
        sample = flip(sample)
    if drawn.first_size:
        sample = resize(sample, drawn.first_size)
    if drawn.crop:
        sample = crop(sample, *drawn.crop)
    return resize(sample, drawn.size)
