"""Mosaic augmentation (YOLOv4: Bochkovskiy et al., 2020): four images in one, for more variety."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cond_detr.data.augment import Annotated, Region, flip, scale
from cond_detr.data.images import GREY, Size

# The four meet at a point in this part of the image
CENTRE = (0.35, 0.65)
IMAGES = 4


def cells(size: Size, rng: np.random.Generator) -> list[Region]:
    """Divides an image into four: left and right of the top, then of the bottom.

    Args:
        size: (width, height) of the image in pixels.
        rng: random generator.
    """
    x, y = (max(1, round(side * rng.uniform(*CENTRE))) for side in size)
    width, height = size
    return [(0, 0, x, y), (x, 0, width - x, y), (0, y, x, height - y), (x, y, width - x, height - y)]


def fitting(size: Size, cell: Region) -> Size:
    """The largest (width, height) of the same proportions that fits into a cell."""
    ratio = min(cell[2] / size[0], cell[3] / size[1])
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def assemble(size: Size, parts: Sequence[Annotated], where: Sequence[Region]) -> Annotated:
    """Puts images into the cells of a grey one, each at the corner where the cells meet.

    Args:
        size: (width, height) of the result in pixels.
        parts: four images that fit into the cells.
        where: the cells.
    """
    pixels = torch.full((3, size[1], size[0]), GREY, dtype=torch.uint8)
    boxes = []
    for i, (part, (left, top, width, height)) in enumerate(zip(parts, where, strict=True)):
        x = left + (width - part.size[0] if i % 2 == 0 else 0)
        y = top + (height - part.size[1] if i < 2 else 0)
        pixels[:, y : y + part.size[1], x : x + part.size[0]] = part.pixels
        boxes.append(part.boxes + np.array([x, y, x, y], np.float32))
    return Annotated(pixels, np.concatenate(boxes), np.concatenate([part.labels for part in parts]))


def mosaic(
    size: Size,
    sizes: Sequence[Size],
    open_part: Callable[[int, Size], Annotated],
    seed: Sequence[int],
    *,
    mirrored: bool = True,
) -> Annotated:
    """Makes a mosaic of four images.

    Args:
        size: (width, height) of the result in pixels.
        sizes: (width, height) of the four images.
        open_part: opens one of the four by its number, at about a size or larger.
        seed: seed of the randomness.
        mirrored: whether to mirror every other one, at random.
    """
    rng = np.random.default_rng(seed)
    where = cells(size, rng)
    parts = []
    for i, cell in enumerate(where):
        wanted = fitting(sizes[i], cell)
        part = scale(open_part(i, wanted), wanted)
        parts.append(flip(part) if mirrored and rng.random() < 0.5 else part)
    return assemble(size, parts, where)
