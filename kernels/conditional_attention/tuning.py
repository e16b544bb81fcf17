"""Launch configurations of the attention kernels, by architecture.

The static table applies where nothing was measured; ``python -m cond_detr_kernels.tune`` measures on a given GPU, see
measured.py. To add an architecture: put its rows into the table, run ``benchmarks/kernel_report.py`` (nothing may
spill), then ``benchmarks/attn_bench.py`` on the device.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cond_detr_kernels.conditional_attention.launch import column_block, dot_precision
from cond_detr_kernels.conditional_attention.problem import Problem

# Shared memory that a program may use, in bytes, by architecture
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


class Blocks(NamedTuple):
    """Configuration of a kernel.

    Attributes:
        queries: queries of a tile.
        keys: keys of a tile.
        warps: warps of a program.
        stages: stages of the software pipeline of loads.
    """

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuning:
    """Configurations of all kernels, for one architecture and size of operands.

    Attributes:
        forward: forward kernel.
        backward_queries: kernel of the gradients of queries, deterministic.
        backward_keys: kernel of the gradients of keys and values, deterministic.
        backward: kernel of all gradients in one pass.
        one_pass: whether one pass is faster than the deterministic kernels.
        splits: number of programs among which the forward kernel splits the keys; None for :func:`key_splits`.
    """

    forward: Blocks
    backward_queries: Blocks
    backward_keys: Blocks
    backward: Blocks
    one_pass: bool = True
    splits: int | None = None


# The paper's heads in half precision, on tensor cores of Ampere's kind
_AMPERE_HALF = Tuning(
    forward=Blocks(64, 64, 4, 2),
    backward_queries=Blocks(64, 64, 4, 2),
    backward_keys=Blocks(64, 128, 8, 2),
    backward=Blocks(16, 64, 4, 2),
    one_pass=False,
)
# The same in fp32, where 99 KB of shared memory are all there is
_AMPERE_SINGLE = Tuning(
    forward=Blocks(64, 64, 4, 2),
    backward_queries=Blocks(64, 32, 4, 2),
    backward_keys=Blocks(16, 64, 4, 2),
    backward=Blocks(16, 32, 4, 2),
    one_pass=False,
)
# Wider heads, on any architecture
_WIDE = Tuning(
    forward=Blocks(64, 32, 4, 2),
    backward_queries=Blocks(16, 32, 4, 1),
    backward_keys=Blocks(32, 32, 4, 1),
    backward=Blocks(16, 16, 4, 1),
    one_pass=False,
)
_WIDEST = Tuning(
    forward=Blocks(16, 32, 4, 1),
    backward_queries=Blocks(16, 16, 4, 1),
    backward_keys=Blocks(16, 32, 8, 1),
    backward=Blocks(16, 16, 8, 1),
    one_pass=False,
)
# fp32 products without tensor cores, as torch has it unless told otherwise: the same on any architecture. Small tiles,
# for every operand of a product is held in registers
_EXACT = {
    384: Tuning(
        forward=Blocks(64, 32, 4, 2),
        backward_queries=Blocks(32, 32, 4, 2),
        backward_keys=Blocks(32, 32, 8, 2),
        backward=Blocks(32, 32, 8, 1),
        one_pass=False,
    ),
    768: Tuning(
        forward=Blocks(32, 32, 8, 1),
        backward_queries=Blocks(32, 32, 8, 1),
        backward_keys=Blocks(32, 32, 8, 1),
        backward=Blocks(16, 32, 8, 1),
        one_pass=False,
    ),
    1536: Tuning(
        forward=Blocks(32, 32, 8, 1),
        backward_queries=Blocks(16, 16, 8, 1),
        backward_keys=Blocks(16, 32, 8, 1),
        backward=Blocks(16, 16, 8, 1),
        one_pass=False,
    ),
}
# Per architecture: configurations for keys of up to so many bytes, content, spatial part and value together. 192 are
# the paper's heads in half precision, 384 in fp32. Chosen by their registers, spills and instructions, and by how much
# of a device they keep busy, as benchmarks/kernel_report.py counts these; those of 9.0 by their times on an H200.
_TABLE: dict[int, dict[int, Tuning]] = {
    80: {192: _AMPERE_HALF, 384: _AMPERE_SINGLE, 768: _WIDE, 1536: _WIDEST},
    90: {
        192: Tuning(
            forward=Blocks(64, 64, 4, 3),
            backward_queries=Blocks(64, 64, 4, 3),
            backward_keys=Blocks(32, 64, 4, 3),
            backward=Blocks(64, 64, 4, 3),
            one_pass=False,
        ),
        384: Tuning(
            forward=Blocks(64, 64, 4, 3),
            backward_queries=Blocks(64, 64, 4, 3),
            backward_keys=Blocks(64, 128, 8, 2),
            backward=Blocks(32, 64, 4, 3),
        ),
        768: _WIDE,
        1536: _WIDEST,
    },
    100: {
        192: Tuning(
            forward=Blocks(64, 128, 4, 2),
            backward_queries=Blocks(128, 64, 8, 2),
            backward_keys=Blocks(64, 128, 8, 2),
            backward=Blocks(64, 128, 8, 2),
        ),
        384: Tuning(
            forward=Blocks(64, 32, 4, 2),
            backward_queries=Blocks(64, 64, 8, 2),
            backward_keys=Blocks(64, 64, 8, 1),
            backward=Blocks(32, 64, 8, 2),
        ),
        768: _WIDE,
        1536: _WIDEST,
    },
    120: {192: replace(_AMPERE_HALF, forward=Blocks(64, 128, 4, 2)), 384: _AMPERE_SINGLE, 768: _WIDE, 1536: _WIDEST},
}

# The same with dropout, where that is not the same
_WITH_DROPOUT = {
    (90, 192): Tuning(
        forward=Blocks(64, 128, 4, 3),
        backward_queries=Blocks(64, 128, 4, 3),
        backward_keys=Blocks(32, 64, 4, 3),
        backward=Blocks(64, 64, 4, 3),
    )
}


def tuning_for(capability: int, problem: Problem) -> Tuning:
    """The configurations of the table for an architecture, for the size and precision of the operands, and for dropout.

    Args:
        capability: compute capability, 90 for 9.0. One that is not in the table gets the row of the previous one.
        problem: the arguments of the call.
    """
    # of a key's content, spatial part and value together
    row_bytes = problem.value.element_size() * sum(map(column_block, problem.dims))
    arch = _row_of(capability)
    rows = _EXACT if dot_precision(problem.value.dtype) == "ieee" else _TABLE[arch]
    size = min(size for size in rows if size >= row_bytes)
    if problem.dropout_p and rows is not _EXACT:
        return _WITH_DROPOUT.get((arch, size), rows[size])
    return rows[size]


def _row_of(capability: int) -> int:
    """The architecture of the table for a compute capability: the latest one that is not newer."""
    return max(arch for arch in _TABLE if arch <= max(capability, min(_TABLE)))


# What a split of the keys has to be worth: the launch that combines the parts, in scores that a multiprocessor computes
# in that time (1.5 us, at 8 instructions a score and 4 * 32 of them per cycle, 1.7 GHz), and the traffic of one number
# of a part, written and read, against what the device's memory carries per score of a multiprocessor
COMBINE_SCORES = 40_000
SCORES_PER_NUMBER = 0.07
# How much longer a score takes with dropout
DROPOUT_COST = 2.0
# What a program alone on a multiprocessor gets out of it; estimated, as all of these
LONE_SHARE = 0.4
# A program of fewer tiles spends most of its time on getting started
LEAST_TILES = 3


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def key_splits(problem: Problem, blocks: Blocks, multiprocessors: int) -> int:
    """Number of programs to split the keys among, such that the busiest multiprocessor has the least work.

    That multiprocessor gets ceil(programs / multiprocessors) programs.

    Args:
        problem: the arguments of the call.
        blocks: configuration of the forward kernel.
        multiprocessors: number of streaming multiprocessors.
    """
    batch, heads, queries, keys = problem.sizes
    programs = batch * heads * ceil_div(queries, blocks.queries)
    tiles = ceil_div(keys, blocks.keys)

    def cost(splits: int) -> float:
        most = ceil_div(programs * splits, multiprocessors)
        scores = float(most * ceil_div(tiles, splits) * blocks.queries * blocks.keys)
        scores /= min(1.0, LONE_SHARE * most)
        if splits == 1:
            return scores
        numbers = splits * batch * heads * queries * problem.dims[2]
        combining = COMBINE_SCORES + numbers * SCORES_PER_NUMBER
        return scores + combining / (DROPOUT_COST if problem.dropout_p else 1.0)

    return min(range(1, max(1, tiles // LEAST_TILES) + 1), key=cost)


def options(blocks: Blocks) -> dict[str, Any]:
    """Launch options of a configuration."""
    return {
        "BLOCK_M": blocks.queries,
        "BLOCK_N": blocks.keys,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
