"""Opening files of weights that anybody may have made: nothing in them can run, and no tensor of theirs is used before
it is known to be what it claims.

Files are read with torch's restricted unpickler (``weights_only=True``) or as safetensors. What this process downloads
is the only thing it ever removes.
"""

import argparse
import hashlib
import json
import mmap
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
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
PLAIN = {Tensor, nn.Parameter}
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
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{Path(urlparse(source).path).name}"
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
    if not path.is_file():
        raise InputError(f"{called} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        _check_tensors(content, path.stat().st_size)
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
            if packed:
                raise InputError(f"its part {packed[0]} is compressed, which torch never does")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:
                raise InputError("it holds a bytearray")


def _check_tensors(content: Any, file_size: int) -> None:
    """Checks every tensor of a file, whatever it is for."""
    storages = {}
    for name, tensor in _tensors_in(content):
        if (
            type(tensor) not in PLAIN
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
        ):
            raise InputError(f"tensor {name} must be a plain one on the CPU, got {tensor.layout} on {tensor.device}")
        if _overlaps(tensor):
            raise InputError(f"elements of tensor {name} share memory")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    # an archive may list one part many times
    if sum(storages.values()) > file_size:
        raise InputError(f"its tensors claim {sum(storages.values())} bytes, and it has {file_size}")


def _tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors within lists, tuples, dictionaries and namespaces, and where they are."""
    seen: set[int] = set()
    left = [("", content)]
    while left:
        place, value = left.pop()
        if isinstance(value, Tensor):
            yield place or "alone in the file", value
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))  # a list may contain itself
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            # keys, too, may be anything
            left += [(f"{place}.{key}"[-200:] if isinstance(key, (str, int)) else place, item) for key, item in pairs]


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
