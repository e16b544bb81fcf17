"""How kernels reach (B, H, N, D) views of any strides, one (rows, D) tile of one head at a time.

A view is what a kernel is given of a tensor: its pointer and its strides. A head of it is a pointer, and the strides
between rows and columns.
"""

import triton
import triton.language as tl


@triton.jit
def head_of(view, head, heads):
    """Head ``head`` = batch * heads + h of a (B, H, N, D) view."""
    pointer, strides = view
    start = (head // heads).to(tl.int64) * strides[0] + (head % heads).to(tl.int64) * strides[1]
    return pointer + start, strides[2], strides[3]


@triton.jit
def tile_pointers(view_of_head, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the elements of a tile are. Only the tile's start depends on ``first``: a scalar, which costs nothing."""
    pointer, row_stride, column_stride = view_of_head
    start = pointer + tl.cast(first, tl.int64) * row_stride
    rows = tl.arange(0, ROWS)[:, None].to(tl.int64) * row_stride
    return start + (rows + tl.arange(0, COLUMNS)[None, :].to(tl.int64) * column_stride)


@triton.jit
def tile_inside(first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which elements exist; COLUMNS is DIM rounded up to what tensor cores take."""
    inside = (tl.arange(0, ROWS) < length - first)[:, None]
    if DIM != COLUMNS:
        inside = inside & (tl.arange(0, COLUMNS) < DIM)[None, :]
    return inside


@triton.jit
def load_tile(
    view_of_head,
    first,
    length,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr = False,
):
    """Rows [first, first + ROWS) of a head, zero where there are none. WHOLE promises that there are all of them."""
    pointers = tile_pointers(view_of_head, first, ROWS, COLUMNS)
    if WHOLE and DIM == COLUMNS:
        return tl.load(pointers)
    if WHOLE:
        return tl.load(pointers, mask=(tl.arange(0, COLUMNS) < DIM)[None, :], other=0.0)
    return tl.load(pointers, mask=tile_inside(first, length, DIM, ROWS, COLUMNS), other=0.0)


@triton.jit
def store_tile(view_of_head, tile, first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    pointers = tile_pointers(view_of_head, first, ROWS, COLUMNS)
    inside = tile_inside(first, length, DIM, ROWS, COLUMNS)
    tl.store(pointers, tile.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def add_tile(view_of_head, tile, first, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds to what other programs add to as well; there is room for all rows."""
    pointers = tile_pointers(view_of_head, first, ROWS, COLUMNS)
    if DIM == COLUMNS:
        tl.atomic_add(pointers, tile, sem="relaxed")
    else:
        tl.atomic_add(pointers, tile, mask=(tl.arange(0, COLUMNS) < DIM)[None, :], sem="relaxed")


@triton.jit
def padded_rows(head, length, PADDING: tl.constexpr):
    """Where the rows of a head begin in an array with a number per row, see :func:`store_rows`."""
    return tl.cast(head, tl.int64) * (tl.cdiv(length, PADDING) * PADDING)


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
