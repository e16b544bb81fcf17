"""Writing output files, completely or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cond_detr.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces ``path`` when the block ends, so that a reader never sees half a file.

    Args:
        path: file to write, in a folder that exists.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        OSError: if it cannot be written. The temporary file is removed, and a file at ``path`` is left as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.chmod(0o666 & ~_umask())  # as open() does; mkstemp's files are their owner's alone
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _umask() -> int:
    """The umask of the process, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def make_folder(path: Path) -> None:
    """Creates a folder for output, with its parents, unless it exists.

    Raises:
        InputError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {path} cannot be made: {error.strerror}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, completely or not at all.

    Raises:
        OSError: if it cannot be written; a file at ``path`` is then left as it was.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, completely or not at all.

    Raises:
        OSError: if it cannot be written; a file at ``path`` is then left as it was.
    """
    with replacing(path) as file:
        # file names may have bytes that are no characters; JSON has an escape for them
        file.write(text.encode("utf-8", errors="backslashreplace"))
