"""Fused conditional cross-attention, forward: online softmax over tiles of keys (Milakov and Gimelshein, 2018).

Scores stay in registers. They are kept without their scale, which is folded into the exponential together with the
factor log2(e): exp(scale * (s - m)) = exp2(s * c - m * c), one multiply-add and one exp2 per score.
"""

import triton
import triton.language as tl
from torch import Tensor

from cond_detr_kernels.conditional_attention.dropout import dropped, head_threshold
from cond_detr_kernels.conditional_attention.launch import Launch, column_block, scoring, view
from cond_detr_kernels.conditional_attention.masking import flag_at, mask_of
from cond_detr_kernels.conditional_attention.problem import ROW_PADDING, Problem
from cond_detr_kernels.conditional_attention.scores import heads_of, load_parts, product, score
from cond_detr_kernels.conditional_attention.tiles import head_of, load_tile, padded_rows, store_rows, store_tile
from cond_detr_kernels.conditional_attention.tuning import Tuning, key_splits, options

# Keys of the tiles behind the last whole one
TAIL = 32


@triton.jit
def attend(
    so_far,
    q_tile,
    k,
    value,
    bias,
    flag,
    draws,
    first_key,
    keys,
    scale_log2,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One step of online softmax over BLOCK_N keys; ``so_far`` are output, maximum and sum of weights of each row."""
    acc, row_max, row_sum = so_far
    in_key = tl.arange(0, BLOCK_N)
    scores = score(q_tile, load_parts(k, first_key, keys, DIMS, BLOCKS, BLOCK_N, WHOLE), DIMS, PRECISION)
    if HAS_MASK:
        if flag != 0:
            scores += tl.load(bias + first_key + in_key)[None, :]
    elif not WHOLE:
        scores += tl.where(in_key < keys - first_key, 0.0, float("-inf"))[None, :]
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shift = new_max * scale_log2
    if HAS_MASK:
        # while no key has counted yet, any finite number will do
        shift = tl.where(new_max == float("-inf"), 0.0, shift)
    weights = tl.exp2(scores * scale_log2 - shift[:, None])
    rescale = tl.exp2(row_max * scale_log2 - shift)
    row_sum = row_sum * rescale + tl.sum(weights, 1)
    if DROPOUT:
        seed, head, first_query, threshold = draws
        in_query = tl.arange(0, BLOCK_M)
        drop = dropped(seed, head, first_query, first_key, in_query[:, None], in_key[None, :], threshold)
        # A zero that the compiler does not know: it would move the selection of a literal behind the rounding of
        # weights to half precision, where that costs 3 instructions more for two scores
        weights = tl.where(drop, scale_log2 * 0.0, weights)
    v = load_tile(value, first_key, keys, DIMS[2], BLOCK_N, BLOCKS[2], WHOLE)
    acc = product(weights.to(v.dtype), v, acc * rescale[:, None], PRECISION)
    return acc, new_max, row_sum


@triton.jit(do_not_specialize=["drop_below"])
def forward_kernel(
    q,
    k,
    value,
    mask,
    seed,
    out,
    lse,
    mask_width,
    heads,
    queries,
    keys,
    tiles_per_split,
    scale_log2,
    drop_below,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Forward; one program computes BLOCK_M queries of one head with the keys of one split.

    ``out`` (splits, B, H, N, Dv) is normalised within a split. ``lse`` (splits, B, H, padded N) is the base-2
    log-sum-exp of the split's scores, plus infinity where all keys are masked; N is padded to a multiple of
    ROW_PADDING.
    """
    HAS_MASK: tl.constexpr = mask is not None
    DROPOUT: tl.constexpr = seed is not None
    VALUE_BLOCK: tl.constexpr = BLOCKS[2]
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    split = tl.program_id(2)
    k_heads = heads_of(k, head, heads)
    value_head = head_of(value, head, heads)
    q_tile = load_parts(heads_of(q, head, heads), first_query, queries, DIMS, BLOCKS, BLOCK_M)

    end = keys
    bias = mask
    flag = 0.0
    draws = (0, 0, 0, 0)
    first_tile = split * tiles_per_split
    if HAS_MASK:
        bias, flags, end = mask_of(mask, (head // heads).to(tl.int64), keys, mask_width)
        flag = flag_at(flags, first_tile * BLOCK_N)
    if DROPOUT:
        seed_value = tl.load(seed)
        draws = (seed_value, head, first_query, head_threshold(seed_value, head, drop_below))
    end = tl.minimum(end, (first_tile + tiles_per_split) * BLOCK_N)
    whole_tiles = tl.minimum(tl.cdiv(end, BLOCK_N), keys // BLOCK_N)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, VALUE_BLOCK], tl.float32)
    for tile in range(first_tile, whole_tiles):
        acc, row_max, row_sum = attend(
            (acc, row_max, row_sum),
            q_tile,
            k_heads,
            value_head,
            bias,
            flag,
            draws,
            tile * BLOCK_N,
            keys,
            scale_log2,
            DIMS,
            BLOCKS,
            HAS_MASK,
            DROPOUT,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            True,
        )
        if HAS_MASK:
            # fetched a tile ahead, to be there when it is asked for
            flag = flag_at(flags, (tile + 1) * BLOCK_N)
    for first_key in tl.range(tl.maximum(first_tile, whole_tiles) * BLOCK_N, end, TAIL, num_stages=1):
        acc, row_max, row_sum = attend(
            (acc, row_max, row_sum),
            q_tile,
            k_heads,
            value_head,
            bias,
            1.0,
            draws,
            first_key,
            keys,
            scale_log2,
            DIMS,
            BLOCKS,
            HAS_MASK,
            DROPOUT,
            PRECISION,
            BLOCK_M,
            TAIL,
            False,
        )

    acc = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    if DROPOUT:
        acc = acc * (256.0 / (256 - draws[3]))
    row_lse = tl.where(row_sum == 0.0, float("inf"), row_max * scale_log2 + tl.log2(row_sum))
    part = split * tl.num_programs(0) + head
    store_tile(head_of(out, part, heads), acc, first_query, queries, DIMS[2], BLOCK_M, BLOCKS[2])
    lse += padded_rows(part, queries, ROW_PADDING)
    store_rows(lse, row_lse, first_query, queries, float("inf"), BLOCK_M, ROW_PADDING)


@triton.jit
def combine_kernel(
    partial_out,
    partial_lse,
    out,
    lse,
    heads,
    queries,
    splits,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Combines the results of the splits; one program computes BLOCK_M queries of one head."""
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    query_index = first_query + tl.arange(0, BLOCK_M)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, VALUE_BLOCK], tl.float32)
    for split in range(0, splits):
        part = split * tl.num_programs(0) + head
        part_lse = tl.load(partial_lse + padded_rows(part, queries, ROW_PADDING) + query_index)
        part_lse = tl.where(part_lse == float("inf"), float("-inf"), part_lse)
        part_head = head_of(partial_out, part, heads)
        part_out = load_tile(part_head, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
        new_max = tl.maximum(row_max, part_lse)
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        weight = tl.exp2(part_lse - shift)
        rescale = tl.exp2(row_max - shift)
        row_sum = row_sum * rescale + weight
        acc = acc * rescale[:, None] + part_out * weight[:, None]
        row_max = new_max
    acc = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    row_lse = tl.where(row_sum == 0.0, float("inf"), row_max + tl.log2(row_sum))
    store_tile(head_of(out, head, heads), acc, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
    lse += padded_rows(head, queries, ROW_PADDING)
    store_rows(lse, row_lse, first_query, queries, float("inf"), BLOCK_M, ROW_PADDING)


def forward_launches(problem: Problem, tuning: Tuning, multiprocessors: int) -> tuple[list[Launch], Tensor, Tensor]:
    """Prepares the launches of the forward kernels.

    Args:
        problem: the arguments of the call.
        tuning: kernel configurations.
        multiprocessors: number of streaming multiprocessors.

    Returns:
        The launches, the output (B, H, N, Dv), and the base-2 log-sum-exp of the scores (B, H, padded N).
    """
    batch, heads, queries, keys = problem.sizes
    value_dim = problem.dims[2]
    blocks = tuning.forward
    tiles = triton.cdiv(keys, blocks.keys)
    tiles_per_split = triton.cdiv(tiles, tuning.splits or key_splits(problem, blocks, multiprocessors))
    splits = triton.cdiv(tiles, tiles_per_split)

    out = problem.new_like_heads(queries, value_dim, problem.value.dtype)
    lse = problem.new_rows()
    partial_out, partial_lse = out, lse
    if splits > 1:
        partial_out = lse.new_empty(splits * batch, heads, queries, value_dim)
        partial_lse = lse.new_empty(splits * batch, *lse.shape[1:])
    arguments = {
        **scoring(problem),
        "out": view(partial_out),
        "lse": partial_lse,
        "tiles_per_split": tiles_per_split,
        "TAIL": min(TAIL, blocks.keys),
        **options(blocks),
    }
    launches = [Launch(forward_kernel, (batch * heads, triton.cdiv(queries, blocks.queries), splits), arguments)]
    if splits > 1:
        launches.append(combine_launch(partial_out, partial_lse, out, lse, splits))
    return launches, out, lse


def combine_launch(partial_out: Tensor, partial_lse: Tensor, out: Tensor, lse: Tensor, splits: int) -> Launch:
    """Launch of :func:`combine_kernel`.

    Args:
        partial_out: (splits * B, H, N, Dv) fp32 outputs of the splits.
        partial_lse: (splits * B, H, padded N) base-2 log-sum-exp of the splits.
        out: (B, H, N, Dv), filled by the kernel.
        lse: (B, H, padded N), filled by the kernel.
        splits: number of splits.
    """
    batch, heads, queries, value_dim = out.shape
    block_m = 16
    arguments = {
        "partial_out": view(partial_out),
        "partial_lse": partial_lse,
        "out": view(out),
        "lse": lse,
        "heads": heads,
        "queries": queries,
        "splits": splits,
        "VALUE_DIM": value_dim,
        "VALUE_BLOCK": column_block(value_dim),
        "ROW_PADDING": ROW_PADDING,
        "BLOCK_M": block_m,
    }
    return Launch(combine_kernel, (batch * heads, triton.cdiv(queries, block_m)), arguments)
