"""Launch configurations of the attention kernels, by architecture. Nothing is tuned at a user's first step.

To add an architecture: put its rows into the table, run ``benchmarks/kernel_report.py`` (nothing may spill), then
``benchmarks/attn_bench.py`` on the device.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from cond_detr_kernels.conditional_attention.launch import column_block
from cond_detr_kernels.conditional_attention.problem import Problem

# What a program of each architecture may keep in shared memory, bytes
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


class Blocks(NamedTuple):
    """Queries and keys of a tile, warps of a program, stages of its load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuning:
    """The configurations of one architecture, for operands of one size.

    Attributes:
        forward: where programs of many queries fill the device.
        forward_small: where they do not.
        backward_queries: gradients of queries, deterministic.
        backward_keys: gradients of keys and values, deterministic.
        backward: all gradients in one pass.
        one_pass: whether that is the faster way.
    """

    forward: Blocks
    forward_small: Blocks
    backward_queries: Blocks
    backward_keys: Blocks
    backward: Blocks
    one_pass: bool = True


# The paper's heads in half precision, on tensor cores of Ampere's kind
_AMPERE_HALF = Tuning(
    forward=Blocks(128, 128, 8, 3),
    forward_small=Blocks(64, 128, 4, 2),
    backward_queries=Blocks(64, 64, 4, 2),
    backward_keys=Blocks(64, 128, 8, 2),
    backward=Blocks(32, 64, 4, 2),
    one_pass=False,
)
# The same in fp32, where 99 KB of shared memory are all there is
_AMPERE_SINGLE = Tuning(
    forward=Blocks(128, 64, 8, 2),
    forward_small=Blocks(64, 128, 4, 2),
    backward_queries=Blocks(64, 64, 4, 2),
    backward_keys=Blocks(32, 64, 4, 2),
    backward=Blocks(32, 64, 4, 2),
    one_pass=False,
)
# Wider heads, on any architecture
_WIDE = Tuning(
    forward=Blocks(64, 32, 4, 2),
    forward_small=Blocks(64, 32, 4, 2),
    backward_queries=Blocks(32, 32, 4, 1),
    backward_keys=Blocks(32, 32, 4, 1),
    backward=Blocks(16, 16, 4, 1),
    one_pass=False,
)
_WIDEST = Tuning(
    forward=Blocks(32, 32, 4, 1),
    forward_small=Blocks(32, 32, 4, 1),
    backward_queries=Blocks(16, 16, 4, 1),
    backward_keys=Blocks(16, 16, 4, 1),
    backward=Blocks(16, 16, 4, 1),
    one_pass=False,
)
# Per architecture: configurations for keys of up to so many bytes, content, spatial part and value together. 192 are
# the paper's heads in half precision, 384 in fp32. Chosen by their registers, spills and instructions, as
# benchmarks/kernel_report.py counts them; their speeds are not yet measured.
_TABLE: dict[int, dict[int, Tuning]] = {
    80: {192: _AMPERE_HALF, 384: _AMPERE_SINGLE, 768: _WIDE, 1536: _WIDEST},
    90: {
        192: Tuning(
            forward=Blocks(128, 128, 8, 3),
            forward_small=Blocks(64, 128, 4, 3),
            backward_queries=Blocks(64, 64, 4, 2),
            backward_keys=Blocks(64, 128, 8, 2),
            backward=Blocks(64, 128, 8, 2),
        ),
        384: Tuning(
            forward=Blocks(128, 128, 8, 3),
            forward_small=Blocks(64, 128, 4, 2),
            backward_queries=Blocks(64, 64, 4, 2),
            backward_keys=Blocks(64, 128, 8, 2),
            backward=Blocks(32, 64, 4, 2),
        ),
        768: _WIDE,
        1536: _WIDEST,
    },
    100: {
        192: Tuning(
            forward=Blocks(128, 64, 8, 2),
            forward_small=Blocks(64, 128, 4, 3),
            backward_queries=Blocks(64, 64, 4, 2),
            backward_keys=Blocks(64, 128, 8, 2),
            backward=Blocks(64, 128, 8, 2),
        ),
        384: Tuning(
            forward=Blocks(128, 64, 8, 2),
            forward_small=Blocks(64, 64, 4, 2),
            backward_queries=Blocks(64, 64, 8, 2),
            backward_keys=Blocks(64, 128, 8, 2),
            backward=Blocks(64, 64, 8, 2),
        ),
        768: _WIDE,
        1536: _WIDEST,
    },
    120: {192: _AMPERE_HALF, 384: _AMPERE_SINGLE, 768: _WIDE, 1536: _WIDEST},
}


def tuning_for(capability: int, row_bytes: int) -> Tuning:
    """The configurations for a compute capability (90 is 9.0) and operands of a size.

    ``row_bytes`` are those of a key's content, spatial part and value together. An architecture that is not in the
    table is served as the one before it.
    """
    rows = _TABLE[_row_of(capability)]
    return rows[min(size for size in rows if size >= row_bytes)]


def _row_of(capability: int) -> int:
    """The architecture of the table that a compute capability belongs to."""
    return max(arch for arch in _TABLE if arch <= max(capability, min(_TABLE)))


class Target(NamedTuple):
    """What a problem runs on."""

    tuning: Tuning
    multiprocessors: int


def target_of(problem: Problem) -> Target:
    row_bytes = problem.value.element_size() * sum(map(column_block, problem.dims))
    if not problem.value.is_cuda:  # Triton's interpreter
        return Target(tuning_for(90, row_bytes), multiprocessors=132)
    capability, multiprocessors = _device(problem.value.get_device())
    return Target(tuning_for(capability, row_bytes), multiprocessors)


@functools.cache
def _device(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def options(blocks: Blocks) -> dict[str, Any]:
    """Launch arguments of a configuration."""
    return {
        "BLOCK_M": blocks.queries,
        "BLOCK_N": blocks.keys,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
