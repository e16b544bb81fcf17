"""Writing output files, completely or not at all."""

import codecs
import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import socket
import stat
import tempfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cond_detr.errors import FULL, InputError, say, shown
from cond_detr.paths import is_file, is_folder, why_no_file, why_no_folder

# All there are, by number
SYSTEM_ERRORS = frozenset(errno.errorcode)
# How the names of temporary files and folders begin
UNFINISHED = ".unfinished."
# What a lock file says; nothing for a moment, or zeros after a power cut
OWNER = re.compile(r"process \d+ on .*\n|\0*")
LONGEST_OWNER = 300


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces ``path`` when the block ends, so that a reader never sees half a file.

    Args:
        path: file to write, in a folder that exists.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        InputError: if the folder does not exist.
        OSError: if the file cannot be written. The temporary file is removed, and a file at ``path`` is left as it was.
    """
    if not is_folder(path.parent):
        raise InputError(f"{path} cannot be written: folder {path.parent} {why_no_folder(path.parent)}")
    unfinished: Path | None = None
    filled = False
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=".part")
        unfinished = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            filled = True
            file.flush()
            os.fsync(file.fileno())
        unfinished.chmod(0o666 & ~_umask())  # as open() does; mkstemp's files are their owner's alone
        unfinished.replace(path)
    except BaseException as error:
        if unfinished:
            unfinished.unlink(missing_ok=True)
        cause = _failed_write(error, SYSTEM_ERRORS if filled else FULL)
        if cause:
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise


def _failed_write(error: BaseException | None, unnamed: Container[int]) -> OSError | None:
    """The system's error of writing the temporary file, if one is that or comes from it.

    Torch's writer of archives raises its own on top of it. What a block does with other files mostly has their names.

    Args:
        error: any.
        unnamed: numbers of errors that are of the temporary file if they have no file's name.
    """
    while isinstance(error, RuntimeError) and not error.__suppress_context__:
        error = error.__context__
    if not isinstance(error, OSError):
        return None
    ours = error.errno in unnamed if error.filename is None else UNFINISHED in str(error.filename)
    return error if ours and error.errno else None


def _umask() -> int:
    """The umask of the process, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that only one process at a time works in a folder.

    The system releases it when this process ends, however that happens. The file says who holds it.

    Args:
        path: the lock file, which is removed afterwards.

    Raises:
        InputError: if another process holds it, or it is something else, which would be lost.
    """
    file = _lock(path)
    if file is None:
        say(f"warning: {path.parent} is on a file system without locks; run nothing else in it")
        yield
        return
    with file:
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> IO[str] | None:
    """The lock file, open and locked; None if its file system has no locks."""
    while True:
        file = _opened_lock(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = shown(file.read(200).strip())[1:-1] or "another process"
            file.close()
            raise InputError(f"{path.parent} is in use by {owner}") from None
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            return None
        # whoever held it before may have removed it since it was opened
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()


def _opened_lock(path: Path) -> IO[str]:
    """Opens a lock file, or makes one; what somebody else has called so is left alone."""
    try:
        # a link would lead elsewhere, and a pipe have no other end
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            file = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
            if len(text := file.read(LONGEST_OWNER + 1)) <= LONGEST_OWNER and OWNER.fullmatch(text):
                return file
            file.close()
        else:
            os.close(handle)
    raise InputError(f"{path} is no lock of a run, and would be lost; move it away, or choose another folder")


def make_folder(path: Path) -> None:
    """Creates a folder for output, with its parents, unless it exists.

    Raises:
        InputError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: what nothing can be called
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"folder {path} cannot be made: {why}") from None


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes ``path`` when the block ends: complete, or not at all.

    Raises:
        InputError: if there is something at ``path``, or its parent cannot be made.
    """
    if os.path.lexists(path):
        raise InputError(f"{path} exists already; choose a new folder")
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as name:
        unfinished = Path(name) / "folder"
        make_folder(unfinished)
        yield unfinished
        unfinished.rename(path)


def read_bytes(path: Path, called: str) -> bytes:
    """Reads a file of somebody else's; a pipe, which might never end, is refused.

    Args:
        path: the file.
        called: what messages call it, such as "log".

    Raises:
        InputError: if it is missing or no regular file.
    """
    if not is_file(path):
        raise InputError(f"{called} {path} {why_no_file(path)}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{called} {path} cannot be read: {error.strerror}") from None


def read_text(path: Path, called: str) -> str:
    """Reads a text file of somebody else's, as :func:`read_bytes`.

    Raises:
        InputError: if it is missing, no regular file, or not UTF-8.
    """
    content = read_bytes(path, called)
    try:
        text = content.decode("utf-8-sig")  # some editors begin files with a byte order mark
    except ValueError as error:
        raise InputError(f"{called} {path} is no text: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_free(folder: Path, names: Iterable[str], called: str) -> None:
    """Checks that nothing in a folder has one of the names that are to be written there.

    Raises:
        InputError: if something has; ``called`` is what the message calls the folder.
    """
    for name in names:
        if os.path.lexists(folder / name):
            raise InputError(f"{called} {folder} has a {name}, which would be replaced; choose another folder")


# At once, not page by page
MAPPED = mmap.MAP_PRIVATE | mmap.MAP_POPULATE


@contextlib.contextmanager
def mapped(path: Path, called: str) -> Iterator[memoryview]:
    """Maps a file of somebody else's into memory, without a byte order mark, for the length of a block.

    Args:
        path: the file.
        called: what messages call it, such as "annotation file".

    Yields:
        Its bytes, which must not be kept.

    Raises:
        InputError: if it is missing, no regular file, or cannot be read.
    """
    if not is_file(path):
        raise InputError(f"{called} {path} {why_no_file(path)}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # nothing cannot be mapped
            content = mmap.mmap(file.fileno(), 0, flags=MAPPED, prot=mmap.PROT_READ) if size else mmap.mmap(-1, 1)
    except OSError as error:
        raise InputError(f"{called} {path} cannot be read: {error.strerror}") from None
    with content, memoryview(content) as view:
        begin = len(codecs.BOM_UTF8) if content[:3] == codecs.BOM_UTF8 else 0
        with view[begin : size or begin] as text:
            yield text


def read_json(path: Path, called: str) -> Any:
    """Reads a JSON file of somebody else's.

    Args:
        path: the file.
        called: what messages call it, such as "annotation file".

    Raises:
        InputError: if it is missing, no regular file, or not JSON.
    """
    text = read_text(path, called)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{called} {path} is not valid JSON: {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, completely or not at all.

    Raises:
        OSError: if it cannot be written; a file at ``path`` is then left as it was.
    """
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """What :func:`write_json` writes."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace").decode()  # as write_text() does


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, completely or not at all.

    Raises:
        OSError: if it cannot be written; a file at ``path`` is then left as it was.
    """
    with replacing(path) as file:
        # file names may have bytes that are no characters; JSON has an escape for them
        file.write(text.encode("utf-8", errors="backslashreplace"))
