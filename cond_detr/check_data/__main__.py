"""``cond-detr check-data``: prints statistics and problems of a data set, and draws its images with their boxes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cond_detr.check_data.findings import check_split, compare, contact_sheet, table
from cond_detr.cli import command_parser, positive, run
from cond_detr.data.formats import SPLITS
from cond_detr.errors import InputError, printable, tell
from cond_detr.files import make_folder
from cond_detr.pictures import check_replaceable, write_picture


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr check-data``."""
    p = command_parser(
        "check-data",
        __doc__,
        "DIR",
        "DIR --output-dir sheets --images 24",
    )
    p.add_argument("dataset_dir", type=Path, metavar="DIR", help="folder of a data set, in any format that is known")
    p.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder for train.png and val.png (default: none are drawn)"
    )
    p.add_argument(
        "--images", type=positive, default=16, metavar="N", help="images in each of these (default: %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr check-data``; see :func:`parser` for its arguments.

    Returns:
        The exit code: 0 if nothing is wrong, 1 if there are problems, 2 if a split cannot be used.

    Raises:
        InputError: if neither split can be used.
    """
    options = parser().parse_args(argv)
    if options.output_dir:
        make_folder(options.output_dir)
        for split in SPLITS:
            check_replaceable(options.output_dir / f"{split}.png", "check-data")  # it may be an image of the data
    splits, unusable = [], []
    for split in SPLITS:
        try:
            splits.append(check_split(options.dataset_dir, split))
        except InputError as error:
            unusable.append(str(error))
    if not splits:
        raise InputError(unusable[0])
    print(table(splits))
    problems = [f"{found.split}: {problem}" for found in splits for problem in found.problems]
    problems += unusable or compare(splits)
    lines = [f"note: {found.split}: {each}" for found in splits for each in found.annotations.about_groups]
    lines += [f"problem: {printable(problem)}" for problem in problems] or ["no problems found"]
    print("\n" + "\n".join(lines))
    if options.output_dir:
        for found in splits:
            sheet = contact_sheet(found, options.images)
            write_picture(options.output_dir / f"{found.split}.png", sheet, "check-data")
        tell("", f"wrote {' and '.join(f'{found.split}.png' for found in splits)} to {options.output_dir}")
    return 2 if unusable else 1 if problems else 0


if __name__ == "__main__":
    run(main)
