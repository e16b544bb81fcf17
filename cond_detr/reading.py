"""Opening files of weights that anybody may have made: nothing in them can run, and no tensor of theirs is used before
it is known to be what it claims.

Files are read with torch's restricted unpickler (``weights_only=True``) or as safetensors. What this process downloads
is the only thing it ever removes.
"""

import argparse
import hashlib
import json
import mmap
import os
import struct
import tempfile
import warnings
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import torch
from torch import Tensor, nn

from cond_detr.errors import InputError
from cond_detr.naming import StateDict

FORMAT = "cond_detr/1"
ZIP_MAGIC = b"PK\x03\x04"
# The records at the end of an archive: their signatures first, the directory's offset last or before the comment's size
ZIP_END = struct.Struct("<4s4H2LH")
ZIP64_END = struct.Struct("<4sQ2H2L4Q")
ZIP64_LOCATOR_SIZE = 20
PLAIN = {Tensor, nn.Parameter}
# Of containers within containers; checkpoints have five
MAX_DEPTH = 100
# What a parameter may be stored as; a model computes in float32
REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def open_source(source: str) -> tuple[Path, Any]:
    """What the file of a path or URL holds, and where it is: a download lies in torch's cache from then on.

    Raises:
        InputError: it cannot be downloaded, or as of :func:`read`.
    """
    if not source.startswith(("https://", "http://")):
        return Path(source), read(Path(source))
    # many files have the same name, such as model.safetensors
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    try:
        name = Path(urlparse(source).path).name[-100:]
    except ValueError as error:
        raise InputError(f"weights {source} cannot be downloaded: {error}") from None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{name}"
    if cached.exists():
        return cached, read(cached, f"{cached}, downloaded from {source} before,")
    return cached, _download(source, cached)


def _download(url: str, target: Path) -> Any:
    """What lies at an address. ``target`` appears only once it is whole and can be read."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="unfinished-") as folder:
            own = Path(folder) / target.name
            torch.hub.download_url_to_file(url, str(own))
            content = read(own, f"what was downloaded from {url}")
            own.replace(target)
    except (OSError, HTTPException) as error:
        raise InputError(f"weights {url} cannot be downloaded: {error}") from None
    return content


def read(path: Path, called: str | None = None) -> Any:
    """What a file holds.

    Args:
        path: of the file.
        called: what messages call it.

    Raises:
        InputError: it is missing, damaged, of a newer format or something else, or its tensors are not plain: on the
            CPU, strided, without elements that share memory, and no larger together than the file.
    """
    called = called or f"checkpoint {path}"
    # unlike Path's methods, these are False for what no file can be called
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"{called} {'is a folder' if os.path.isdir(path) else 'does not exist'}")  # noqa: PTH112
    try:
        raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        content = _Plain(path.stat().st_size).of(raw)
    except InputError as error:
        raise InputError(f"{called} cannot be read: {error}") from None
    except OSError as error:
        raise InputError(f"{called} cannot be read: {error.strerror or 'it is cut off'}") from None
    except Exception:  # a damaged file can raise anything, and torch's own words recommend to run what is in it
        raise InputError(f"{called} cannot be read: it is damaged, or no file of tensors alone") from None
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, str) and version.startswith("cond_detr/") and version != FORMAT:
        raise InputError(f"{called} has format {version!r}, and this version reads {FORMAT!r}")
    return content


def _read_torch(path: Path) -> Any:
    _refuse_bombs(path)
    # The authors' files carry their command line beside the tensors
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual pickles
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = {name: json.loads(about[name]) for name in ("format", "config", "classes") if "config" in about}
    return {**described, "model": tensors}


def _refuse_bombs(path: Path) -> None:
    """Refuses what could fill the memory from a small file; torch stores tensors as they are."""
    with path.open("rb") as file:
        if file.read(4) == ZIP_MAGIC:  # what torch goes by
            with zipfile.ZipFile(path) as archive:
                packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if packed:
                raise InputError(f"its part {packed[0]} is compressed, which torch never does")
            # torch goes by the offset that the archive records, Python by where the directory ends
            if _recorded_directory(path) != archive.start_dir:
                raise InputError("its directory is not where the archive says that it is")
            if unpacked > path.stat().st_size:
                raise InputError("its parts claim to be longer than the archive")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:
                raise InputError("it holds a bytearray")


def _recorded_directory(path: Path) -> int:
    """Where the end of an archive says that its directory begins; -1 if that cannot be told."""
    signature, *_, offset, comment = ZIP_END.unpack(_last_bytes(path, ZIP_END.size))
    if signature != b"PK\5\6" or comment:
        return -1
    if offset < 0xFFFFFFFF:
        return int(offset)
    # too large for that field: the record before it, of an archive of more than 4 GB
    size = ZIP64_END.size + ZIP64_LOCATOR_SIZE + ZIP_END.size
    signature, *_, offset = ZIP64_END.unpack(_last_bytes(path, size)[: ZIP64_END.size])
    return int(offset) if signature == b"PK\6\6" else -1


def _last_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-count, os.SEEK_END)
        return file.read(count)


class _Plain:
    """Rebuilds what a file holds out of plain dictionaries, lists and tensors, and checks every tensor on the way.

    The restricted unpickler gives tensors and dictionaries the attributes that a file wants. An attribute with the
    name of a method hides that method, so no method of an object is called before the object is rebuilt.
    """

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.storages: dict[int, int] = {}
        # what was rebuilt by what it was, which is kept so that no other object gets its identity
        self.rebuilt: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any, place: str = "", depth: int = 0) -> Any:
        """The value without attributes of its own; a container that holds itself comes out as one that does."""
        if depth > MAX_DEPTH:
            raise InputError(f"it is nested more than {MAX_DEPTH} times")
        if id(value) in self.rebuilt:
            return self.rebuilt[id(value)][1]
        if isinstance(value, Tensor):
            return self._keep(value, self._tensor(value, place or "alone in the file"))
        if isinstance(value, argparse.Namespace):
            value = object.__getattribute__(value, "__dict__")
        if isinstance(value, dict):
            plain: dict[Any, Any] = self._keep(value, {})
            for key, item in dict.items(value):
                plain[key] = self.of(item, _below(place, key), depth + 1)
            return plain
        if isinstance(value, list):
            items: list[Any] = self._keep(value, [])
            items += [self.of(item, _below(place, i), depth + 1) for i, item in enumerate(list.__iter__(value))]
            return items
        if isinstance(value, tuple):
            return tuple(self.of(item, _below(place, i), depth + 1) for i, item in enumerate(tuple.__iter__(value)))
        return value

    def _keep(self, value: Any, plain: Any) -> Any:
        self.rebuilt[id(value)] = value, plain
        return plain

    def _tensor(self, value: Tensor, place: str) -> Tensor:
        if type(value) not in PLAIN:
            raise InputError(f"tensor {place} must be a plain one, got {type(value).__name__}")
        tensor = Tensor.detach(value)  # a new object: same memory, no attributes
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InputError(f"tensor {place} must be a plain one on the CPU, got {tensor.layout} on {tensor.device}")
        if _overlaps(tensor):
            raise InputError(f"elements of tensor {place} share memory")
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        # an archive may list one part many times
        claimed = sum(self.storages.values())
        if claimed > self.file_size:
            raise InputError(f"its tensors need {claimed} bytes, but it has only {self.file_size}")
        return tensor.resolve_conj().resolve_neg()


def _below(place: str, key: Any) -> str:
    """The name of what a container has under a key, which may be anything."""
    return f"{place}.{key}"[-200:] if type(key) in (str, int) else place


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may lie in one place, as in what ``expand`` gives."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return tensor.numel() > 0
            reach += (size - 1) * stride
    return False


def checked_state(state: Any) -> StateDict:
    """The tensors of a detector in float32, each contiguous.

    Raises:
        InputError: something else is among them, or a number that is not finite.
    """
    if not isinstance(state, dict):
        raise InputError(f"expected tensors by name, got {type(state).__name__}")
    return {name: _checked(name, tensor) for name, tensor in state.items()}


def _checked(name: Any, tensor: Any) -> Tensor:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise InputError(f"expected tensors by name, got {type(tensor).__name__} as {name!r}")
    if name.endswith("num_batches_tracked"):  # a counter of batch norm
        if tensor.dtype != torch.int64:
            raise InputError(f"tensor {name} must hold whole numbers (torch.int64), got {tensor.dtype}")
        return tensor.contiguous()
    if tensor.dtype not in REAL:
        raise InputError(f"tensor {name} must hold floating point numbers, got {tensor.dtype}")
    real = tensor.float().contiguous()
    if not real.isfinite().all():
        raise InputError(f"tensor {name} holds numbers that are not finite")
    return real
