"""Reading files of weights from untrusted sources: no code in them is run, and every tensor is checked before use.

Files are read by :mod:`cond_detr.weights.torch_file` or as safetensors. The only files ever removed are downloads of
this process.
"""

import errno
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from cond_detr.download import is_address
from cond_detr.errors import InputError, shown
from cond_detr.paths import exists, is_file, why_no_file
from cond_detr.weights import torch_file
from cond_detr.weights.cache import download, place_of
from cond_detr.weights.naming import StateDict
from cond_detr.weights.published import from_the_hub, is_on_the_hub, meant, published
from cond_detr.weights.storages import MOST_AXES, kind_of

FORMAT = "cond_detr/1"
# Types that parameters may be stored in; they are converted to float32
REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def open_source(source: str) -> tuple[Path, Any]:
    """Reads the file of a path, URL or published name; downloads are kept in torch's cache, or the hub's.

    Args:
        source: path, URL, name of :data:`~cond_detr.weights.published.PUBLISHED`, or ``namespace/name`` of the hub.

    Returns:
        The path of the file, and its content as of :func:`read`.

    Raises:
        InputError: if it cannot be downloaded or read.
    """
    known = published(source)
    if known is None and is_on_the_hub(source):
        path = from_the_hub(source)
        return path, read(path, f"{path}, downloaded from {source},")
    if known is None and not is_address(source):
        return Path(source), read(Path(source))
    url, sha256 = (known.address, known.sha256) if known else (source, "")
    if not url.startswith(("https://", "http://")):
        raise InputError(f"weights {url} cannot be downloaded: an address must begin with https://")
    cached = place_of(url)
    if exists(cached):
        return cached, read(cached, f"{cached}, downloaded from {url} before,")
    return cached, download(url, cached, sha256, lambda path: read(path, f"what was downloaded from {url}"))


def read(path: Path, called: str | None = None) -> Any:
    """Reads a file of weights.

    Args:
        path: the file.
        called: its name in messages; by default "checkpoint" and the path.

    Returns:
        The content: for .safetensors a dictionary with the tensors as "model", else what was saved.

    Raises:
        InputError: if it is missing, damaged, of a newer format or not a file of tensors, or if its tensors share
            memory or would be larger than the file.
    """
    called = called or f"checkpoint {path}"
    # unlike Path's methods, these are False for what no file can be called
    if not is_file(path):
        best = path / "best.pt"
        if is_file(best):
            raise InputError(f"{called} is a folder; its best model is {best}")
        name = meant(str(path))
        raise InputError(f"{called} {why_no_file(path)}" + f"; did you mean the published {name}?" * bool(name))
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else torch_file.load(path)
    except InputError as error:
        raise InputError(f"{called} cannot be read: {error}") from None
    except OSError as error:
        # an offset in it leads to before its beginning
        why = "it is damaged" if error.errno == errno.EINVAL else error.strerror or "it is cut off"
        raise InputError(f"{called} cannot be read: {why}") from None
    except Exception:  # a damaged file can raise anything, and torch's own words recommend to run what is in it
        raise InputError(f"{called} cannot be read: it is damaged, or no file of tensors alone") from None
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, str) and version.startswith("cond_detr/") and version != FORMAT:
        raise InputError(f"{called} has format {shown(version)}, and this version reads {FORMAT!r}")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = ["format", "config", "classes", *(["trained"] if "trained" in about else [])] if "config" in about else []
    described = {name: json.loads(about[name], parse_int=_whole_number) for name in names}
    return {**described, "model": tensors}


def _whole_number(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise InputError("it holds a number of more than 64 bits")
    return number


def checked_state(state: Any) -> StateDict:
    """Checks the tensors of a detector, and makes them float32 and contiguous.

    Args:
        state: tensors by name.

    Raises:
        InputError: if it is not a dictionary of floating point tensors by name, or a number in them is not finite.
    """
    if not isinstance(state, dict):
        raise InputError(f"expected tensors by name, got {kind_of(state)}")
    checked: dict[tuple[int, str], Tensor] = {}  # a tensor of several names stays one
    roles = {name: _role(name) for name in state if isinstance(name, str)}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"expected tensors by name, got {kind_of(tensor)} as {shown(name)}")
        key = id(tensor), roles[name]
        if key not in checked:
            checked[key] = _checked(name, tensor)
    return {name: checked[id(tensor), roles[name]] for name, tensor in state.items()}


def _role(name: str) -> str:
    """What is special about a tensor of that name: "num_batches_tracked", "running_var" or nothing."""
    last = name.rpartition(".")[2]
    return last if last in {"num_batches_tracked", "running_var"} else ""


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.dim() > MOST_AXES:
        raise InputError(f"tensor {shown(name)} has {tensor.dim()} axes, as none of a detector has")
    if _role(name) == "num_batches_tracked":  # a counter of batch norm
        if tensor.dtype != torch.int64:
            raise InputError(f"tensor {shown(name)[1:-1]} must hold whole numbers (torch.int64), got {tensor.dtype}")
        return tensor.contiguous()
    if tensor.dtype not in REAL:
        raise InputError(f"tensor {shown(name)[1:-1]} must hold floating point numbers, got {tensor.dtype}")
    real = tensor.float().contiguous()
    if not real.isfinite().all():
        raise InputError(f"tensor {shown(name)[1:-1]} holds numbers that are not finite")
    if _role(name) == "running_var" and (real < 0).any():
        raise InputError(f"tensor {shown(name)[1:-1]} holds variances below 0")
    return real
