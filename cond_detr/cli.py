"""What the commands share, and the ``cond-detr`` script that gathers them."""

import importlib
import sys
from collections.abc import Callable, Sequence

import torch

from cond_detr.errors import InputError

COMMANDS = {
    "train": "train a detector",
    "evaluate": "measure a checkpoint on a data set",
    "predict": "detect objects in images",
}


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code: 2 and one sentence for bad input."""
    try:
        code = command(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def device_argument(name: str) -> torch.device:
    """The device of a ``--device`` option.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def main() -> None:
    """Entry point of ``cond-detr COMMAND ...``."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        asked_for_help = len(sys.argv) > 1 and sys.argv[1] in {"-h", "--help"}
        lines = [f"  {name:10}{what}" for name, what in COMMANDS.items()]
        usage = "\n".join(["usage: cond-detr COMMAND [options]", *lines, "cond-detr COMMAND --help says more"])
        print(usage, file=sys.stdout if asked_for_help else sys.stderr)
        sys.exit(0 if asked_for_help else 2)
    module = importlib.import_module(f"cond_detr.{sys.argv[1]}")
    run(module.main, sys.argv[2:])
