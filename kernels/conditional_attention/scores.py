"""Products of tiles, for all kernels; scores among them.

A score is the sum of content and spatial dot product of a query and a key (paper, section 3.3).
"""

import os

import triton
import triton.language as tl

from cond_detr_kernels.conditional_attention.tiles import head_of, load_tile

# Triton's interpreter has no instructions of a GPU
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def operand(tile, PRECISION: tl.constexpr):
    """The operand of a product: for TF32 rounded to nearest, as cuBLAS does it.

    Tensor cores cut off the bits that TF32 lacks. That makes every operand smaller, which adds up: the gradients of
    queries and keys would be .2 % too small.
    """
    if PRECISION == "tf32" and tile.dtype == tl.float32:
        if INTERPRETED:
            bits = (tile.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
            tile = tl.where(tile == tile, bits.to(tl.float32, bitcast=True), tile)
        else:
            tile = tl.inline_asm_elementwise(
                "cvt.rna.tf32.f32 $0, $1;", "=r,r", [tile], dtype=tl.float32, is_pure=True, pack=1
            )
    return tile


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """The matrix product of two tiles, added to ``acc`` (None: to nothing)."""
    return tl.dot(operand(a, PRECISION), operand(b, PRECISION), acc, input_precision=PRECISION)


@triton.jit
def heads_of(views, head, heads):
    """Views of one head of the content part and of the spatial part; ``head`` counts over the batch."""
    return head_of(views[0], head, heads), head_of(views[1], head, heads)


@triton.jit
def load_parts(
    heads,
    first,
    length,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr = False,
):
    """Loads ROWS rows of the content and of the spatial part; without a spatial part, of the content part twice."""
    content = load_tile(heads[0], first, length, DIMS[0], ROWS, BLOCKS[0], WHOLE)
    spatial = content
    if DIMS[1] > 0:
        spatial = load_tile(heads[1], first, length, DIMS[1], ROWS, BLOCKS[1], WHOLE)
    return content, spatial


@triton.jit
def score(rows, columns, DIMS: tl.constexpr, PRECISION: tl.constexpr):
    """Unscaled scores (rows, columns) of two tiles: of queries and keys, or of keys and queries."""
    scores = product(rows[0], tl.trans(columns[0]), None, PRECISION)
    if DIMS[1] > 0:
        scores = product(rows[1], tl.trans(columns[1]), scores, PRECISION)
    return scores
