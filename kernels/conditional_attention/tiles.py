"""Loading and storing tiles of (B, H, N, D) tensors with any strides: ROWS rows of one head at a time.

Kernels get a tensor as a view: its pointer and its strides. A view of a head is a pointer and the strides of rows and
columns.
"""

import triton
import triton.language as tl


@triton.jit
def head_of(view, head, heads):
    """View of the head ``head`` = batch * heads + h of a (B, H, N, D) view."""
    pointer, strides = view
    start = (head // heads).to(tl.int64) * strides[0] + (head % heads).to(tl.int64) * strides[1]
    return pointer + start, strides[2], strides[3]


@triton.jit
def tile_pointers(view_of_head, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers (ROWS, COLUMNS) to the elements of a tile. Only its scalar start depends on ``first``, to be cheap."""
    pointer, row_stride, column_stride = view_of_head
    start = pointer + tl.cast(first, tl.int64) * row_stride
    rows = tl.arange(0, ROWS)[:, None].to(tl.int64) * row_stride
    return start + (rows + tl.arange(0, COLUMNS)[None, :].to(tl.int64) * column_stride)


@triton.jit
def tile_inside(first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mask (ROWS, COLUMNS) of the elements that exist; COLUMNS is DIM rounded up to a block."""
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
    """Loads the rows [first, first + ROWS) of a head, 0 where there are none; with WHOLE, all of them must exist."""
    pointers = tile_pointers(view_of_head, first, ROWS, COLUMNS)
    if WHOLE and DIM == COLUMNS:
        return tl.load(pointers)
    if WHOLE:
        return tl.load(pointers, mask=(tl.arange(0, COLUMNS) < DIM)[None, :], other=0.0)
    return tl.load(pointers, mask=tile_inside(first, length, DIM, ROWS, COLUMNS), other=0.0)


@triton.jit
def store_tile(view_of_head, tile, first, length, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores a tile in the rows [first, first + ROWS) of a head, in the dtype of the tensor, where they exist."""
    pointers = tile_pointers(view_of_head, first, ROWS, COLUMNS)
    inside = tile_inside(first, length, DIM, ROWS, COLUMNS)
    tl.store(pointers, tile.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def add_tile(view_of_head, tile, first, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds a tile atomically to the rows [first, first + ROWS) of a head, all of which must exist."""
    pointers = tile_pointers(view_of_head, first, ROWS, COLUMNS)
    if DIM == COLUMNS:
        tl.atomic_add(pointers, tile, sem="relaxed")
    else:
        tl.atomic_add(pointers, tile, mask=(tl.arange(0, COLUMNS) < DIM)[None, :], sem="relaxed")


@triton.jit
def padded_rows(head, length, PADDING: tl.constexpr):
    """Offset of a head in an array with a number per row, padded to a multiple of PADDING rows per head."""
    return tl.cast(head, tl.int64) * (tl.cdiv(length, PADDING) * PADDING)


@triton.jit
def store_rows(pointer, rows, first, length, fill, ROWS: tl.constexpr, PADDING: tl.constexpr):
    """Stores an fp32 number per row of a tile, and ``fill`` in the padding to a multiple of PADDING rows.

    Due to the padding, kernels read whole tiles of the array without a mask, in vectorised loads.
    """
    index = first + tl.arange(0, ROWS)
    padded = tl.cdiv(length, PADDING) * PADDING
    tl.store(pointer + index, tl.where(index < length, rows, fill), mask=index < padded)
    if first + ROWS >= length:
        behind = first + ROWS + tl.arange(0, PADDING)
        tl.store(pointer + behind, tl.full([PADDING], fill, tl.float32), mask=behind < padded)
