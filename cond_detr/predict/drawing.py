"""Drawing detections on images, and sheets of images."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from cond_detr.data.images import ImageLike, open_image
from cond_detr.predict.lettering import (
    BLACK,
    WHITE,
    Box,
    class_colour,
    font_for,
    legible,
    place_label,
    text_colour,
)

# Small images are enlarged so that labels can be read
SMALLEST_SIDE, LARGEST_SIDE = 320, 1280
# With more objects than this, labels are as small as can be read
CROWDED = 20


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


class Truth(Protocol):
    """Ground truth that can be drawn: :class:`cond_detr.Detections`, or what has its boxes and names."""

    @property
    def boxes(self) -> Tensor:
        """(n, 4) xyxy in pixels."""

    @property
    def names(self) -> Sequence[str]:
        """N class names."""


def draw_detections(
    image: ImageLike,
    found: Found,
    truth: Tensor | Truth | None = None,
    *,
    scores: bool = True,
    labels: bool = True,
) -> Image.Image:
    """Draws boxes with class names and scores on a copy of an image, which is enlarged if it is small.

    Args:
        image: path, PIL image, (H, W, 3) uint8 RGB array, or what else ``predict`` takes.
        found: its detections.
        truth: the ground truth, drawn in white: (n, 4) boxes, xyxy in pixels, or an object with boxes and names.
        scores: whether to write scores after the class names.
        labels: whether to write class names.

    Raises:
        InputError: if the image cannot be read.
    """
    canvas, scale = enlarged(open_image(image))
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 220))
    if truth is not None:
        boxes = truth if isinstance(truth, Tensor) else truth.boxes
        for box in (boxes * scale).tolist():
            # white on a dark edge is seen on white as well
            draw.rectangle(upright(box), outline=BLACK, width=line + 2)
            draw.rectangle(upright(box), outline=WHITE, width=line)
    places = [upright(box) for box in (found.boxes * scale).tolist()]
    colours = [class_colour(label) for label in found.labels.tolist()]
    # the best detection is drawn last, on top
    for box, colour in reversed(list(zip(places, colours, strict=True))):
        draw.rectangle(box, outline=colour, width=line)
    if not labels:
        return canvas
    texts = list(found.names)
    if scores:
        texts = [f"{name} {score:.2f}" for name, score in zip(texts, found.scores.tolist(), strict=True)]
    backgrounds = colours
    if truth is not None and not isinstance(truth, Tensor):
        places += [upright(box) for box in (truth.boxes * scale).tolist()]
        texts += list(truth.names)
        backgrounds = [*colours, *[WHITE] * len(truth.names)]
    draw_labels(draw, canvas.size, places, texts, backgrounds)
    return canvas


def enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    """A copy of an image, enlarged if it is small, and by how much."""
    scale = max(1.0, min(SMALLEST_SIDE / min(image.size), LARGEST_SIDE / max(image.size)))
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC), scale


def upright(box: Sequence[float]) -> Box:
    """A box whose right and bottom are not in front of left and top, as rounding may leave them."""
    left, top, right, bottom = box
    return left, top, max(left, right), max(top, bottom)


def draw_labels(
    draw: Any, canvas: tuple[int, int], places: Sequence[Box], texts: Sequence[str], colours: Sequence[tuple[int, ...]]
) -> None:
    """Writes a label at each box, above all boxes and apart from each other where there is room."""
    size = max(11 if len(texts) > CROWDED else 13, round(min(canvas) / (48 if len(texts) > CROWDED else 32)))
    font = font_for(texts, size)
    taken = np.empty((len(texts), 4))
    for i, (place, text, colour) in enumerate(zip(places, texts, colours, strict=True)):
        text = legible(text, font)
        label = place_label(place, (draw.textlength(text, font=font) + 6, size + 4), taken[:i], canvas)
        taken[i] = label
        background = (colour[0], colour[1], colour[2])
        draw.rectangle(label, fill=background)
        draw.text((label[0] + 3, label[1] + 1), text, fill=text_colour(background), font=font)


def sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str] = (), columns: int = 4, cell: int = 360, gap: int = 8
) -> Image.Image:
    """Arranges pictures in a grid, each scaled down to fit into a square cell.

    Args:
        pictures: RGB images.
        captions: what stands below them, cut to fit.
        columns: cells in a row.
        cell: side of a cell in pixels.
        gap: space between cells in pixels.
    """
    rows, below = -(-len(pictures) // columns), 20 if captions else 0
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + below + gap) + gap), WHITE)
    draw, font = ImageDraw.Draw(canvas), font_for(captions, 13)
    for i, picture in enumerate(pictures):
        fitted = picture.copy()
        fitted.thumbnail((cell, cell), Image.Resampling.BICUBIC)
        left = gap + i % columns * (cell + gap)
        top = gap + i // columns * (cell + below + gap)
        # what has a caption stands on it
        space = cell - fitted.height if captions else (cell - fitted.height) // 2
        canvas.paste(fitted, (left + (cell - fitted.width) // 2, top + space))
        if captions:
            text = legible(captions[i], font)
            while text and draw.textlength(text, font=font) > cell:
                text = text[1:]  # the end of a path says more than its beginning
            draw.text((left, top + cell + 2), text, fill=BLACK, font=font)
    return canvas
