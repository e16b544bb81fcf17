"""Scores of tiles, for all kernels: content plus spatial dot products of queries and keys (paper, section 3.3)."""

import triton
import triton.language as tl

from cond_detr_kernels.conditional_attention.tiles import head_of, load_tile


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
    scores = tl.dot(rows[0], tl.trans(columns[0]), input_precision=PRECISION)
    if DIMS[1] > 0:
        scores = tl.dot(rows[1], tl.trans(columns[1]), scores, input_precision=PRECISION)
    return scores
