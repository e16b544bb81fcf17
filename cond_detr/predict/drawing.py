"""Drawing detections on images, and sheets of images."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cond_detr.data.images import ImageLike, open_image
from cond_detr.models.predictions import Detections

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


def draw_detections(
    image: ImageLike, found: Detections, truth: Tensor | None = None, *, scores: bool = True
) -> Image.Image:
    """Draws boxes with class names and scores on a copy of an image, which is enlarged if it is small.

    Args:
        image: path, PIL image or (H, W, 3) uint8 RGB array.
        found: its detections.
        truth: (n, 4) ground truth boxes, xyxy in pixels, drawn as thin white lines.
        scores: whether to write scores after the class names.

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
    for i in reversed(range(len(found.scores))):
        colour = class_colour(int(found.labels[i]))
        left, top, right, bottom = (found.boxes[i] * scale).tolist()
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
        text = f"{found.names[i]} {found.scores[i]:.2f}" if scores else found.names[i]
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
