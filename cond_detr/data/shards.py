"""Images in uncompressed tar files, for data sets of more files than a file system likes.

Beside the tar files of an image folder lies an index, which says where in them each image is: 24 bytes an image, which
are mapped into memory, not read. Its entries are sorted by a hash of the name.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cond_detr import progress
from cond_detr.data.images import IMAGE_SUFFIXES
from cond_detr.errors import InputError, shown
from cond_detr.files import read_json, replacing, write_json
from cond_detr.paths import exists, is_file, why_no_file

INDEX, SHARDS = "index.npy", "shards.json"
# Bytes of a NumPy file before its numbers, at least; and how a list of shards begins
SHORTEST_HEADER = 128
LIST = b'{"shards":'
# Bytes of an image, that 32 bits can hold
LARGEST = 2**32
ENTRY = np.dtype([("name", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("shard", "<u4")])


def key_of(name: str) -> int:
    """The hash of a file name by which the index is sorted; the same for "a.jpg" and "./a.jpg"."""
    raw = PurePosixPath(name).as_posix().encode("utf-8", errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Shards:
    """The tar files of an image folder.

    Attributes:
        folder: the folder.
        names: file names of the shards, in the order in which the index counts them.
        index: (N,) entries of dtype :data:`ENTRY`, sorted by name.
    """

    folder: Path
    names: tuple[str, ...]
    index: NDArray[Any]

    @classmethod
    def open(cls, folder: Path) -> "Shards | None":
        """Opens the shards of an image folder; None if it has no index.

        Raises:
            InputError: if the index is damaged or of other shards.
        """
        if not exists(folder / SHARDS) and not exists(folder / INDEX):
            return None
        there = {path.name: path.stat().st_size for path in tar_files(folder)}
        advice = "run cond-detr pack on the data set again"
        shards = read_json(folder / SHARDS, "list of shards")
        if shards != {"shards": there}:
            raise InputError(f"list of shards {folder / SHARDS} is not that of the tar files beside it; {advice}")
        path = folder / INDEX
        if not is_file(path):
            raise InputError(f"index {path} {why_no_file(path)}; {advice}")
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise InputError(f"index {path} cannot be read: {error.strerror}") from None
        except Exception:  # a damaged file can raise anything
            raise InputError(f"index {path} is damaged, or was not written by this program; {advice}") from None
        if not isinstance(index, np.memmap) or index.dtype != ENTRY or index.ndim != 1:
            raise InputError(f"index {path} was not written by this program; {advice}")
        return cls(folder, tuple(there), index)

    def find(self, name: str) -> NDArray[Any] | None:
        """The entry of an image; None if it is in none of the shards."""
        key = np.uint64(key_of(name))
        place = int(np.searchsorted(self.index["name"], key))
        return self.index[place] if place < len(self.index) and self.index["name"][place] == key else None

    def read(self, entry: NDArray[Any]) -> bytes:
        """The bytes of an image.

        Raises:
            InputError: if its shard cannot be read, or is not what the index says.
        """
        number, offset, size = int(entry["shard"]), int(entry["offset"]), int(entry["size"])
        if number >= len(self.names):
            raise InputError(f"index {self.folder / INDEX} is damaged: it names a shard that does not exist")
        path = self.folder / self.names[number]
        try:
            with path.open("rb") as file:
                file.seek(min(offset, path.stat().st_size))
                content = file.read(size)
        except OSError as error:
            raise InputError(f"tar file {path} cannot be read: {error.strerror}") from None
        if len(content) < size:
            raise InputError(f"index {self.folder / INDEX} is damaged: {path.name} is not that long")
        return content

    def without(self, names: Iterable[str]) -> int:
        """The number of images in the shards that are not among the given ones."""
        keys = np.fromiter(map(key_of, names), np.uint64)
        return int((~np.isin(self.index["name"], keys)).sum())


def tar_files(folder: Path) -> list[Path]:
    """The tar files of a folder, in the order of their names, but hidden ones."""
    return sorted(path for path in folder.glob("[!.]*.tar") if is_file(path))


def check_index(folder: Path) -> None:
    """Checks that nothing in a folder has the name of an index, but an earlier index.

    Raises:
        InputError: if something else has.
    """
    for name, is_ours in ((INDEX, _is_index), (SHARDS, _is_list)):
        path = folder / name
        if os.path.lexists(path) and not is_ours(path):
            raise InputError(f"{path} is no index of tar files, and would be replaced; move it away")


def _is_index(path: Path) -> bool:
    """Whether a file is an array of entries, or was cut off before it says of what, or never reached the disk."""
    magic = np.lib.format.MAGIC_PREFIX
    with contextlib.suppress(OSError, ValueError, SyntaxError), path.open("rb") as file:
        begin = file.read(SHORTEST_HEADER)
        if not begin.strip(b"\0"):
            return True
        if len(begin) < SHORTEST_HEADER:
            return begin[: len(magic)] == magic[: len(begin)]
        file.seek(0)
        if np.lib.format.read_magic(file) == (1, 0):
            return np.lib.format.read_array_header_1_0(file)[2] == ENTRY
    return False


def _is_list(path: Path) -> bool:
    """Whether a file is a list of shards, or the beginning of one, or never reached the disk."""
    try:
        content = path.read_bytes().strip(b"\0")
    except OSError:
        return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        begin = b"".join(content[:32].split())
        return begin.startswith(LIST) or LIST.startswith(begin)
    return isinstance(found, dict) and found.keys() == {"shards"} and isinstance(found["shards"], dict)


def write_index(folder: Path) -> int:
    """Writes the index of the tar files in a folder, in place of an earlier one.

    Returns:
        The number of images.

    Raises:
        InputError: if a file is no uncompressed tar file, or damaged, or an image is in them twice, or what would be
            replaced is something else.
        OSError: if the index cannot be written.
    """
    check_index(folder)
    paths = tar_files(folder)
    rows = [
        (key_of(name), offset, size, number)
        for number, path in enumerate(progress.bar(paths, "index", unit="shard", leave=False))
        for name, offset, size in members(path)
    ]
    index = np.sort(np.array(rows, ENTRY), order="name")
    twice = index["name"][1:][index["name"][1:] == index["name"][:-1]]
    if len(twice):
        names = (name for path in paths for name, *_ in members(path) if key_of(name) == twice[0])
        raise InputError(f"image {shown(next(names))} is more than once in the tar files of {folder}")
    with replacing(folder / INDEX) as file:
        np.save(file, index, allow_pickle=False)
    write_json(folder / SHARDS, {"shards": {path.name: path.stat().st_size for path in paths}})
    return len(index)


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, position and length in bytes of each image in a tar file.

    Raises:
        InputError: if it is no uncompressed tar file, is damaged, or holds a link in place of an image.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or all of them are kept
                if PurePosixPath(member.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if not member.isreg() or member.issparse() or member.size >= LARGEST:
                    raise InputError(f"{path} holds image {shown(member.name)} as a link, or as none of this size")
                yield member.name, member.offset_data, member.size
            # a damaged header ends it without a word; the true end is zeros
            with path.open("rb") as file:
                file.seek(tar.offset)
                if any(file.read(tarfile.BLOCKSIZE)):
                    raise InputError(f"{path} is damaged: there is no header at byte {tar.offset}")
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OSError) as error:
        raise InputError(f"{path} is no uncompressed tar file: {error}") from None


def write_shards(folder: Path, images: Iterable[tuple[str, bytes]], megabytes: int) -> int:
    """Packs images into tar files, with their index.

    Args:
        folder: an empty folder for them.
        images: name and content of each.
        megabytes: size of a tar file after which the next begins.

    Returns:
        The number of images.

    Raises:
        OSError: if a file cannot be written.
    """
    waiting = iter(images)
    entry = next(waiting, None)
    number = 0
    while entry:
        with replacing(folder / f"{number:05d}.tar") as file, tarfile.open(fileobj=file, mode="w:") as tar:
            while entry and tar.offset < megabytes << 20:
                name, content = entry
                about = tarfile.TarInfo(name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
                entry = next(waiting, None)
        number += 1
    return write_index(folder)
