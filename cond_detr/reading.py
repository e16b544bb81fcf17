"""Opening files of weights that anybody may have made: nothing in them can run, and no tensor of theirs is used before
it is known to be what it claims.

Files are read by :mod:`cond_detr.torch_file` or as safetensors. What this process downloads is the only thing it ever
removes.
"""

import hashlib
import json
import os
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import torch
from torch import Tensor

from cond_detr import torch_file
from cond_detr.errors import InputError
from cond_detr.naming import StateDict

FORMAT = "cond_detr/1"
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
        InputError: it is missing, damaged, of a newer format or something else, or its tensors are not plain: strided,
            without elements that share memory, and no larger together than the file.
    """
    called = called or f"checkpoint {path}"
    # unlike Path's methods, these are False for what no file can be called
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"{called} {'is a folder' if os.path.isdir(path) else 'does not exist'}")  # noqa: PTH112
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else torch_file.load(path)
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


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = ("format", "config", "classes") if "config" in about else ()
    described = {name: json.loads(about[name], parse_int=_whole_number) for name in names}
    return {**described, "model": tensors}


def _whole_number(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise InputError("it holds a number of more than 64 bits")
    return number


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
