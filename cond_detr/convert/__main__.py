"""``cond-detr convert``: converts the weights of a detector from one format to another.

Reads checkpoints of this program, of the authors' repository, of DETR's and of the transformers package.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cond_detr.cli import command_parser, run
from cond_detr.convert.transformers_folder import write_folder
from cond_detr.data.annotation_checks import read_annotations
from cond_detr.data.formats.coco import of_other_splits
from cond_detr.errors import InputError, tell
from cond_detr.files import make_folder
from cond_detr.paths import exists, is_file
from cond_detr.presets import PRESETS
from cond_detr.weights.checkpoint import write_weights
from cond_detr.weights.foreign import open_checkpoint
from cond_detr.weights.naming import from_ours

OURS = "cond-detr"
FORMATS = {
    OURS: "this program's, with settings, class names and ids",
    "original": "the repositories of Conditional DETR and DETR",
    "transformers": "a folder for from_pretrained of the transformers package",
    "transformers-timm": "the same with timm's backbone, as in the published models",
    "torchvision": "the backbone alone",
}
IN_FOLDERS = ("transformers", "transformers-timm")
SUFFIXES = (".pt", ".pth", ".safetensors")


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr convert``."""
    p = command_parser(
        "convert",
        __doc__,
        "model.safetensors best.pt --preset dc5-r50",
        "runs/r50/best.pt folder --to transformers",
        "ConditionalDETR_r50dc5_epoch50.pth best.pt --preset dc5-r50 --classes instances_val2017.json",
    )
    p.add_argument("source", metavar="SOURCE", help="file or URL to read")
    p.add_argument("target", type=Path, metavar="TARGET", help=f"file to write, {', '.join(SUFFIXES)}, or folder")
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    p.add_argument("--to", choices=FORMATS, default=OURS, metavar="FORMAT", help=f"{formats} (default: {OURS})")
    p.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        help="architecture of another program's weights, such as dc5-r50 (default: r50 or r101, whichever fits)",
    )
    p.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="annotation file in COCO format with the names and ids of the classes",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr convert``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the source cannot be used, or has no names in the format.
    """
    options = parser().parse_args(argv)
    in_folder = options.to in IN_FOLDERS
    if in_folder and options.target.suffix in SUFFIXES:
        raise InputError(f"{options.target} should be a folder for format {options.to}, such as {options.target.stem}")
    if not in_folder and options.target.suffix not in SUFFIXES:
        raise InputError(f"{options.target} should end in {', '.join(SUFFIXES)}")
    classes = None
    if options.classes:
        classes = read_annotations(options.classes, others=of_other_splits(options.classes)).classes
    # os.path's functions are False for what no file can be called
    both = is_file(options.source) and exists(options.target)
    if both and options.target.samefile(options.source):
        raise InputError(f"{options.target} is the source as well; choose another file")
    checkpoint = open_checkpoint(options.source, preset_name=options.preset, classes=classes)
    state = checkpoint.average or checkpoint.model
    if in_folder:
        state = from_ours(state, checkpoint.config.model.kind, options.to)
        write_folder(checkpoint, state, options.target, timm=options.to == "transformers-timm")
    elif options.to == OURS:
        make_folder(options.target.parent)
        replace(
            checkpoint, path=options.target, model=state, average=None, progress=None, optimizer=None, queries=None
        ).save()
    else:
        make_folder(options.target.parent)
        state = from_ours(state, checkpoint.config.model.kind, options.to)
        write_weights(state, options.target)
    kind, backbone = checkpoint.config.model.kind, checkpoint.config.model.backbone
    tell(f"{kind} with {backbone}, {len(checkpoint.classes)} classes: {len(state)} tensors to {options.target}")
    return 0


if __name__ == "__main__":
    run(main)
