"""``cond-detr report``: writes a self-contained page about a run: settings, curves, classes, images, attention."""

import argparse
import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cond_detr.cli import command_parser, run
from cond_detr.data import open_split
from cond_detr.data.loading import loading_processes
from cond_detr.errors import InputError, tell
from cond_detr.files import replacing
from cond_detr.options import add_running
from cond_detr.paths import is_file
from cond_detr.report.page import GENERATOR, page
from cond_detr.train.run_folder import RunFolder
from cond_detr.weights.options import opened


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr report``."""
    p = command_parser(
        "report",
        __doc__,
        "runs/small",
        "runs/small --dataset-dir DIR --output page.html",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    p.add_argument("--output", type=Path, metavar="FILE", help="page to write (default: report.html in RUN)")
    p.add_argument("--dataset-dir", metavar="DIR", help="data set folder (default: that of the training)")
    add_running(p, ["workers", "device", "threads"])
    return p


def check_page(path: Path) -> None:
    """Checks that there is nothing at ``path``, or an earlier report.

    Raises:
        InputError: if there is anything else.
    """
    if os.path.lexists(path):
        with contextlib.suppress(OSError, ValueError):
            if is_file(path) and GENERATOR in path.read_text(errors="replace"):
                return
        raise InputError(f"{path} is there already, and no report; choose another --output")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr report``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the run folder or the data set cannot be used.
    """
    options = parser().parse_args(argv)
    if is_file(options.run):
        raise InputError(f"{options.run} is a file; give the folder of the run, {options.run.parent}")
    folder = RunFolder(options.run)
    target = options.output or folder.path / "report.html"
    if target.suffix.lower() not in {".html", ".htm"}:
        raise InputError(f"--output must be a page that ends in .html, got {target}")
    check_page(target)
    if target.is_symlink():
        target = Path(os.path.realpath(target))  # it goes on leading to the report
    options.checkpoint = folder.best
    model = opened(options)
    data = model.config.data
    if options.dataset_dir:
        data = replace(data, dataset_dir=options.dataset_dir)
    dataset = open_split(data, "val", model.stride)
    with replacing(target) as file:  # fails now, and not after the evaluation, if it cannot be written
        file.write(
            page(model, dataset, folder, loading_processes(data, options.workers, model.device)).encode(
                errors="backslashreplace"
            )
        )
    tell(f"wrote {target}")
    return 0


if __name__ == "__main__":
    run(main)
