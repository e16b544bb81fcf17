"""What the commands share, and the ``cond-detr`` script that gathers them."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cond_detr.errors import InputError

COMMANDS = {
    "check-data": "tell what is in a data set and what is wrong with it",
    "train": "train a detector",
    "evaluate": "measure a checkpoint on a data set",
    "predict": "detect objects in images",
    "report": "write a page about a run",
    "attention": "draw where the heads look for a detection",
    "convert": "change the format of a detector's weights",
    "export": "write a detector as ONNX, or for torch without this package's models",
}

# where a command's module has another name
MODULES = {"attention": "attention_maps", "check-data": "check_data"}


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code: 2 and one sentence for bad input, or for what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may have bytes that are no characters
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command(argv)
    except InputError as error:
        code = fail(str(error))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 2
    except OSError as error:
        if error.filename is None:
            raise
        code = fail(f"{error.filename}: {error.strerror}")
    sys.exit(code)


def fail(sentence: str) -> int:
    """Says why, in one line."""
    print("error:", " ".join(sentence.splitlines()), file=sys.stderr)
    return 2


def command_parser(name: str, doc: str, *examples: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        name: of the command.
        doc: its module's docstring, "``how it is called``: what it does".
        examples: what may follow the name, shown below the options.
        options: of the parser.
    """
    what = doc.partition(": ")[2].strip()
    lines = "\n".join(f"  cond-detr {name} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"cond-detr {name}",
        description=what[0].upper() + what[1:],
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def device_argument(name: str) -> torch.device:
    """The device of a ``--device`` option.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise InputError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def add_precision_option(group: argparse._ActionsContainer, default: str) -> None:
    """``--matmul-precision`` of a command."""
    group.add_argument(
        "--matmul-precision",
        choices=("high", "highest"),
        help=f"fp32 matrix products on CUDA: in TF32 (high) or in fp32 (highest) (default: {default})",
    )


def make_folder(path: Path) -> None:
    """Makes a folder for output if it is not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {path} cannot be made: {error.strerror}") from None


def default_workers() -> int:
    """Processes that load images: few cores are better left to the training itself, which they would slow down."""
    return min(4, (os.cpu_count() or 1) // 4)


def positive(text: str) -> int:
    """An option that counts something there must be one of."""
    return int(_bounded(text, int, lambda v: v >= 1, "a whole number of at least 1"))


def natural(text: str) -> int:
    """An option that counts something there may be none of."""
    return int(_bounded(text, int, lambda v: v >= 0, "a whole number of at least 0"))


def positive_or_auto(text: str) -> int | str:
    """A :func:`positive` option that can be found out."""
    return text if text == "auto" else positive(text)


def rate(text: str) -> float:
    """An option such as a learning rate."""
    return _bounded(text, float, lambda v: 0 <= v < float("inf"), "a number of at least 0")


def probability(text: str) -> float:
    """An option in [0, 1)."""
    return _bounded(text, float, lambda v: 0 <= v < 1, "a number of at least 0 and less than 1")


def _bounded(text: str, kind: Callable[[str], float], fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return value


def main() -> None:
    """Entry point of ``cond-detr COMMAND ...``."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        asked_for_help = len(sys.argv) > 1 and sys.argv[1] in {"-h", "--help"}
        lines = [f"  {name:12}{what}" for name, what in COMMANDS.items()]
        usage = "\n".join(["usage: cond-detr COMMAND [options]", *lines, "cond-detr COMMAND --help says more"])
        print(usage, file=sys.stdout if asked_for_help else sys.stderr)
        sys.exit(0 if asked_for_help else 2)
    module = importlib.import_module(f"cond_detr.{MODULES.get(sys.argv[1], sys.argv[1])}")
    run(module.main, sys.argv[2:])
