"""``cond-detr replay``: repeats the step of a training whose loss was not finite, and says where that came from.

Takes ``not_finite.pt``, which a training on the CPU leaves, or ``last.pt`` of any: from there steps are repeated as
they were, up to the first with a loss or a gradient that is not finite.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cond_detr.cli import command_parser, positive, run
from cond_detr.config import configure
from cond_detr.errors import tell
from cond_detr.train.replaying import replay
from cond_detr.train.run import Running
from cond_detr.weights.checkpoint import Checkpoint


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr replay``."""
    p = command_parser("replay", __doc__, "runs/mine/not_finite.pt", "runs/mine/last.pt --device cuda --steps 200")
    p.add_argument("file", type=Path, metavar="FILE", help="not_finite.pt or last.pt of a run")
    p.add_argument("--dataset-dir", type=Path, metavar="DIR", help="where the data set is now (default: where it was)")
    p.add_argument("--device", metavar="D", help="device to compute on (default: cuda if there is one, else cpu)")
    p.add_argument("--steps", type=positive, metavar="N", help="at most so many (default: to the end of the epoch)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr replay``; see :func:`parser` for its arguments.

    Returns:
        The exit code: 0 if the cause was found, 1 if everything is finite.

    Raises:
        InputError: if the file or the data set cannot be used.
    """
    options = parser().parse_args(argv)
    running = Running.of({} if options.device is None else {"device": options.device})
    checkpoint = Checkpoint.load(options.file)
    moved = {} if options.dataset_dir is None else {"dataset_dir": options.dataset_dir}
    found = replay(checkpoint, configure(checkpoint.config, moved), running, options.steps)
    tell(*found.lines)
    return 0 if found.cause else 1


if __name__ == "__main__":
    run(main)
