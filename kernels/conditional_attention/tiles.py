"""How kernels reach (B, H, N, D) views of any strides, one (rows, D) tile of one head at a time."""

import triton
import triton.language as tl


@triton.jit
def head_pointer(pointer, strides, head, heads):
    """Where head ``head`` = batch * heads + h of a (B, H, N, D) view begins."""
    return pointer + (head // heads).to(tl.int64) * strides[0] + (head % heads).to(tl.int64) * strides[1]


@triton.jit
def tile_offsets(strides, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = first + tl.arange(0, ROWS)
    return rows[:, None].to(tl.int64) * strides[2] + tl.arange(0, COLUMNS)[None, :].to(tl.int64) * strides[3]


@triton.jit
def tile_inside(first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which elements exist; COLUMNS is DIM rounded up to what tensor cores take."""
    inside = (first + tl.arange(0, ROWS))[:, None] < length
    if DIM != COLUMNS:
        inside = inside & (tl.arange(0, COLUMNS)[None, :] < DIM)
    return inside


@triton.jit
def load_tile(pointer, strides, first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [first, first + ROWS) of a head, zero where there are none."""
    inside = tile_inside(first, length, DIM, ROWS, COLUMNS)
    return tl.load(pointer + tile_offsets(strides, first, ROWS, COLUMNS), mask=inside, other=0.0)


@triton.jit
def store_tile(pointer, strides, tile, first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    inside = tile_inside(first, length, DIM, ROWS, COLUMNS)
    tl.store(pointer + tile_offsets(strides, first, ROWS, COLUMNS), tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def store_rows(pointer, rows, first, length, fill, ROWS: tl.constexpr, PADDING: tl.constexpr):
    """One fp32 number per row of a tile, into an array that is filled up to a multiple of PADDING rows.

    So kernels that read whole tiles of it need no mask, and read several numbers at once.
    """
    index = first + tl.arange(0, ROWS)
    padded = tl.cdiv(length, PADDING) * PADDING
    tl.store(pointer + index, tl.where(index < length, rows, fill), mask=index < padded)
    if first + ROWS >= length:
        behind = first + ROWS + tl.arange(0, PADDING)
        tl.store(pointer + behind, tl.full([PADDING], fill, tl.float32), mask=behind < padded)
