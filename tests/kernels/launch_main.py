"""Launches attention kernels through Triton's own launcher and a stub of the CUDA driver, and writes what arrived.

Run by test_launcher.py in processes of its own, because Triton decides once per process whether it interprets kernels::

    python -m tests.kernels.launch_main ARCHITECTURE RESULT CASE...
"""

import ctypes
import json
import re
import struct
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from cond_detr_kernels.conditional_attention.backward import backward_launches
from cond_detr_kernels.conditional_attention.forward import forward_launches
from cond_detr_kernels.conditional_attention.launch import Launch
from cond_detr_kernels.conditional_attention.masking import prepare_launch
from cond_detr_kernels.conditional_attention.problem import LOG2_E, Problem
from cond_detr_kernels.conditional_attention.tuning import SHARED_MEMORY, tuning_for

STREAM = 0x5EED
MAX_PARAMETERS = 256
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


class Case(NamedTuple):
    batch: int = 8
    heads: int = 8
    queries: int = 300
    keys: int = 1050
    dims: tuple[int, int, int] = (32, 32, 32)
    dtype: str = "bf16"  # tf32 and ieee are fp32 with one or the other precision of products
    masked: bool = False
    dropout: float = 0.0
    layout: str = "all heads of a row"


CASES = {
    "paper": Case(),
    "paper, masked, dropout": Case(masked=True, dropout=0.1),
    "paper, tf32": Case(dtype="tf32", masked=True),
    "one query": Case(2, queries=1, keys=299, masked=True),
    "one image, keys split": Case(1, dropout=0.1),
    "one of everything": Case(1, 1, 1, 1, (16, 16, 16), "ieee", masked=True, dropout=0.5),
    "no spatial part, columns apart": Case(2, 2, 150, 150, (64, 0, 128), "fp16", layout="columns apart"),
    "strides beyond 32 bits": Case(1, 2, 65, 256, (16, 64, 128), "tf32", layout="far apart"),
    "very many images": Case(70_000, 2, 1, 33, (16, 16, 16), masked=True, layout="one for all images"),
}


class Recorded(ctypes.Structure):
    """``stub_launch`` of stub_driver.c."""

    _fields_ = (
        ("count", ctypes.c_int),
        ("grid", 3 * ctypes.c_uint),
        ("block", 3 * ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("attributes", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("kernel", 128 * ctypes.c_char),
        ("parameters", MAX_PARAMETERS * ctypes.c_uint64),
    )


class StubDriver(CudaDriver):
    """Triton's driver for CUDA, where there is no device that torch could be asked about."""

    def __init__(self, arch: int) -> None:
        super().__init__()
        self.arch = arch
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: STREAM

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def operand(case: Case, length: int, dim: int) -> Tensor:
    """An uninitialised (B, H, length, dim) view, which takes next to no memory."""
    batch, heads, dtype = case.batch, case.heads, DTYPES[case.dtype]
    if case.layout == "columns apart":
        return torch.empty(batch, heads, length, 2 * dim + 1, dtype=dtype)[..., 1::2]
    if case.layout == "one for all images":
        return torch.empty(1, length, heads, dim, dtype=dtype).transpose(1, 2).expand(batch, -1, -1, -1)
    rows = torch.empty(batch, length, heads, dim, dtype=dtype).transpose(1, 2)
    if case.layout == "far apart":
        # allowed, for there is no second image
        return rows.as_strided(rows.shape, (2**33, *rows.stride()[1:]))
    return rows


def launches(case: Case, arch: int) -> Iterator[tuple[Launch, dict[str, Any]]]:
    """Every launch that a call and its gradient can consist of, and what the caller knows of its arguments by name."""
    torch.set_float32_matmul_precision("highest" if case.dtype == "ieee" else "high")
    (content, spatial, value), scale = case.dims, 0.17
    lengths = [case.queries, case.queries, case.keys, case.keys, case.keys]
    tensors = [operand(case, n, dim) for n, dim in zip(lengths, (content, spatial) * 2 + (value,), strict=True)]
    seed = torch.zeros(1, dtype=torch.int64) if case.dropout else None
    key_mask = None
    if case.masked:
        padding = torch.zeros(case.batch, case.keys, dtype=torch.bool)
        launch, key_mask = prepare_launch(padding)
        yield launch, {"mask": padding.view(torch.uint8), "prepared": key_mask, "keys": case.keys}

    problem = Problem(*tensors, key_mask, seed, case.dropout, scale)
    views = [(tensor, tensor.stride()) for tensor in tensors]
    known = {
        "q": tuple(views[:2]),
        "k": tuple(views[2:4]),
        "value": views[4],
        "mask": key_mask,
        "seed": seed,
        "heads": case.heads,
        "queries": case.queries,
        "keys": case.keys,
        "scale": scale,
        "scale_log2": scale * LOG2_E,
    }
    tuning = tuning_for(arch, problem)
    for splits in (None, 1, 2):  # None for what suits the number of multiprocessors
        forward, out, lse = forward_launches(problem, replace(tuning, splits=splits), multiprocessors=132)
        for launch in forward:
            yield launch, known if launch.kernel.fn.__name__ == "forward_kernel" else {}
    grad_out = operand(case, case.queries, value)
    known |= {"grad_out": (grad_out, grad_out.stride()), "out": (out, out.stride()), "lse": lse}
    for deterministic in (True, False):
        for launch in backward_launches(problem, out, lse, grad_out, tuning, deterministic)[0]:
            yield launch, known


def leaves(path: tuple[int, ...], name: str, argument: Any) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    """An argument, or what it holds if it is a tuple: where it is, its name and its value."""
    if isinstance(argument, tuple):
        for index, item in enumerate(argument):
            yield from leaves((*path, index), f"{name}[{index}]", item)
    else:
        yield path, name, argument


def constant_at(path: tuple[int, ...], constants: dict[tuple[int, ...], Any]) -> tuple[bool, Any]:
    """Whether the kernel was compiled for one value of an argument, and for which."""
    for end in range(1, len(path) + 1):
        if path[:end] in constants:
            value = constants[path[:end]]
            for index in path[end:]:
                value = value[index]
            return True, value
    return False, None


def expected(launch: Launch, known: dict[str, Any], compiled: Any) -> Iterator[list[Any]]:
    """Name, type and value of each parameter; two more at the end are Triton's own, and null.

    Raises:
        AssertionError: the kernel was compiled for another value of an argument that it is not passed.
    """
    for index, parameter in enumerate(launch.kernel.params):
        argument = known.get(parameter.name, launch.arguments[parameter.name])
        for path, name, item in leaves((index,), parameter.name, argument):
            is_constant, constant = constant_at(path, compiled.src.constants)
            if is_constant:
                assert (type(constant), constant) == (type(item), item), f"{name} is {item}, compiled for {constant}"
            elif isinstance(item, Tensor):
                yield [name, "i64", item.data_ptr()]
            elif isinstance(item, float):
                yield [name, "f32", ctypes.c_float(item).value]
            else:
                yield [name, "i32" if -(2**31) <= item < 2**31 else "i64", item]
    yield ["global scratch", "i64", 0]
    yield ["profile scratch", "i64", 0]


def parameter_types(compiled: Any) -> list[str]:
    """What the compiled kernel declares, such as f32 or i64; pointers are i64."""
    entry = re.search(rf"\.entry {compiled.metadata.name}\((.*?)\)", compiled.asm["ptx"], re.S)
    assert entry, "no such kernel in the PTX"
    return [kind if kind[0] == "f" else f"i{kind[1:]}" for kind in re.findall(r"\.param \.(\w+)", entry[1])]


def decoded(raw: int, kind: str) -> int | float:
    """The value of a parameter's bytes."""
    code = {"f32": "f", "f64": "d", "i32": "i", "i64": "q"}[kind]
    value: int | float = struct.unpack_from(code, struct.pack("Q", raw))[0]
    return value


def record(stub: ctypes.CDLL, launch: Launch, known: dict[str, Any]) -> dict[str, Any]:
    """What the driver should get of a launch, and what it got."""
    compiled = launch.compile()
    metadata = compiled.metadata
    kinds = parameter_types(compiled)
    ctypes.c_int.in_dll(stub, "stub_parameter_count").value = len(kinds)
    sizes = (MAX_PARAMETERS * ctypes.c_int).in_dll(stub, "stub_parameter_sizes")
    sizes[: len(kinds)] = [int(kind[1:]) // 8 for kind in kinds]
    recorded = Recorded.in_dll(stub, "stub_launch")
    before = recorded.count
    launch.run()
    parameters = list(expected(launch, known, compiled))
    # in the order of the kernel; a parameter too many gets a name of its own
    names = [*(name for name, _, _ in parameters), *(f"unexpected {index}" for index in range(len(kinds)))]
    return {
        "want": {
            "launches": 1,
            "kernel": metadata.name,
            "grid": [*launch.grid, 1, 1][:3],
            "block": [32 * launch.arguments.get("num_warps", metadata.num_warps), 1, 1],
            "shared": metadata.shared,
            "attributes": 0,
            "stream": STREAM,
            **{name: [kind, value] for name, kind, value in parameters},
        },
        "got": {
            "launches": recorded.count - before,
            "kernel": recorded.kernel.decode(),
            "grid": list(recorded.grid),
            "block": list(recorded.block),
            "shared": recorded.shared,
            "attributes": recorded.attributes,
            "stream": recorded.stream,
            **{
                name: [kind, decoded(raw, kind)]
                for name, kind, raw in zip(names, kinds, recorded.parameters, strict=False)
            },
        },
    }


def main(arch: int, result: Path, names: list[str]) -> None:
    # the one that Triton's own request for libcuda.so.1 gets as well
    stub = ctypes.CDLL("libcuda.so.1")
    shared_memory = SHARED_MEMORY[max(known for known in SHARED_MEMORY if known <= arch)]
    ctypes.c_int.in_dll(stub, "stub_capability").value = arch
    ctypes.c_int.in_dll(stub, "stub_shared_memory").value = shared_memory
    driver.set_active(StubDriver(arch))
    results: dict[str, Any] = {}
    for name in names:
        records: list[dict[str, Any]] = []
        results[name] = {"shared_memory": shared_memory, "records": records, "error": None}
        try:
            for launch, known in launches(CASES[name], arch):
                records.append(record(stub, launch, known))
        except Exception:
            results[name]["error"] = traceback.format_exc()
    result.write_text(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
