"""The built-in data set: small generated images of shapes on textured backgrounds, in COCO form.

It can be learnt in minutes without being trivial: six classes, objects from a fifth to two thirds of the image, tilted
and overlapping, in random colours, on stripes and soft noise. An image depends on its split and index only.
"""

import colorsys
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.annotations import Annotations

Grid = NDArray[np.floating[Any]]

SIZE = 64
COUNTS = {"train": 4000, "val": 500}
NAMES = ("circle", "ring", "square", "triangle", "star", "cross")
MAX_OBJECTS = 4
# An object may hide at most this much of another, so that every box can be told from what is seen
MAX_HIDDEN = 0.25
# Radians; upright squares and crosses are learnt sooner than ones at any angle
MAX_TILT = 0.4


@dataclass(frozen=True)
class Gallery:
    """Loads generated images, as :class:`cond_detr.data.layouts.FolderLoader` loads those of a folder.

    Attributes:
        images: (SIZE, SIZE, 3) uint8 RGB by file name.
    """

    images: dict[str, NDArray[np.uint8]]

    def __call__(self, file_name: str, _size: tuple[int, int], _at_least: tuple[int, int] | None = None) -> Image.Image:
        """The image of a file name; all of them have the size (SIZE, SIZE)."""
        return Image.fromarray(self.images[file_name])


class Split(NamedTuple):
    """A generated split.

    Attributes:
        annotations: its annotations, as read from a file in COCO's format.
        load: loads its images.
    """

    annotations: Annotations
    load: Gallery


def make_split(split: str, count: int | None = None) -> Split:
    """Generates a split.

    Args:
        split: "train" or "val".
        count: number of images; by default that of :data:`COUNTS`.
    """
    images: dict[str, NDArray[np.uint8]] = {}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(COUNTS[split] if count is None else count):
        name = f"{split}-{i:05d}.png"
        pixels, labels, boxes = draw_image(np.random.default_rng((list(COUNTS).index(split), i)))
        images[name] = pixels
        entries.append({"id": i, "file_name": name, "width": SIZE, "height": SIZE})
        for label, (x0, y0, x1, y1) in zip(labels, boxes, strict=True):
            bbox = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    raw: dict[str, Any] = {"images": entries, "annotations": annotations, "categories": categories}
    return Split(check_annotations(raw, f"shapes/{split}"), Gallery(images))


def draw_image(rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[int], list[list[int]]]:
    """Draws an image: (SIZE, SIZE, 3) uint8 RGB, the label of each object, and its xyxy box in pixels."""
    canvas = background(rng)
    labels: list[int] = []
    masks: list[Grid] = []
    for _ in range(rng.integers(1, MAX_OBJECTS, endpoint=True)):
        label = int(rng.integers(len(NAMES)))
        mask = shape_mask(NAMES[label], rng)
        if any((mask * other).sum() > MAX_HIDDEN * min(mask.sum(), other.sum()) for other in masks):
            continue
        labels.append(label)
        masks.append(mask)
        canvas += mask[..., None] * (fill(rng) - canvas)
    canvas += rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    pixels = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels, labels, [extent(mask) for mask in masks]


@functools.cache
def pixel_grid() -> tuple[Grid, Grid]:
    """Coordinates x and y of the pixel centres in [0, 1], (SIZE, SIZE) each."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.tile(axis, (SIZE, 1)), np.tile(axis[:, None], (1, SIZE))


def background(rng: np.random.Generator) -> Grid:
    """Draws a background (SIZE, SIZE, 3): a muted colour gradient with stripes and soft noise."""
    x, y = pixel_grid()
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    canvas = rng.uniform(0.15, 0.45, 3) + ramp * rng.uniform(-0.15, 0.15, 3)
    angle, frequency = rng.uniform(0, 2 * np.pi), rng.uniform(10, 60)
    stripes = np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    canvas = canvas + stripes * rng.uniform(-0.08, 0.08, 3)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255 - 0.5
    return (canvas + clouds[..., None] * rng.uniform(-0.2, 0.2, 3)).astype(np.float32)


def fill(rng: np.random.Generator) -> Grid:
    """Draws the colour of an object (SIZE, SIZE, 3): bright, with a slight gradient."""
    colour = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.3, 1), rng.uniform(0.8, 1))
    x, y = pixel_grid()
    shade = (x - 0.5) * rng.uniform(-0.3, 0.3) + (y - 0.5) * rng.uniform(-0.3, 0.3)
    return (np.array(colour) + shade[..., None]).astype(np.float32)


def shape_mask(name: str, rng: np.random.Generator) -> Grid:
    """Draws a shape of random position, size and rotation inside the image: coverage (SIZE, SIZE) in [0, 1]."""
    radius = 0.5 * np.exp(rng.uniform(np.log(0.2), np.log(0.7)))
    centre = rng.uniform(radius, 1 - radius, 2)
    angle = rng.uniform(-MAX_TILT, MAX_TILT)
    x, y = pixel_grid()
    x, y = x - centre[0], y - centre[1]
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    # distances are in units of the radius: one pixel of transition at the edge
    return np.clip(0.5 - signed_distance(name, u, v) * radius * SIZE, 0, 1).astype(np.float32)


def signed_distance(name: str, u: Grid, v: Grid) -> Grid:
    """Approximate signed distance from a shape inscribed in the unit circle, negative inside.

    Args:
        name: one of :data:`NAMES`.
        u: horizontal coordinates, in units of the radius.
        v: vertical coordinates, likewise.
    """
    r = np.hypot(u, v)
    if name == "circle":
        return r - 1
    if name == "ring":
        return np.abs(r - 0.76) - 0.24
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.sqrt(0.5, dtype=np.float32)
    if name == "triangle":
        return polygon_distance(u, v, r, corners=3, apothem=0.5)
    if name == "star":
        return polygon_distance(u, v, r, corners=5, apothem=0.31, star=True)
    if name == "cross":
        return np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.28, np.maximum(np.abs(u), np.abs(v)) - 0.96)
    raise ValueError(f"unknown shape {name!r}")


def polygon_distance(u: Grid, v: Grid, r: Grid, corners: int, apothem: float, star: bool = False) -> Grid:
    """Signed distance from a regular polygon, or from a star whose edges are the lines through every second corner.

    Args:
        u: horizontal coordinates, in units of the circumradius.
        v: vertical coordinates, likewise.
        r: distances from the centre, likewise.
        corners: number of corners.
        apothem: distance of the edges from the centre, likewise.
        star: whether it is a star.
    """
    sector = 2 * np.pi / corners
    angle = np.abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)
    if star:
        # the edge of the tip at angle 0 runs along a line whose normal is turned by two fifths of a half turn
        return r * np.cos(angle - 2 * np.pi / 5) - apothem
    return r * np.cos(sector / 2 - angle) - apothem


def extent(mask: Grid) -> list[int]:
    """Bounding box, xyxy in pixels, of the pixels that are at least half covered."""
    rows, cols = np.flatnonzero((mask >= 0.5).any(1)), np.flatnonzero((mask >= 0.5).any(0))
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]
