"""What lies at a path. Unlike Path's methods, these take what no file can be called, such as too long a name."""

import os
from pathlib import Path
from typing import Any

from cond_detr.errors import InputError, shown


def as_path(value: Any) -> Path:
    """The path that an argument ``path`` is.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"path must be a path or text, got {shown(value)}")
    return Path(value)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is anything, or a link leads to it."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file: no folder, and no pipe, which would wait for its writer."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def why_no_file(path: Path) -> str:
    """Why a path is no regular file, for messages."""
    if is_folder(path):
        return "is a folder"
    return "is no regular file" if exists(path) else "does not exist"


def why_no_folder(path: Path) -> str:
    """Why a path is no folder, for messages."""
    if is_file(path):
        return "is a file"
    return "is no folder" if exists(path) else "does not exist"
