"""The paper's augmentation (section 4.1), flips, scales and crops; and changes of colour and scale for small data.

The caller seeds a random generator for each image and epoch, so that a sample depends neither on the worker that makes
it nor on interruptions of the training.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cond_detr.config import DataConfig
from cond_detr.data.images import GREY, Size, resize, resized

Region: TypeAlias = tuple[int, int, int, int]  # left, top, width, height in pixels

# Fractions of the image size. For the paper's 800 and its least scale of 0.6 they come to short sides of 480, 512 ...
# 800, and before a random crop to 400, 500 or 600 with crops of 384 to 600.
NUM_SCALES = 11
SCALES_BEFORE_CROP = (0.5, 0.625, 0.75)
CROP_SIZES = (0.48, 0.75)
# Of red, green and blue, how bright they look (ITU-R BT.601)
BRIGHTNESS = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Annotated:
    """An image with its ground truth.

    Attributes:
        pixels: (3, H, W) uint8 RGB.
        boxes: (n, 4) float32 xyxy in pixels.
        labels: (n,) int64 indices of the classes.
    """

    pixels: Tensor
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def size(self) -> Size:
        """(width, height) of the image in pixels."""
        _, height, width = self.pixels.shape
        return width, height


def flip(sample: Annotated) -> Annotated:
    """Mirrors an image and its boxes from left to right."""
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = sample.size[0] - boxes[:, [2, 0]]
    return replace(sample, pixels=sample.pixels.flip(2), boxes=boxes)


def scale(sample: Annotated, size: Size) -> Annotated:
    """Scales an image and its boxes to ``size``, (width, height) in pixels."""
    if size == sample.size:
        return sample
    ratio = [new / old for new, old in zip(size, sample.size, strict=True)]
    return replace(sample, pixels=resize(sample.pixels, size), boxes=sample.boxes * np.array(ratio * 2, np.float32))


def crop(sample: Annotated, region: Region) -> Annotated:
    """Cuts out a region; boxes are clipped to it, and dropped if they lie outside."""
    left, top, width, height = region
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    pixels = sample.pixels[:, top : top + height, left : left + width]
    return Annotated(pixels, boxes[keep], sample.labels[keep])


@dataclass(frozen=True)
class Zoom:
    """A change of scale, after which the image is moved.

    Attributes:
        factor: above 1 to enlarge the image, of which a part is cut off; below 1 to shrink it, with grey around it.
        place: (x, y) in [0, 1], where it stands: 0 for as far left or up as it goes.
    """

    factor: float
    place: tuple[float, float]

    def scaled(self, size: Size) -> Size:
        """(width, height) of an image of that size, once it is enlarged or shrunk."""
        return max(1, round(size[0] * self.factor)), max(1, round(size[1] * self.factor))


def zoom(sample: Annotated, drawn: Zoom, size: Size) -> Annotated:
    """Scales an image to ``size``, (width, height) in pixels, times the factor, and cuts or fills it to ``size``."""
    scaled = scale(sample, drawn.scaled(size))
    # how far the image's corner is moved, negative to the left
    left, top = (round((new - own) * at) for new, own, at in zip(size, scaled.size, drawn.place, strict=True))
    cut = crop(scaled, (max(0, -left), max(0, -top), min(size[0], scaled.size[0]), min(size[1], scaled.size[1])))
    if cut.size == size:
        return cut
    pixels = torch.full((3, size[1], size[0]), GREY, dtype=torch.uint8)
    x, y = max(0, left), max(0, top)
    pixels[:, y : y + cut.size[1], x : x + cut.size[0]] = cut.pixels
    return replace(cut, pixels=pixels, boxes=cut.boxes + np.array([x, y, x, y], np.float32))


def recolour(pixels: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Multiplies brightness, contrast and saturation of (3, H, W) uint8 pixels, each by a factor."""
    weights = torch.tensor(BRIGHTNESS).view(3, 1, 1)
    values = pixels.float() * brightness
    mean = (values * weights).sum(0).mean()
    values = mean + (values - mean) * contrast
    grey = (values * weights).sum(0)
    return (grey + (values - grey) * saturation).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Augmentation:
    """The random choices for one image, drawn before it is decoded so that its final size is known.

    Attributes:
        flip: whether to mirror it from left to right.
        first_size: (width, height) to scale to before cropping, or None.
        crop: what to cut out, or None.
        size: final (width, height).
        zoom: change of scale at the end, or None.
        colours: factors of brightness, contrast and saturation, or None.
    """

    flip: bool
    first_size: Size | None
    crop: Region | None
    size: Size
    zoom: Zoom | None = None
    colours: tuple[float, float, float] | None = None

    @property
    def first(self) -> Size:
        """(width, height) that the whole image is scaled to."""
        if self.first_size:
            return self.first_size
        return self.zoom.scaled(self.size) if self.zoom else self.size


def draw_crop(size: Size, smallest: int, largest: int, rng: np.random.Generator) -> Region:
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
    """Draws the training augmentation of an image: of the kind ``data.augment``, and further changes if wanted.

    Args:
        size: (width, height) of the image.
        data: kind of augmentation and sizes.
        rng: random generator.
    """
    drawn = _draw_kind(size, data, rng)
    if data.zoom:
        drawn = replace(drawn, zoom=Zoom(rng.uniform(1 - data.zoom, 1 + data.zoom), (rng.random(), rng.random())))
    if data.colour:
        factors = rng.uniform(1 - data.colour, 1 + data.colour, 3).tolist()
        drawn = replace(drawn, colours=(factors[0], factors[1], factors[2]))
    return drawn


def _draw_kind(size: Size, data: DataConfig, rng: np.random.Generator) -> Augmentation:
    mirrored = data.augment != "none" and rng.random() < 0.5
    short = data.image_size
    if data.augment != "paper":
        return Augmentation(mirrored, None, None, resized(size, short, data.max_size))
    first_size = region = None
    if rng.random() < 0.5:
        first_size = resized(size, round(rng.choice(SCALES_BEFORE_CROP) * short), 10**6)
        region = draw_crop(first_size, round(CROP_SIZES[0] * short), round(CROP_SIZES[1] * short), rng)
        size = region[2:]
    share = rng.choice(np.linspace(data.min_scale, 1, NUM_SCALES))
    return Augmentation(mirrored, first_size, region, resized(size, round(share * short), data.max_size))


def augment(sample: Annotated, drawn: Augmentation) -> Annotated:
    """Applies an augmentation that was drawn for this image."""
    if drawn.flip:
        sample = flip(sample)
    if drawn.first_size:
        sample = scale(sample, drawn.first_size)
    if drawn.crop:
        sample = crop(sample, drawn.crop)
    return finish(sample, drawn)


def finish(sample: Annotated, drawn: Augmentation) -> Annotated:
    """The last part of an augmentation: scales an image to its final size, and changes scale and colours if wanted."""
    sample = zoom(sample, drawn.zoom, drawn.size) if drawn.zoom else scale(sample, drawn.size)
    if drawn.colours:
        sample = replace(sample, pixels=recolour(sample.pixels, *drawn.colours))
    return sample
