"""Compiles every attention kernel for every architecture, without a GPU, and reports what it costs.

Registers and spilled bytes per thread, shared memory per program, the matrix instruction, and the instructions per
score in the inner loop. Then, for devices of 132 and 108 multiprocessors, how the programs of some sizes fill them.
Exits with 1 if a kernel spills or wants more shared memory than its architecture has.
"""

import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
import triton
from common import Row, arguments, print_table, write_json
from sass import library_loads, library_resources, main_loop, resources
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cond_detr_kernels import _C
from cond_detr_kernels.conditional_attention.backward import backward_launches
from cond_detr_kernels.conditional_attention.forward import forward_launches
from cond_detr_kernels.conditional_attention.launch import Launch
from cond_detr_kernels.conditional_attention.masking import prepare_launch
from cond_detr_kernels.conditional_attention.problem import Problem, mask_width
from cond_detr_kernels.conditional_attention.tuning import SHARED_MEMORY, tuning_for

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
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
    "loads_shared": "d",
    "loads_anywhere": "d",
}


class Case(NamedTuple):
    """What a kernel is compiled for; ``dims`` are those of a content part, a spatial part and the values."""

    dims: tuple[int, int, int]
    dtype: str  # tf32 and ieee are fp32 with one or the other precision of products
    dropout: float
    masked: bool


KINDS = ((0.0, False), (0.1, True))
# of the types that training seldom uses only what takes most registers
QUICK = [Case(PAPER_DIMS, dtype, *kind) for dtype in ("bf16", "tf32") for kind in KINDS]
QUICK += [Case(PAPER_DIMS, dtype, *KINDS[1]) for dtype in ("fp16", "ieee")]
# The encoder's self-attention, with padding
QUICK += [Case((32, 0, 32), dtype, 0.1, True) for dtype in ("bf16", "tf32")]
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
        """The architecture, as Triton's compiler wants it."""
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """A number for each architecture."""
        return self.arch  # Triton keeps compiled kernels per device

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002 - as Triton's drivers
        """There is none to run on."""
        return 0


def problem(case: Case, batch: int = 8, keys: int = 1050) -> Problem:
    """Operands of a case at the paper's size, as the launchers take them; nobody looks at the values."""
    heads, queries = 8, 300
    content, spatial, value = case.dims
    sizes = [(queries, content), (queries, spatial), (keys, content), (keys, spatial), (keys, value)]
    q_content, q_spatial, k_content, k_spatial, v = (
        torch.empty(batch, n, heads, dim, dtype=DTYPES[case.dtype]).transpose(1, 2) for n, dim in sizes
    )
    mask = torch.zeros(batch, mask_width(keys)) if case.masked else None
    seed = torch.zeros(1, dtype=torch.int64) if case.dropout else None
    scale = (content + spatial) ** -0.5
    return Problem(q_content, q_spatial, k_content, k_spatial, v, mask, seed, case.dropout, scale)


def launches(case: Case, arch: int) -> Iterator[tuple[str, Launch]]:
    """Every launch that a call and its gradient can consist of, by the pass that it belongs to."""
    inputs = problem(case)
    tuning = tuning_for(arch, inputs)
    forward, out, lse = forward_launches(inputs, replace(tuning, splits=2), multiprocessors=1)
    deterministic, _, _ = backward_launches(inputs, out, lse, out, tuning, deterministic=True)
    one_pass, _, _ = backward_launches(inputs, out, lse, out, tuning, deterministic=False)
    groups = {"fwd": forward, "bwd": deterministic, "bwd, one pass": one_pass}
    if inputs.key_mask is not None:
        mask = torch.zeros(inputs.sizes[0], inputs.sizes[3], dtype=torch.bool)
        groups["mask"] = [prepare_launch(mask)[0]]
    for name, group in groups.items():
        for launch in group:
            yield name, launch


def report(name: str, launch: Launch, case: Case, arch: int) -> Row:
    """Compiles a launch; the row about its kernel."""
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
    loads = library_loads(Path(_C.__file__))
    for arch, mangled, used in library_resources(Path(_C.__file__)):
        kernel = next((short for name, short in names.items() if name in mangled), mangled)
        yield {
            "kernel": kernel,
            "pass": "matching",
            "arch": f"sm_{arch}",
            "dtype": "fp32" if kernel == "match" else "fp64",
            "config": "scratch in shared memory" if "ILb1E" in mangled else "scratch anywhere",
            "registers": used.registers,
            "spill_bytes": used.spill_bytes,
            "shared_bytes": used.shared_bytes,
            "loads_shared": loads[arch, mangled]["LDS"],
            "loads_anywhere": loads[arch, mangled]["LD"],
        }


def config(metadata: Any, blocks: dict[str, Any]) -> str:
    """Tile, warps and stages in a few words."""
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
    """The rows of all cases on all architectures, compiled in parallel."""
    work = [(case, arch) for arch in architectures for case in cases]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = pool.map(reports, *zip(*work, strict=True))
        return [row for part in tqdm(parts, total=len(work), unit="case", leave=False, disable=None) for row in part]


class Occupancy(NamedTuple):
    """How the programs of a launch fill a device; the share is of scores among those that it could compute meanwhile.

    Programs on one multiprocessor share its throughput, so what counts is how many the busiest one gets to compute.
    """

    programs: int
    per_multiprocessor: int
    waves: float
    useful_share: float


OCCUPANCY_COLUMNS = {
    "pass": "",
    "dtype": "",
    "config": "",
    "batch": "d",
    "keys": "d",
    "multiprocessors": "d",
    "programs": "d",
    "per_multiprocessor": "d",
    "waves": ".2f",
    "useful_share": ".3f",
}
# Of every architecture's multiprocessors
REGISTERS = 65_536
RESERVED_SHARED = 1024  # bytes of each program


def occupancy(row: Row, launch: Launch, multiprocessors: int, arch: int) -> Occupancy:
    """Of a device with so many multiprocessors; ``row`` has what the kernel of the launch takes."""
    blocks = launch.arguments
    threads = 32 * blocks["num_warps"]
    by_registers = REGISTERS // (-(-row["registers"] // 8) * 8 * threads)
    by_shared = (SHARED_MEMORY[arch] + RESERVED_SHARED) // (row["shared_bytes"] + RESERVED_SHARED)
    resident = min(by_registers, by_shared)
    programs = math.prod(launch.grid)
    batch_heads, queries, keys = launch.grid[0], blocks["queries"], blocks["keys"]
    rows, columns = blocks["BLOCK_M"], blocks["BLOCK_N"]
    whole_rows = -(-queries // rows) * rows
    if len(launch.grid) == 3:  # forward: the last tiles of keys are narrow
        own = min(blocks["tiles_per_split"] * columns, keys // columns * columns + -(-(keys % columns) // 32) * 32)
        scores = rows * own
    else:
        scores = whole_rows * columns
    busiest = -(-programs // multiprocessors)
    useful = batch_heads * queries * keys / (multiprocessors * busiest * scores)
    return Occupancy(programs, resident, programs / (multiprocessors * resident), useful)


def occupancy_rows(arch: int = 90) -> Iterator[Row]:
    """For training's precisions, without dropout and masks: what the launchers choose."""
    driver.set_active(NoDevice(arch))
    torch.set_float32_matmul_precision("high")
    for dtype in ("bf16", "tf32"):
        case = Case(PAPER_DIMS, dtype, 0.0, False)
        used: dict[str, Row] = {}
        for multiprocessors in (132, 108):
            for batch in (1, 2, 8, 32):
                for keys in (1050, 4200):
                    inputs = problem(case, batch, keys)
                    tuning = tuning_for(arch, inputs)
                    forward, out, lse = forward_launches(inputs, tuning, multiprocessors)
                    backward, _, _ = backward_launches(inputs, out, lse, out, tuning, not tuning.one_pass)
                    for name, launch in (("fwd", forward[0]), ("bwd", backward[-1])):
                        row = used.setdefault(name, report(name, launch, case, arch))
                        filled = occupancy(row, launch, multiprocessors, arch)
                        own = {"batch": batch, "keys": keys, "multiprocessors": multiprocessors}
                        kept = {key: row[key] for key in ("pass", "dtype", "config")}
                        yield {"kernel": "occupancy", **kept, **own, **filled._asdict()}


def complaint(row: Row) -> str | None:
    """A sentence about a kernel that spills or does not fit, or None."""
    arch = int(row["arch"].removeprefix("sm_"))
    available = SHARED_MEMORY[max(known for known in SHARED_MEMORY if known <= max(arch, 80))]
    what = f"{row['kernel']} on {row['arch']} for {row['dtype']} {row.get('dims', '')}, {row['config']}"
    if row["spill_bytes"]:
        return f"{what}: spills {row['spill_bytes']} bytes per thread"
    if row["shared_bytes"] > available:
        return f"{what}: wants {row['shared_bytes']} bytes of shared memory, there are {available}"
    return None


def main() -> int:
    """Compiles and prints; 1 if a kernel spills or does not fit, or if the matcher's cannot be read."""
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
    filled = list(occupancy_rows())
    print()
    print_table(filled, OCCUPANCY_COLUMNS)
    if options.json:
        machine = f"compiled without a GPU, triton {triton.__version__}"
        write_json(options.json, "kernel_report", machine, [*rows, *filled])
    complaints = [sentence for row in rows if (sentence := complaint(row))]
    print("\n".join(complaints) or f"{len(rows)} kernels, none spills", file=sys.stderr if complaints else sys.stdout)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
