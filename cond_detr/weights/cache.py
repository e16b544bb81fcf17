"""Downloads of weights, kept in torch's cache: complete and checked, or not there."""

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, TypeVar

import torch

from cond_detr.download import fetch, path_at, reason
from cond_detr.errors import InputError
from cond_detr.files import read_text, write_text
from cond_detr.paths import exists

T = TypeVar("T")

AT_ONCE = 1 << 20


def place_of(url: str) -> Path:
    """Where a download is kept; many files have the same name, such as model.safetensors.

    Raises:
        InputError: if there can be no such address.
    """
    try:
        digest = hashlib.sha256(url.encode()).hexdigest()[:12]
        # of bytes, which is what file systems count; the end has the suffix
        name = os.fsencode(path_at(url).name)[-100:].decode(errors="ignore")
    except ValueError as error:
        raise InputError(f"weights {url} cannot be downloaded: {error}") from None
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{name}"


def download(url: str, target: Path, sha256: str, read: Callable[[Path], T]) -> T:
    """Downloads and reads a file; ``target`` appears only when it is complete and could be read.

    What was cut off is kept beside it, if the server says which version it is, and goes on the next time.

    Args:
        url: its address.
        target: where it will be.
        sha256: the first digits of its SHA-256, or nothing.
        read: reads it; what it raises is raised.

    Raises:
        InputError: if it cannot be downloaded, or has another hash.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(target) as (part, file):
            version = part.with_name(f"{part.name}.version")
            with keeping_what_may_go_on(part, version, file):
                known = read_text(version, "version") if exists(version) else None
                fetch(url, file, target.name, version=known, note_version=lambda each: note(version, each))
                file.flush()
            try:
                check_hash(part, sha256, url)
                content = read(part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
                version.unlink(missing_ok=True)
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what no address can be
        raise InputError(f"weights {url} cannot be downloaded: {reason(error)}") from None
    return content


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The file of a download so far, open behind its end; one of its own, if another process is at that one."""
    # read() knows kinds of files by their suffix
    part = target.with_name(f".part-{target.name}")
    # a link there is not ours, and a pipe would wait for its reader
    careful = os.O_NOFOLLOW | os.O_NONBLOCK
    with open(part, "ab", opener=lambda name, flags: os.open(name, flags | careful, 0o666)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever held it may have finished since it was opened
            mine = exists(part) and os.path.samestat(part.stat(), os.fstat(file.fileno()))
        except OSError:
            mine = False
        if mine:
            yield part, file
            return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder:
        own = Path(folder) / target.name
        with own.open("ab") as file:
            yield own, file


@contextlib.contextmanager
def keeping_what_may_go_on(part: Path, version: Path, file: IO[bytes]) -> Iterator[None]:
    """Removes a download so far, if the block fails in another way than by a cut, or nobody knows its version."""
    try:
        yield
    except BaseException as error:
        cut = isinstance(error, (OSError, HTTPException, KeyboardInterrupt, SystemExit))
        with contextlib.suppress(OSError):
            file.flush()
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if not cut or full or not exists(version) or not part.stat().st_size:
            part.unlink(missing_ok=True)
            version.unlink(missing_ok=True)
        raise


def note(path: Path, version: str | None) -> None:
    """Writes down which version a download is of, if that is known."""
    if version is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, version)


def check_hash(path: Path, sha256: str, url: str) -> None:
    """Checks the first digits of a file's SHA-256.

    Raises:
        InputError: if they are others.
    """
    if not sha256:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(AT_ONCE):
            digest.update(part)
    if not digest.hexdigest().startswith(sha256):
        raise InputError(
            f"what was downloaded from {url} is another file: its SHA-256 begins with {digest.hexdigest()[:8]}, "
            f"expected {sha256[:8]}"
        )
