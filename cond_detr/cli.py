"""Code that the commands share, and the ``cond-detr`` script, which lists and starts them.

Modules that take long to import are not imported here, so that ``cond-detr --help`` prints at once.
"""

import argparse
import contextlib
import importlib
import io
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from cond_detr.config import Config, RunConfig
from cond_detr.errors import FULL, InputError, is_short_of_memory, nearest, printable, say, shown
from cond_detr.progress import quietly
from cond_detr.settings import all_settings, declared
from cond_detr.version import __version__

COMMANDS = {
    "check-data": "print statistics and problems of a data set",
    "convert-data": "write a data set of any known format in COCO's",
    "pack": "pack the images of a data set into tar files",
    "train": "train a detector",
    "evaluate": "compute COCO metrics of a checkpoint",
    "predict": "detect objects in images and videos",
    "report": "write a page about a run",
    "attention": "draw attention maps of detections",
    "replay": "repeat a training's step whose loss was not finite",
    "convert": "convert a detector's weights from one format to another",
    "export": "export a detector to ONNX or to a torch program",
}

# Where a command's package has another name
PACKAGES = {"attention": "attention_maps", "check-data": "check_data", "convert-data": "convert_data"}


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code; for bad input and failed writes, prints one line and exits with 2.

    Args:
        command: the command's ``main``.
        argv: its arguments; ``sys.argv[1:]`` if None.
    """
    _open_standard_streams()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may have bytes that are no characters
            stream.reconfigure(errors="backslashreplace")
    try:
        with ended_by_sigterm():
            code = _flushed(command, argv)
    except InputError as error:
        code = fail(str(error))
    except KeyboardInterrupt:
        say("interrupted")
        code = 130
    except BrokenPipeError:  # whoever read the output has seen enough
        drop_output()
        code = 2
    except (MemoryError, RuntimeError) as error:
        if not is_short_of_memory(error):
            raise
        code = fail("there is not enough memory for that")
    except OSError as error:
        code = _unwritten(error)
    sys.exit(code)


def _unwritten(error: OSError) -> int:
    """Says what could not be written, or raises what is no such error; returns the exit code."""
    if error.filename is None:  # files are written under their names: it is what was printed
        if error.errno not in FULL:
            raise error
        drop_output()
    return fail(f"{error.filename or 'the output'}: {error.strerror}")


def drop_output() -> None:
    """Lets what was printed and cannot be written go nowhere, or Python would try once more when it ends."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM, which schedulers send, end a block like an error, so that what it has begun is cleared away."""

    def end(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    # whoever has a handler knows better; and only the main thread may have one
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flushed(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """Runs a command, and writes all it has printed, so that an error in that is noticed here."""
    try:
        given = sys.argv[1:] if argv is None else argv
        with quietly() if {"-q", "--quiet"} & set(given) else contextlib.nullcontext():
            return command(argv)
    finally:
        sys.stdout.flush()


def _open_standard_streams() -> None:
    """Opens those that a service may not have, or a file that is opened would take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the first number that is free


def fail(sentence: str) -> int:
    """Prints an error message as one line on stderr; returns the exit code 2."""
    say(f"error: {in_options(printable(' '.join(sentence.splitlines())))}")
    return 2


def in_options(sentence: str) -> str:
    """Replaces the settings named in a message, such as `batch_size`, by their options, such as --batch-size."""
    options = {name: each.option for name, each in (all_settings(Config) | declared(RunConfig)).items()}
    options |= {name: f"--{name}" for name in ("resume", "weights", "config", "preset", "layer")}
    return re.sub(r"(?<!\w)`(\w+)`(?!\w)", lambda found: options.get(found[1], found[0]), sentence)


class CommandParser(argparse.ArgumentParser):
    """Names the option that was meant where one does not exist."""

    def error(self, message: str) -> NoReturn:
        """Prints a message and exits with 2."""
        unknown = message.partition("unrecognized arguments: ")[2].split()
        known = [option for action in self._actions for option in action.option_strings]
        meant = [nearest(option.partition("=")[0].replace("_", "-"), known) for option in unknown if option[0] == "-"]
        hints = [option for option in meant if option]
        super().error(message + (f"; did you mean {', '.join(hints)}?" if hints else ""))


def command_parser(name: str, doc: str, *examples: str, **options: Any) -> argparse.ArgumentParser:
    """Makes the argument parser of a command.

    Args:
        name: name of the command.
        doc: docstring of its module, "``cond-detr name``: what it does".
        examples: arguments for example calls, listed below the options.
        options: further arguments of ``ArgumentParser``.
    """
    what = doc.partition(": ")[2].strip()
    lines = "\n".join(f"  cond-detr {name} {example}" for example in examples)
    parser = CommandParser(
        prog=f"cond-detr {name}",
        description=what[0].upper() + what[1:],
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    parser.add_argument("-q", "--quiet", action=Noted, help="print errors alone, and show no progress")
    return parser


class Noted(argparse.Action):
    """An option without a value that :func:`run` has seen already."""

    def __init__(self, option_strings: Sequence[str], **about: Any) -> None:
        about |= {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0}
        super().__init__(option_strings, **about)

    def __call__(self, *_: Any) -> None:
        """Does nothing."""


def positive(text: str) -> int:
    """Parses an option that is a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: if it is not.
    """
    return int(_bounded(text, int, lambda v: v >= 1, "a whole number of at least 1"))


def natural(text: str) -> int:
    """Parses an option that is a whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: if it is not.
    """
    return int(_bounded(text, int, lambda v: v >= 0, "a whole number of at least 0"))


def whole(text: str) -> int:
    """Parses an option that is a whole number, also below 0.

    Raises:
        argparse.ArgumentTypeError: if it is not.
    """
    return int(_bounded(text, int, math.isfinite, "a whole number"))


def score(text: str) -> float:
    """Parses an option that is a number in [0, 1].

    Raises:
        argparse.ArgumentTypeError: if it is not.
    """
    return _bounded(text, float, lambda v: 0 <= v <= 1, "a number from 0 to 1")


def overlap(text: str) -> float:
    """Parses an option that is the share of their side by which neighbours overlap.

    Raises:
        argparse.ArgumentTypeError: if it is not a number in [0, 0.9].
    """
    return _bounded(text, float, lambda v: 0 <= v <= 0.9, "a number from 0 to 0.9")


def _bounded(text: str, kind: Callable[[str], float], fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return value


def main() -> None:
    """Entry point of the ``cond-detr`` script: starts the command that the first argument names, or lists them all."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked in COMMANDS:
        run(lambda given: _module(asked).main(given), sys.argv[2:])
    run(lambda _: _answer(asked))


def _module(command: str) -> Any:
    """A command's module, which takes seconds to import: whoever interrupts that, interrupts the command."""
    return importlib.import_module(f"cond_detr.{PACKAGES.get(command, command)}.__main__")


def _answer(asked: str) -> int:
    """Answers what is no command: its help, its version, or what was meant. Returns the exit code."""
    if asked == "--version":
        print(f"cond-detr {__version__}")
        return 0
    if asked == "--completion":
        print(importlib.import_module("cond_detr.completion").script(" ".join(sys.argv[2:])), end="")
        return 0
    if asked and not asked.startswith("-"):
        meant = nearest(asked.replace("_", "-"), COMMANDS)
        known = f"did you mean {meant}?" if meant else f"there are {', '.join(COMMANDS)}"
        return fail(f"unknown command {shown(asked)}; {known}")
    if asked and asked not in {"-h", "--help"}:
        meant = nearest(asked, ("--help", "--version", "--completion"))
        return fail(f"unknown option {shown(asked)}; {f'did you mean {meant}?' if meant else 'see cond-detr --help'}")
    lines = [f"  {name:13}{what}" for name, what in COMMANDS.items()]
    usage = "\n".join(["usage: cond-detr COMMAND [options]", *lines, "cond-detr COMMAND --help says more"])
    usage += "; cond-detr --completion bash, zsh or fish completes in the shell"
    helped = asked in {"-h", "--help"}
    print(usage, file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2
