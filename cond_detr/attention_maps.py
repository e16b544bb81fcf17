"""``python -m cond_detr.attention_maps``: where each head looks for a detection, as in Figures 1 and 4 of the paper."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn

from cond_detr.cli import command_parser, device_argument, make_folder, natural, run
from cond_detr.data import shapes
from cond_detr.data.transforms import check_size, open_image, to_network_input
from cond_detr.errors import InputError
from cond_detr.models.attention import AttentionMaps
from cond_detr.models.detector import Detector
from cond_detr.predictions import Predictions, detections, ranked


class DetectionMaps(NamedTuple):
    """The maps of one detection.

    Attributes:
        name, score: of the detection.
        box: (4,) xyxy in fractions of the image size.
        spatial, content, combined: (heads, h, w) weights over the feature map, each map sums to 1.
    """

    name: str
    score: float
    box: Tensor
    spatial: Tensor
    content: Tensor
    combined: Tensor


@torch.inference_mode()
def detection_maps(model: Detector, image: Image.Image, count: int = 1, layer: int = -1) -> list[DetectionMaps]:
    """The maps of the ``count`` best detections in an image, of one decoder layer.

    Args:
        model: in evaluation mode.
        image: RGB, of any size.
        count: of detections.
        layer: of the decoder; the last by default.

    Raises:
        InputError: there is no such layer.
    """
    layers = cast("nn.ModuleList", model.decoder.layers)
    if not -len(layers) <= layer < len(layers):
        raise InputError(f"--layer {layer}: the decoder has the layers 0 to {len(layers) - 1}")
    cross_attn = cast(nn.Module, layers[layer].cross_attn)
    kept: list[tuple[Any, ...]] = []
    hook = cross_attn.register_forward_pre_hook(lambda _, arguments: kept.append(arguments))
    data = model.config.data
    pixels = to_network_input(image, data.image_size, data.max_size)[None]
    try:
        predictions = model(pixels.to(model.query_embed.weight.device))
    finally:
        hook.remove()
    maps: AttentionMaps = cross_attn.maps(*kept[0])  # type: ignore[operator]
    stride = model.backbone.stride
    height, width = -(-pixels.shape[2] // stride), -(-pixels.shape[3] // stride)
    return [
        DetectionMaps(
            name,
            score,
            box,
            *(part[0, :, query].view(-1, height, width).cpu() for part in (maps.spatial, maps.content, maps.combined)),
        )
        for name, score, box, query in best(predictions, model, count)
    ]


def best(predictions: Predictions, model: Detector, count: int) -> list[tuple[str, float, Tensor, int]]:
    """(class name, score, box in fractions, query) of the best detections of one image."""
    (found,) = detections(predictions, [(1, 1)], model.classes, count, softmax=model.softmax)
    _, queries, _ = ranked(predictions, count, softmax=model.softmax)
    return list(zip(found.names, found.scores.tolist(), found.boxes, queries[0].tolist(), strict=True))


def side_shares(maps: Tensor, box: Tensor) -> dict[str, Tensor]:
    """How much of each map lies near each side of a box: within a quarter of the box's size of that side.

    Args:
        maps: (heads, h, w) weights, each map sums to 1.
        box: (4,) xyxy in fractions of the image.

    Returns:
        For left, top, right and bottom (heads,) shares in [0, 1]. Positions count as far as they lie in the band.
    """
    _, height, width = maps.shape
    left, top, right, bottom = box.tolist()
    columns, rows = maps.sum(1), maps.sum(2)

    def share(weights: Tensor, cells: int, side: float, size: float) -> Tensor:
        edges = torch.arange(cells + 1) / cells
        low, high = side - size / 4, side + size / 4
        inside = (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells
        return (weights * inside).sum(-1)

    return {
        "left": share(columns, width, left, right - left),
        "top": share(rows, height, top, bottom - top),
        "right": share(columns, width, right, right - left),
        "bottom": share(rows, height, bottom, bottom - top),
    }


def draw(image: Image.Image, found: DetectionMaps) -> Any:
    """A figure: a row each for spatial, content and combined weights, a column for each head, the box in all.

    A head with half of its spatial weight near a side of the box, or more, is titled with that side.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    heads = len(found.spatial)
    aspect = image.height / image.width
    figure = Figure(figsize=(1.6 * heads + 0.5, 3 * 1.6 * aspect + 0.8), layout="constrained")
    axes = figure.subplots(3, heads, squeeze=False)
    left, top, right, bottom = (found.box * torch.tensor([image.width, image.height] * 2)).tolist()
    grey = image.convert("L")
    shares = side_shares(found.spatial, found.box)
    sides = ["".join(f", {side}" for side, share in shares.items() if share[head] >= 0.5) for head in range(heads)]
    for row, name in zip(axes, ("spatial", "content", "combined"), strict=True):
        for head, (axis, weights) in enumerate(zip(row, getattr(found, name), strict=True)):
            axis.imshow(grey, cmap="gray", extent=(0, image.width, image.height, 0))
            axis.imshow(
                weights.numpy(),
                cmap="inferno",
                alpha=0.65,
                extent=(0, image.width, image.height, 0),
                interpolation="bilinear",
            )
            axis.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="cyan", linewidth=1.5)
            )
            axis.set(xlim=(0, image.width), ylim=(image.height, 0), xticks=[], yticks=[])
            if name == "spatial":
                axis.set_title(f"head {head + 1}{sides[head]}", fontsize=8)
        row[0].set_ylabel(name, fontsize=9)
    figure.suptitle(f"{found.name} {found.score:.2f}", fontsize=10)
    return figure


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "attention",
        __doc__,
        "--checkpoint runs/dc5-shapes/best.pt --output-dir out",
        "--checkpoint runs/r50/best.pt --output-dir out --detections 5 --layer 5 photo.jpg",
    )
    p.add_argument(
        "image", type=Path, nargs="?", metavar="IMAGE", help="an image file (default: one of the built-in data)"
    )
    p.add_argument("--checkpoint", required=True, metavar="FILE", help="best.pt of a run, or another's detector")
    p.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="for the pictures")
    p.add_argument(
        "--detections", type=natural, default=3, metavar="N", help="pictures: of the best detections (default: 3)"
    )
    p.add_argument("--layer", type=int, default=-1, metavar="N", help="of the decoder, from 0 (default: the last)")
    p.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if any)")
    return p


def built_in_image() -> tuple[str, Image.Image]:
    """Name and pixels of a held-out image of the built-in data, with a large triangle."""
    annotations, load = shapes.make_split("val", 81)
    record = annotations.records[-1]
    return Path(record.file_name).stem, load(record.file_name, record.size)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    model = Detector.from_checkpoint(options.checkpoint).to(device_argument(options.device))
    if options.image is None:
        name, image = built_in_image()
    else:
        name, image = options.image.stem, open_image(options.image)
    check_size(image, model.backbone.stride, f"image {options.image or name}")
    make_folder(options.output_dir)
    for number, found in enumerate(detection_maps(model, image, options.detections, options.layer), start=1):
        # a name may be anything, and must not lead into another folder
        of_class = re.sub(r"[^-\w]+", "_", found.name)
        path = options.output_dir / f"{name}-{number}-{of_class}.png"
        draw(image, found).savefig(path, dpi=130)
        print(f"{found.name} {found.score:.2f}: {path}")
    return 0


if __name__ == "__main__":
    run(main)
