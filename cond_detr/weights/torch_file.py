"""Reads files of ``torch.save`` without running any code in them, and without torch's unpickler.

Even restricted by ``weights_only=True``, torch's own loader lets a file call functions that allocate memory without
limit, give tensors attributes that hide their methods, and move a storage that another tensor still points to. This
loader knows a short list of names. Any other object in a file becomes an :class:`~cond_detr.weights.storages.Unknown`,
which does nothing, so that it does not matter what is stored beside the weights. Tensors are made from bytes of the
file only (:mod:`cond_detr.weights.storages`), and what a file asks for is counted, so that a small file cannot keep
the reader busy.

Both formats are read: the zip archives of torch 1.6 and later, and the older one.
"""

import zipfile
from pathlib import Path
from typing import IO, Any

from cond_detr.errors import InputError
from cond_detr.weights.storages import Storages, bytes_of
from cond_detr.weights.unpickler import Unpickler

ZIP_MAGIC = b"PK\x03\x04"
# The older format begins with a pickled magic number and the pickled version of the format
OLDER_MAGIC, OLDER_VERSION = 0x1950A86A20F9469CFC6C, 1001
READ_AT_ONCE = 1 << 24


def load(path: Path) -> Any:
    """Reads a file: dictionaries, lists, tuples, strings, numbers, tensors on the CPU, and ``Unknown``.

    Args:
        path: the file.

    Raises:
        InputError: if the file is not of torch's format, part of it is compressed, a tensor is invalid, or it asks for
            more than files of tensors do.
        Exception: of any type, if the file is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(ZIP_MAGIC))
        file.seek(0)
        if magic == ZIP_MAGIC:
            with zipfile.ZipFile(file) as archive:
                return _load_archive(archive, size)
        return _load_older(file, size)


def _load_archive(archive: zipfile.ZipFile, size: int) -> Any:
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"its part {entry.filename} is compressed, which torch never does")
        if entry.CRC == 0:  # torch was told to write none; without one nothing is compared
            del entry.CRC
    (main,) = (name for name in archive.namelist() if name.count("/") <= 1 and name.endswith("data.pkl"))
    root = main.removesuffix("data.pkl")
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
        raise InputError("its numbers are big-endian")

    def fill(key: str, buffer: memoryview) -> None:
        part = archive.getinfo(f"{root}data/{key}")
        if part.file_size != len(buffer):
            raise InputError(f"its part {part.filename} has {part.file_size} bytes, expected {len(buffer)}")
        with archive.open(part) as stream:
            _read_whole(stream, buffer)

    with archive.open(main) as stream:
        return Unpickler(stream, Storages(size, fill)).load()


def _load_older(file: IO[bytes], size: int) -> Any:
    storages = Storages(size, lambda _key, _buffer: None)  # their bytes follow below
    try:
        begins = [Unpickler(file, storages).load() for _ in range(2)]
    except Exception:  # anything, of what is no pickle
        begins = []
    if begins != [OLDER_MAGIC, OLDER_VERSION]:
        raise InputError("it is no file of torch's")
    Unpickler(file, storages).load()  # about the machine that wrote it
    content = Unpickler(file, storages).load()
    keys = Unpickler(file, storages).load()
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise InputError("its tensors do not use the parts that it lists")
    if set(keys) != set(storages.by_key) or len(keys) != len(storages.by_key):
        raise InputError("its tensors do not use the parts that it lists")
    for key in keys:
        dtype, data = storages.by_key[key]
        if int.from_bytes(file.read(8), "little") * dtype.itemsize != len(data):
            raise InputError(f"its part {key} has another length than its tensors say")
        _read_whole(file, bytes_of(data))
    return content


def _read_whole(stream: IO[bytes], buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done : done + READ_AT_ONCE])  # type: ignore[attr-defined]
        if not count:
            raise OSError("it is cut off")
        done += count
