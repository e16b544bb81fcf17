"""``cond-detr convert-data``: writes a data set of any known format in COCO's.

Reads what training reads: COCO's format in several layouts, YOLO's and Pascal VOC's. Images are linked where the file
system can, else copied.
"""

import argparse
import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cond_detr import progress
from cond_detr.cli import command_parser, run, score
from cond_detr.config import DataConfig
from cond_detr.data.description import describe
from cond_detr.data.formats import SPLITS, find_split
from cond_detr.data.formats.coco import write_coco
from cond_detr.data.layouts import FolderLoader, image_files
from cond_detr.errors import InputError, tell
from cond_detr.files import make_folder, new_folder
from cond_detr.paths import is_file


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr convert-data``."""
    p = command_parser("convert-data", __doc__, "DIR COCO", "DIR COCO --val-fraction 0.2")
    p.add_argument("dataset_dir", type=Path, metavar="DIR", help="folder of a data set, in any format that is known")
    p.add_argument("target", type=Path, metavar="COCO", help="new folder for the data set in COCO's format")
    p.add_argument(
        "--val-fraction",
        type=score,
        default=DataConfig.val_fraction,
        metavar="F",
        help="part of the images that is for validation, where DIR does not say which are (default: %(default)s)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr convert-data``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the data set cannot be used, lacks an image, or the target exists.
    """
    options = parser().parse_args(argv)
    with new_folder(options.target) as unfinished:
        said = [convert(options.dataset_dir, split, unfinished, options.val_fraction) for split in SPLITS]
    tell(*said)
    return 0


def convert(dataset_dir: Path, split: str, target: Path, val_fraction: float) -> str:
    """Writes a split; returns a line about it.

    Raises:
        InputError: if the annotations cannot be used, or an image is missing.
    """
    found = find_split(dataset_dir, split, val_fraction)
    annotations = found.annotations()
    load = FolderLoader(found.folder)
    for name in progress.bar(image_files(annotations), f"convert {split}", unit="image", leave=False):
        path = load.path_of(name)
        if not is_file(path):
            raise InputError(f"image {name} is not in {found.folder}")
        place(path, target / split / name)
    make_folder(target / "annotations")
    write_coco(found, annotations, target / "annotations" / f"instances_{split}.json")
    return f"{split}: {describe(annotations)}"


def place(image: Path, target: Path) -> None:
    """Links an image, or copies it where that is not possible."""
    make_folder(target.parent)
    with contextlib.suppress(OSError):
        os.link(image.resolve(), target)
        return
    shutil.copyfile(image, target)


if __name__ == "__main__":
    run(main)
