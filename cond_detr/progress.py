"""Progress bars, of which a terminal shows one for everything that takes long."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

_quiet = False


def bar(*arguments: Any, shown: bool = True, **settings: Any) -> Any:
    """A bar of tqdm with these arguments; it is not shown in quiet, or where there is no terminal."""
    from tqdm import tqdm  # takes as long as all else that --help needs

    # services may have no stderr
    hidden = _quiet or not shown or sys.stderr is None
    return tqdm(*arguments, **settings, disable=True if hidden else None)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Neither bars nor what is printed are shown while the block runs; errors are."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        with open(os.devnull, "w", errors="backslashreplace") as nothing, contextlib.redirect_stdout(nothing):  # noqa: PTH123
            yield
    finally:
        _quiet = before
