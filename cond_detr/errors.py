"""The exception for errors that a user can correct, in a file, an option or an annotation; and warnings."""

import contextlib
import difflib
import errno
import importlib.util
import sys
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any

# What a message shows of a value: characters of a text, elements of a list, and these inside of it
LONGEST = 200
MOST = 8
SIMPLE = (bool, int, float, str, NoneType)
# Errors of writing, whatever is written
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def say(line: str, write: Callable[..., None] = print) -> None:
    """Prints a line on stderr. If that cannot be done, what the line is about goes on.

    Args:
        line: the line.
        write: takes the line and ``file``, as ``print`` does.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            write(line, file=sys.stderr)
            sys.stderr.flush()


def tell(*lines: str) -> None:
    """Prints lines on stdout. Names in them cannot make a terminal do anything, nor look like lines of their own."""
    print("\n".join(map(printable, lines)), flush=True)


class InputError(ValueError):
    """Bad input from outside.

    The message is one sentence that names the file or argument, what was expected and what was found. The commands
    print it and exit with code 2.
    """


def need(extra: str, *packages: str) -> None:
    """Checks that optional packages are installed.

    Args:
        extra: the extra of this package that installs them.
        packages: import names of the packages.

    Raises:
        InputError: if one of them is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {' and '.join(missing)}: pip install 'cond-detr[{extra}]'")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one is most like, if it is like any."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def printable(text: str) -> str:
    """Text from outside with escapes for what would not be seen, or be obeyed by a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """A value from outside as it stands in a message: in one line, and of bounded length however it is nested."""
    if isinstance(value, (bool, float, NoneType)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if -(2**128) < value < 2**128 else "a number of more than 128 bits"
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else value[:LONGEST] + "...")
    if isinstance(value, dict) and len(value) <= MOST:
        pairs = [*value, *value.values()]
        if all(isinstance(each, SIMPLE) for each in pairs):
            return "{" + ", ".join(f"{shown(name)}: {shown(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)) and len(value) <= MOST and all(isinstance(each, SIMPLE) for each in value):
        text = ", ".join(map(shown, value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    return f"a {type(value).__name__}"


def is_short_of_memory(error: Exception) -> bool:
    """Whether there is not enough memory: torch's own error is a RuntimeError, of the CPU and of a GPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)
