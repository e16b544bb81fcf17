"""``cond-detr attention``: draws the attention maps of every head for detections, as in the paper's Figures 1 and 4."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cond_detr.attention_maps.drawing import draw
from cond_detr.attention_maps.maps import detection_maps
from cond_detr.cli import command_parser, natural, run, whole
from cond_detr.data import shapes
from cond_detr.data.images import open_image
from cond_detr.errors import tell
from cond_detr.files import make_folder
from cond_detr.options import add_running
from cond_detr.pictures import check_replaceable, write_picture
from cond_detr.weights.options import add_checkpoint, opened


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr attention``."""
    p = command_parser(
        "attention",
        __doc__,
        "--checkpoint runs/dc5-shapes/best.pt --output-dir out",
        "--checkpoint runs/r50/best.pt --output-dir out --detections 5 --layer 5 photo.jpg",
    )
    p.add_argument(
        "image", type=Path, nargs="?", metavar="IMAGE", help="image file (default: one of the built-in data)"
    )
    add_checkpoint(p)
    p.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    p.add_argument(
        "--detections", type=natural, default=3, metavar="N", help="detections to draw, best first (default: 3)"
    )
    p.add_argument("--layer", type=whole, default=-1, metavar="N", help="decoder layer, from 0 (default: the last)")
    add_running(p, ["device", "threads"])
    return p


def built_in_image() -> tuple[str, Image.Image]:
    """Name and pixels of a validation image of the built-in shapes, which has a large triangle."""
    annotations, load = shapes.make_split("val", 81)
    record = annotations.records[-1]
    return Path(record.file_name).stem, load(record.file_name, record.size)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr attention``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the checkpoint, the image, the layer or the output folder cannot be used.
    """
    options = parser().parse_args(argv)
    model = opened(options)
    if options.image is None:
        name, image = built_in_image()
    else:
        name, image = options.image.stem, open_image(options.image)
    model.input_size.check(image.size, f"image {options.image or name}")
    make_folder(options.output_dir)
    maps = {}
    for number, found in enumerate(detection_maps(model, image, options.detections, options.layer), start=1):
        # a name may be anything, and must not lead into another folder
        of_class = re.sub(r"[^-\w]+", "_", found.name)
        maps[options.output_dir / f"{name}-{number}-{of_class}.png"] = found
    for path in maps:
        check_replaceable(path, "attention")
    for path, found in maps.items():
        write_picture(path, draw(image, found), "attention", dpi=130)
        tell(f"{found.name} {found.score:.2f}: {path}")
    return 0


if __name__ == "__main__":
    run(main)
