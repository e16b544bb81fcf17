"""Compiles every attention kernel for every architecture, without a GPU, and reports what it costs.

Registers and spilled bytes per thread, shared memory per program, the matrix instruction, and the instructions per
score in the inner loop. Exits with 1 if a kernel spills or wants more shared memory than its architecture has.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
import triton
from common import Row, arguments, print_table, write_json
from sass import library_resources, main_loop, resources
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cond_detr_kernels import _C
from cond_detr_kernels.conditional_attention.backward import backward_launches
from cond_detr_kernels.conditional_attention.forward import forward_launches
from cond_detr_kernels.conditional_attention.launch import Launch, column_block
from cond_detr_kernels.conditional_attention.problem import Problem
from cond_detr_kernels.conditional_attention.tuning import SHARED_MEMORY, tuning_for

ARCHITECTURES = (80, 86, 90, 100, 120)
PAPER_DIMS = (32, 32, 32)
COLUMNS = {
    "kernel": "",
    "pass": "",
    "arch": "",
    "dtype": "",
    "dims": "",
    "config": "",
    "dropout": "",
    "masked": "",
    "registers": "d",
    "spill_bytes": "d",
    "shared_bytes": "d",
    "mma": "",
    "instr_per_score": ".1f",
}


class Case(NamedTuple):
    dims: tuple[int, int, int]
    dtype: str  # tf32 and ieee are fp32 with one or the other precision of products
    dropout: float
    masked: bool


QUICK = [Case(PAPER_DIMS, dtype, *kind) for dtype in ("bf16", "tf32") for kind in ((0.0, False), (0.1, True))]
ALL = [
    Case(dims, dtype, dropout, masked)
    for dims in (PAPER_DIMS, (16, 16, 16), (12, 12, 12), (64, 64, 64), (32, 64, 128), (128, 128, 128))
    for dtype in ("bf16", "fp16", "tf32", "ieee")
    for dropout in (0.0, 0.1)
    for masked in (False, True)
]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


class NoDevice:
    """Stands in for Triton's driver: kernels are compiled for an architecture, and cannot be run."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps compiled kernels per device

    def get_current_stream(self, device: int) -> int:
        return 0


def problem(case: Case) -> Problem:
    batch, heads, queries, keys = 8, 8, 300, 1050
    content, spatial, value = case.dims
    sizes = [(queries, content), (queries, spatial), (keys, content), (keys, spatial), (keys, value)]
    tensors = [torch.empty(batch, n, heads, dim, dtype=DTYPES[case.dtype]).transpose(1, 2) for n, dim in sizes]
    mask = torch.zeros(batch, keys, dtype=torch.bool) if case.masked else None
    seed = torch.zeros(1, dtype=torch.int64) if case.dropout else None
    return Problem(*tensors, mask, seed, case.dropout, (content + spatial) ** -0.5)


def launches(case: Case, arch: int) -> Iterator[tuple[str, Launch]]:
    """Every launch that a call and its gradient can consist of, by the pass that it belongs to."""
    inputs = problem(case)
    tuning = tuning_for(arch, inputs.value.element_size() * sum(map(column_block, case.dims)))
    few, out, lse = forward_launches(inputs, tuning, multiprocessors=1)
    many, _, _ = forward_launches(inputs, tuning, multiprocessors=10_000)
    deterministic, _, _ = backward_launches(inputs, out, lse, out, tuning, deterministic=True)
    one_pass, _, _ = backward_launches(inputs, out, lse, out, tuning, deterministic=False)
    groups = {"fwd": few, "fwd, small batch": many, "bwd": deterministic, "bwd, one pass": one_pass}
    for name, group in groups.items():
        for launch in group:
            yield name, launch


def report(name: str, launch: Launch, case: Case, arch: int) -> Row:
    compiled = launch.compile()
    cubin = compiled.asm["cubin"]
    used, loop, blocks = resources(cubin), main_loop(cubin), launch.arguments
    scores = blocks["BLOCK_M"] * blocks.get("BLOCK_N", 0) / (32 * compiled.metadata.num_warps) if loop else 0
    return {
        "kernel": launch.kernel.fn.__name__.removesuffix("_kernel"),
        "pass": name,
        "arch": f"sm_{arch}",
        "dtype": case.dtype,
        "dims": "/".join(map(str, case.dims)),
        "config": config(compiled.metadata, blocks),
        "dropout": case.dropout,
        "masked": case.masked,
        "registers": used.registers,
        "spill_bytes": used.spill_bytes,
        "shared_bytes": compiled.metadata.shared,
        "mma": loop.mma if loop else None,
        "instr_per_score": round(loop.instructions / scores, 2) if loop else None,
    }


def native_rows() -> Iterator[Row]:
    """The CUDA kernels of the extension module, as it was built. Their shared memory depends on the problem's size."""
    names = {"match_kernel": "match", "linear_sum_assignment_kernel": "linear_sum_assignment"}
    for arch, mangled, used in library_resources(Path(_C.__file__)):
        kernel = next((short for name, short in names.items() if name in mangled), mangled)
        yield {
            "kernel": kernel,
            "pass": "matching",
            "arch": f"sm_{arch}",
            "dtype": "fp32" if kernel == "match" else "fp64",
            "config": "8 warps",
            "registers": used.registers,
            "spill_bytes": used.spill_bytes,
            "shared_bytes": used.shared_bytes,
        }


def config(metadata: Any, blocks: dict[str, Any]) -> str:
    tile = "x".join(str(blocks[name]) for name in ("BLOCK_M", "BLOCK_N") if name in blocks)
    return f"{tile}, {metadata.num_warps} warps, {metadata.num_stages} stages"


def reports(case: Case, arch: int) -> list[Row]:
    """A row for each kernel that a case needs on an architecture."""
    driver.set_active(NoDevice(arch))
    torch.set_float32_matmul_precision("highest" if case.dtype == "ieee" else "high")
    rows: dict[tuple[object, ...], Row] = {}
    for name, launch in launches(case, arch):
        row = report(name, launch, case, arch)
        rows.setdefault(tuple(value for column, value in row.items() if column != "pass"), row)
    return list(rows.values())


def all_reports(cases: list[Case], architectures: list[int]) -> list[Row]:
    work = [(case, arch) for arch in architectures for case in cases]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = pool.map(reports, *zip(*work, strict=True))
        return [row for part in tqdm(parts, total=len(work), unit="case", leave=False, disable=None) for row in part]


def complaint(row: Row) -> str | None:
    arch = int(row["arch"].removeprefix("sm_"))
    available = SHARED_MEMORY[max(known for known in SHARED_MEMORY if known <= max(arch, 80))]
    what = f"{row['kernel']} on {row['arch']} for {row['dtype']} {row.get('dims', '')}, {row['config']}"
    if row["spill_bytes"]:
        return f"{what}: spills {row['spill_bytes']} bytes per thread"
    if row["shared_bytes"] > available:
        return f"{what}: wants {row['shared_bytes']} bytes of shared memory, there are {available}"
    return None


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--all", action="store_true", help="all dtypes and head dims instead of the paper's")
    parser.add_argument("--arch", type=int, action="append", metavar="N", help="this architecture only, such as 90")
    options = parser.parse_args()
    rows = all_reports(ALL if options.all else QUICK, options.arch or list(ARCHITECTURES))
    rows += native_rows()
    if _C.WITH_CUDA and not any(row["pass"] == "matching" for row in rows):
        print("the matcher's CUDA kernels could not be read from the extension module", file=sys.stderr)
        return 1
    print_table(rows, COLUMNS)
    if options.json:
        write_json(options.json, "kernel_report", f"compiled without a GPU, triton {triton.__version__}", rows)
    complaints = [sentence for row in rows if (sentence := complaint(row))]
    print("\n".join(complaints) or f"{len(rows)} kernels, none spills", file=sys.stderr if complaints else sys.stdout)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
