"""Pictures: detections on images, sheets of them, and learning curves."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cond_detr.data.transforms import ImageLike, open_image
from cond_detr.predictions import Detections

# Small images are enlarged so that labels can be read
SMALLEST_SIDE, LARGEST_SIDE = 320, 1280
# has more of the world's letters than Pillow's own
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


def class_colour(label: int) -> tuple[int, int, int]:
    """A bright colour; neighbouring classes lie a golden section apart on the colour wheel."""
    r, g, b = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0)
    return int(r * 255), int(g * 255), int(b * 255)


def draw_detections(
    image: ImageLike, found: Detections, truth: Tensor | None = None, *, scores: bool = True
) -> Image.Image:
    """Boxes with class names, and scores, on a copy that is enlarged if it is small.

    Args:
        image: path, PIL image or (H, W, 3) uint8 array.
        found: its detections.
        truth: (n, 4) xyxy in pixels, drawn as thin white boxes.
        scores: whether to write them behind the names.
    """
    image = open_image(image)
    scale = max(1.0, min(SMALLEST_SIDE / min(image.size), LARGEST_SIDE / max(image.size)))
    canvas = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    font_size = max(13, round(min(canvas.size) / 32))
    font = ImageFont.truetype(FONT, font_size)
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
    """Pictures side by side, each fitted into a square cell."""
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), WHITE)
    for i, picture in enumerate(pictures):
        fitted = picture.copy()
        fitted.thumbnail((cell, cell), Image.Resampling.BICUBIC)
        left = gap + i % columns * (cell + gap) + (cell - fitted.width) // 2
        top = gap + i // columns * (cell + gap) + (cell - fitted.height) // 2
        canvas.paste(fitted, (left, top))
    return canvas


def draw_metrics(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes :func:`metrics_figure`."""
    metrics_figure(history).savefig(path, dpi=110)


def metrics_figure(history: Sequence[dict[str, Any]]) -> Any:
    """Learning curves: training losses at the left, average precision at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, precision = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for key, label in (
        ("train_loss", "total, all layers"),
        ("train_loss_classification", "classification, last layer"),
        ("train_loss_l1", "L1, last layer"),
        ("train_loss_giou", "GIoU, last layer"),
    ):
        losses.plot(epochs, [record[key] for record in history], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
    for key in ("AP", "AP50", "AP75"):
        values = [float("nan") if record[key] is None else record[key] for record in history]
        precision.plot(epochs, values, marker=".", label=key)
    precision.set(xlabel="epoch", ylabel="average precision", ylim=(0, 1))
    for axes in (losses, precision):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
