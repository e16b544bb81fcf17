"""Drawing detections on images, and sheets of images."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cond_detr.data.images import ImageLike, open_image

# Small images are enlarged so that labels can be read
SMALLEST_SIDE, LARGEST_SIDE = 320, 1280
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


def class_colour(label: int) -> tuple[int, int, int]:
    """A bright RGB colour for a class; hues of consecutive classes differ by the golden ratio."""
    r, g, b = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0)
    return int(r * 255), int(g * 255), int(b * 255)


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as installed by matplotlib, size in pixels; it covers more scripts than Pillow's default font."""
    import matplotlib  # here, as it takes a while and only pictures want it

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


class Found(Protocol):
    """What can be drawn: :class:`cond_detr.Detections`, or what has its arrays."""

    @property
    def boxes(self) -> Tensor:
        """(K, 4) xyxy in pixels."""

    @property
    def scores(self) -> Tensor:
        """(K,), best first."""

    @property
    def labels(self) -> Tensor:
        """(K,) int64."""

    @property
    def names(self) -> Sequence[str]:
        """K class names."""


def draw_detections(image: ImageLike, found: Found, truth: Tensor | None = None, *, scores: bool = True) -> Image.Image:
    """Draws boxes with class names and scores on a copy of an image, which is enlarged if it is small.

    Args:
        image: path, PIL image, (H, W, 3) uint8 RGB array, or what else ``predict`` takes.
        found: its detections.
        truth: (n, 4) ground truth boxes, xyxy in pixels, drawn as thin white lines.
        scores: whether to write scores after the class names.

    Raises:
        InputError: if the image cannot be read.
    """
    return draw_boxes(image, found.boxes, found.labels, found.names, found.scores if scores else None, truth)


def draw_boxes(
    image: ImageLike,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    scores: Tensor | None = None,
    truth: Tensor | None = None,
) -> Image.Image:
    """Draws boxes on a copy of an image, all labels above all boxes.

    Args:
        image: as of :func:`draw_detections`.
        boxes: (K, 4) xyxy in pixels, the most important first.
        labels: (K,) int64, which the colours depend on.
        names: K class names.
        scores: (K,), written after the names.
        truth: (n, 4) ground truth boxes, drawn as thin white lines.

    Raises:
        InputError: if the image cannot be read.
    """
    image = open_image(image)
    scale = max(1.0, min(SMALLEST_SIDE / min(image.size), LARGEST_SIDE / max(image.size)))
    canvas = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    font_size = max(13, round(min(canvas.size) / 32))
    font = font_of(font_size)
    line = max(2, round(min(canvas.size) / 220))
    if truth is not None:
        for box in (truth * scale).tolist():
            draw.rectangle(box, outline=WHITE, width=1)
    # the best detection is drawn last, on top
    places = (boxes * scale).tolist()
    for i in reversed(range(len(places))):
        left, top, right, bottom = places[i]
        outline = class_colour(int(labels[i]))
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=outline, width=line)
    for i in reversed(range(len(places))):
        left, top, _, _ = places[i]
        colour = class_colour(int(labels[i]))
        text = names[i] if scores is None else f"{names[i]} {scores[i]:.2f}"
        width, height = draw.textlength(text, font=font) + 6, font_size + 4
        x = min(max(left, 0), max(0, canvas.width - width))
        y = top - height if top >= height else max(top, 0)
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + 3, y + 1), text, fill=BLACK, font=font)
    return canvas


def sheet(pictures: Sequence[Image.Image], columns: int = 4, cell: int = 360, gap: int = 8) -> Image.Image:
    """Arranges pictures in a grid, each scaled down to fit into a square cell.

    Args:
        pictures: RGB images.
        columns: cells in a row.
        cell: side of a cell in pixels.
        gap: space between cells in pixels.
    """
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), WHITE)
    for i, picture in enumerate(pictures):
        fitted = picture.copy()
        fitted.thumbnail((cell, cell), Image.Resampling.BICUBIC)
        left = gap + i % columns * (cell + gap) + (cell - fitted.width) // 2
        top = gap + i // columns * (cell + gap) + (cell - fitted.height) // 2
        canvas.paste(fitted, (left, top))
    return canvas
