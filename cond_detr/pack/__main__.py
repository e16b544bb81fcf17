"""``cond-detr pack``: packs the images of a data set into uncompressed tar files, or indexes tar files that are there.

A hundred million images are then a few thousand files. Everything else stays as it is: order, augmentation and results
are the same to the last bit.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cond_detr import progress
from cond_detr.cli import command_parser, positive, run
from cond_detr.config import DataConfig
from cond_detr.data.formats import SPLITS, find_split
from cond_detr.data.formats.coco import write_coco
from cond_detr.data.layouts import FolderLoader, image_files
from cond_detr.data.shards import Shards, tar_files, write_index, write_shards
from cond_detr.errors import InputError, tell
from cond_detr.files import make_folder, new_folder


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr pack``."""
    p = command_parser("pack", __doc__, "DIR PACKED", "DIR PACKED --megabytes 4000", "PACKED")
    p.add_argument("dataset_dir", type=Path, metavar="DIR", help="folder of a data set, in any format that is known")
    p.add_argument(
        "target",
        type=Path,
        nargs="?",
        metavar="PACKED",
        help="new folder for the packed data set (default: none, the tar files in the image folders of DIR get an "
        "index)",
    )
    p.add_argument(
        "--megabytes", type=positive, default=1000, metavar="N", help="size of the tar files (default: %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr pack``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the data set cannot be used, lacks an image, or the target exists.
    """
    options = parser().parse_args(argv)
    if options.target is None:
        index(options.dataset_dir)
        return 0
    with new_folder(options.target) as unfinished:
        said = [pack(options.dataset_dir, split, unfinished, options.megabytes) for split in SPLITS]
    tell(*said)
    return 0


def pack(dataset_dir: Path, split: str, target: Path, megabytes: int) -> str:
    """Packs a split of a data set; returns a line about it.

    Raises:
        InputError: if the annotations cannot be used, or an image is missing or cannot be read.
    """
    found = find_split(dataset_dir, split, DataConfig.val_fraction)
    folder = found.folder
    load = FolderLoader(folder, shards=Shards.open(folder))
    annotations = found.annotations()
    names = image_files(annotations)
    for name in names:  # before the first is read
        if not load.holds(name):
            raise InputError(f"image {name} is not in {folder}")
    make_folder(target / split)
    make_folder(target / "annotations")
    bar = progress.bar(names, f"pack {split}", unit="image", leave=False)
    count = write_shards(target / split, ((name, load.bytes_of(name)) for name in bar), megabytes)
    write_coco(found, annotations, target / "annotations" / f"instances_{split}.json")
    return f"{split}: {counted(count, tar_files(target / split))}"


def counted(images: int, shards: Sequence[Path]) -> str:
    """How many images are in how many tar files."""
    return f"{images} images in {len(shards)} tar file{'s' if len(shards) != 1 else ''}"


def index(dataset_dir: Path) -> None:
    """Writes the index of the tar files in each image folder of a data set.

    Raises:
        InputError: if there are none.
    """
    splits = (find_split(dataset_dir, split, DataConfig.val_fraction) for split in SPLITS)
    folders = [found.folder for found in splits if tar_files(found.folder)]
    if not folders:
        raise InputError(f"the image folders of {dataset_dir} hold no tar files; name a folder to pack the images into")
    for folder in folders:
        tell(f"{folder}: {counted(write_index(folder), tar_files(folder))}")


if __name__ == "__main__":
    run(main)
