"""Results of ``python -m cond_detr_kernels.tune``: the fastest implementation, and the kernels' configurations.

The table is in the user's cache folder, one file for each combination of GPU, torch, Triton and version of the kernels.
Without a file the static table of tuning.py applies.
"""

import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cond_detr_kernels.conditional_attention.fallback import BACKENDS
from cond_detr_kernels.conditional_attention.launch import dot_precision
from cond_detr_kernels.conditional_attention.tuning import Blocks, Tuning

KERNELS = "kernels"
# A measurement serves problems whose sizes differ from its own by no more than this, all factors multiplied
NEAR = 8.0


class Situation(NamedTuple):
    """The properties of a call that decide which implementation is the fastest.

    Attributes:
        dtype: dtype of the operands, such as "bfloat16"; for float32 the precision of products, "tf32" or "ieee".
        dims: content, spatial and value dims of a head.
        masked: whether there is a mask.
        dropout: whether there is dropout.
        training: whether gradients are needed.
        sizes: batch, heads, queries, keys.
    """

    dtype: str
    dims: tuple[int, int, int]
    masked: bool
    dropout: bool
    training: bool
    sizes: tuple[int, int, int, int]

    def distance(self, other: "Situation") -> float:
        """Logarithm of the product of the factors between the sizes; infinite if anything else differs."""
        if self[:-1] != other[:-1]:
            return math.inf
        return sum(abs(math.log(a / b)) for a, b in zip(self._work(), other._work(), strict=True))

    def _work(self) -> tuple[int, int, int]:
        batch, heads, queries, keys = self.sizes
        return max(batch * heads, 1), max(queries, 1), max(keys, 1)


def situation_of(
    q_content: Tensor, q_spatial: Tensor, value: Tensor, *, masked: bool, dropout_p: float, training: bool
) -> Situation:
    """The situation of a call.

    Args:
        q_content: (B, H, N, Dc).
        q_spatial: (B, H, N, Ds).
        value: (B, H, S, Dv).
        masked: whether there is a mask.
        dropout_p: probability of dropout.
        training: whether gradients are needed.
    """
    precision = dot_precision(value.dtype)
    dtype = precision if value.dtype == torch.float32 else str(value.dtype).removeprefix("torch.")
    dims = q_content.shape[3], q_spatial.shape[3], value.shape[3]
    return Situation(dtype, dims, masked, dropout_p > 0, training, (*q_content.shape[:3], value.shape[2]))


@dataclass(frozen=True)
class Measured:
    """Result of the measurements in a situation.

    Attributes:
        situation: the situation.
        path: the fastest implementation: "kernels", or a backend of PyTorch's attention.
        tuning: the kernels' fastest configurations; None if none ran.
        microseconds: time of each implementation, backward included in training.
    """

    situation: Situation
    path: str
    tuning: Tuning | None
    microseconds: dict[str, float]


@dataclass(frozen=True, eq=False)  # a key of caches
class Table:
    """All measurements on a GPU.

    Attributes:
        rows: the measured situations.
    """

    rows: tuple[Measured, ...]

    def find(self, situation: Situation) -> Measured | None:
        """The row with the most similar sizes; None unless they differ by less than :data:`NEAR`."""
        best = min(self.rows, key=lambda row: row.situation.distance(situation), default=None)
        if best is None or best.situation.distance(situation) > math.log(NEAR):
            return None
        return best


def device_name(device: torch.device) -> str:
    """Name of a device, such as "NVIDIA H100 80GB HBM3"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def table_path(device: torch.device) -> Path:
    """Path of a GPU's table, for the installed versions of torch, Triton and the kernels."""
    identity = "\n".join([device_name(device), torch.__version__, _version("triton"), _sources()])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cond_detr_kernels"
    return folder / f"tuning-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@functools.cache
def _sources() -> str:
    """Digest of the kernels' source code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_table(path: Path, rows: Sequence[Measured], **about: Any) -> None:
    """Writes a table, completely or not at all.

    Args:
        path: the file.
        rows: the measurements.
        about: further entries of the file, for people.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).replace(path)


def read_table(path: Path) -> Table | None:
    """Reads a table; None if the file is missing or is not a table."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return Table(tuple(map(_row, rows)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _row(values: dict[str, Any]) -> Measured:
    dtype, dims, masked, dropout, training, sizes = values["situation"]
    batch, heads, queries, keys = map(int, sizes)
    content, spatial, value = map(int, dims)
    flags = bool(masked), bool(dropout), bool(training)
    situation = Situation(str(dtype), (content, spatial, value), *flags, (batch, heads, queries, keys))
    tuning = values["tuning"]
    if tuning is not None:
        names = ("forward", "backward_queries", "backward_keys", "backward")
        blocks = {name: _blocks(tuning[name]) for name in names}
        splits = None if tuning["splits"] is None else max(1, int(tuning["splits"]))
        tuning = Tuning(**blocks, one_pass=bool(tuning["one_pass"]), splits=splits)
    path = str(values["path"])
    if path != KERNELS and path not in BACKENDS:
        raise ValueError(f"no path: {path}")
    microseconds = {str(name): float(us) for name, us in values["microseconds"].items()}
    return Measured(situation, path, tuning, microseconds)


def _blocks(values: Sequence[int]) -> Blocks:
    blocks = Blocks(*map(int, values))
    sizes = all(size in (16, 32, 64, 128) for size in blocks[:2])
    if not sizes or blocks.warps not in (1, 2, 4, 8, 16) or not 1 <= blocks.stages <= 8:
        raise ValueError(f"no configuration: {values}")
    return blocks


@functools.cache
def table_of(index: int) -> Table | None:
    """The table of a CUDA device by its index, read once; None if nothing was measured."""
    return read_table(table_path(torch.device("cuda", index)))


def find(device: torch.device, situation: Situation) -> Measured | None:
    """The measurement on a device for the most similar situation; None if there is none that is similar enough."""
    table = table_of(device.index or 0) if device.type == "cuda" else None
    return _find(table, situation) if table else None


@functools.lru_cache(maxsize=1024)
def _find(table: Table, situation: Situation) -> Measured | None:
    return table.find(situation)
