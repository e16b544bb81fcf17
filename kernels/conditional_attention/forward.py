"""Fused conditional cross-attention, forward: online softmax over tiles of keys (Milakov and Gimelshein, 2018).

Scores stay in registers. They are kept without their scale, which is folded into the exponential together with the
factor log2(e): exp(scale * (s - m)) = exp2(s * c - m * c), one multiply-add and one exp2 per score.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cond_detr_kernels.conditional_attention.dropout import dropped
from cond_detr_kernels.conditional_attention.launch import Launch, column_block, scoring, views
from cond_detr_kernels.conditional_attention.masking import prepare_mask
from cond_detr_kernels.conditional_attention.problem import ROW_PADDING, Problem
from cond_detr_kernels.conditional_attention.tiles import head_pointer, load_tile, store_rows, store_tile
from cond_detr_kernels.conditional_attention.tuning import Tuning, options


@triton.jit(do_not_specialize=["drop_below"])
def forward_kernel(
    q_content,
    q_spatial,
    k_content,
    k_spatial,
    value,
    bias,
    flags,
    ends,
    seed,
    out,
    lse,
    q_content_strides,
    q_spatial_strides,
    k_content_strides,
    k_spatial_strides,
    value_strides,
    out_strides,
    heads,
    queries,
    keys,
    bias_length,
    tiles_per_split,
    scale_log2,
    drop_below,
    CONTENT_DIM: tl.constexpr,
    SPATIAL_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    CONTENT_BLOCK: tl.constexpr,
    SPATIAL_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M queries of one head against the keys of one split.

    ``out`` (splits, B, H, N, Dv) is normalised within a split; ``lse`` (splits, B, H, N) is its log2 of the sum of
    exponentials, plus infinity where no key counts, its rows padded to a multiple of ROW_PADDING.
    """
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    split = tl.program_id(2)
    batch = (head // heads).to(tl.int64)
    in_query = tl.arange(0, BLOCK_M)
    in_key = tl.arange(0, BLOCK_N)
    q_content = head_pointer(q_content, q_content_strides, head, heads)
    q_spatial = head_pointer(q_spatial, q_spatial_strides, head, heads)
    k_content = head_pointer(k_content, k_content_strides, head, heads)
    k_spatial = head_pointer(k_spatial, k_spatial_strides, head, heads)
    value = head_pointer(value, value_strides, head, heads)
    qc = load_tile(q_content, q_content_strides, first_query, queries, CONTENT_DIM, BLOCK_M, CONTENT_BLOCK)
    qs = load_tile(q_spatial, q_spatial_strides, first_query, queries, SPATIAL_DIM, BLOCK_M, SPATIAL_BLOCK)

    first_tile = split * tiles_per_split
    end = keys
    flag = 0
    if HAS_MASK:
        bias += batch * bias_length
        flags += batch * (bias_length // BLOCK_N)
        end = tl.load(ends + batch)
        flag = tl.load(flags + first_tile)
    if DROPOUT:
        seed_value = tl.load(seed)
        # A zero that the compiler does not know: it would move the selection of a literal behind the rounding of
        # weights to half precision, where that costs 3 instructions more for two scores
        zero = scale_log2 * 0.0
    last_tile = tl.minimum(first_tile + tiles_per_split, tl.cdiv(end, BLOCK_N))
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, VALUE_BLOCK], tl.float32)
    for tile in range(first_tile, last_tile):
        first_key = tile * BLOCK_N
        key_index = first_key + in_key
        kc = load_tile(k_content, k_content_strides, first_key, keys, CONTENT_DIM, BLOCK_N, CONTENT_BLOCK)
        ks = load_tile(k_spatial, k_spatial_strides, first_key, keys, SPATIAL_DIM, BLOCK_N, SPATIAL_BLOCK)
        scores = tl.dot(qc, tl.trans(kc), input_precision=PRECISION)
        scores = tl.dot(qs, tl.trans(ks), scores, input_precision=PRECISION)
        if HAS_MASK:
            if flag != 0:
                scores += tl.load(bias + key_index)[None, :]
            # fetched a tile ahead, to be there when it is asked for
            flag = tl.load(flags + tile + 1, mask=tile + 1 < last_tile, other=0)
        elif first_key + BLOCK_N > keys:
            scores += tl.where(key_index < keys, 0.0, float("-inf"))[None, :]
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        # while no key has counted yet, any finite number will do
        shift = tl.where(new_max == float("-inf"), 0.0, new_max) * scale_log2
        weights = tl.exp2(scores * scale_log2 - shift[:, None])
        rescale = tl.exp2(row_max * scale_log2 - shift)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
        if DROPOUT:
            drop = dropped(seed_value, head, first_query, first_key, in_query[:, None], in_key[None, :], drop_below)
            weights = tl.where(drop, zero, weights)
        v = load_tile(value, value_strides, first_key, keys, VALUE_DIM, BLOCK_N, VALUE_BLOCK)
        acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)

    acc = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    if DROPOUT:
        acc = acc * (65536.0 / (65536 - drop_below))
    row_lse = tl.where(row_sum == 0.0, float("inf"), row_max * scale_log2 + tl.log2(row_sum))
    out = head_pointer(out, out_strides, split * tl.num_programs(0) + head, heads)
    store_tile(out, out_strides, acc, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
    lse += (split * tl.num_programs(0) + head).to(tl.int64) * tl.cdiv(queries, ROW_PADDING) * ROW_PADDING
    store_rows(lse, row_lse, first_query, queries, float("inf"), BLOCK_M, ROW_PADDING)


@triton.jit
def combine_kernel(
    partial_out,
    partial_lse,
    out,
    lse,
    partial_strides,
    out_strides,
    heads,
    queries,
    splits,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Weighs what the splits of the keys found; one program: BLOCK_M queries of one head."""
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    query_index = first_query + tl.arange(0, BLOCK_M)
    padded = tl.cdiv(queries, ROW_PADDING) * ROW_PADDING
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, VALUE_BLOCK], tl.float32)
    for split in range(0, splits):
        part = split * tl.num_programs(0) + head
        part_lse = tl.load(partial_lse + part.to(tl.int64) * padded + query_index)
        part_lse = tl.where(part_lse == float("inf"), float("-inf"), part_lse)
        part_out = load_tile(
            head_pointer(partial_out, partial_strides, part, heads),
            partial_strides,
            first_query,
            queries,
            VALUE_DIM,
            BLOCK_M,
            VALUE_BLOCK,
        )
        new_max = tl.maximum(row_max, part_lse)
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        weight = tl.exp2(part_lse - shift)
        rescale = tl.exp2(row_max - shift)
        row_sum = row_sum * rescale + weight
        acc = acc * rescale[:, None] + part_out * weight[:, None]
        row_max = new_max
    acc = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    row_lse = tl.where(row_sum == 0.0, float("inf"), row_max + tl.log2(row_sum))
    out = head_pointer(out, out_strides, head, heads)
    store_tile(out, out_strides, acc, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
    store_rows(lse + head.to(tl.int64) * padded, row_lse, first_query, queries, float("inf"), BLOCK_M, ROW_PADDING)


def forward_launches(problem: Problem, tuning: Tuning, multiprocessors: int) -> tuple[list[Launch], Tensor, Tensor]:
    """What to launch, and what it fills: the output (B, H, N, Dv) and its log2-sum-exp (B, H, padded N)."""
    batch, heads, queries, keys = problem.sizes
    value_dim = problem.dims[2]
    blocks = tuning.forward
    if programs(problem, blocks.queries) < multiprocessors:
        blocks = tuning.forward_small
    tiles = triton.cdiv(keys, blocks.keys)
    tiles_per_split = triton.cdiv(tiles, key_splits(programs(problem, blocks.queries), tiles, multiprocessors))
    splits = triton.cdiv(tiles, tiles_per_split)

    out = problem.new_like_heads(queries, value_dim, problem.value.dtype)
    lse = problem.new_rows()
    partial_out, partial_lse = out, lse
    if splits > 1:
        partial_out = out.new_empty(splits * batch, heads, queries, value_dim, dtype=torch.float32)
        partial_lse = lse.new_empty(splits * batch, *lse.shape[1:])
    launches, key_mask = prepare_mask(problem.key_padding_mask, blocks.keys)
    arguments = {
        **scoring(problem, key_mask),
        **views(out=partial_out),
        "lse": partial_lse,
        "tiles_per_split": tiles_per_split,
        **options(blocks),
    }
    launches.append(Launch(forward_kernel, (batch * heads, triton.cdiv(queries, blocks.queries), splits), arguments))
    if splits > 1:
        launches.append(combine_launch(partial_out, partial_lse, out, lse, splits))
    return launches, out, lse


def programs(problem: Problem, block_m: int) -> int:
    """How many programs the forward kernel has without splitting the keys."""
    batch, heads, queries, _ = problem.sizes
    return triton.cdiv(queries, block_m) * batch * heads


def key_splits(programs: int, tiles: int, multiprocessors: int) -> int:
    """Among how many programs to split the keys: two programs for each multiprocessor, three tiles for each program."""
    return max(1, min(2 * multiprocessors // programs, tiles // 3))


def combine_launch(partial_out: Tensor, partial_lse: Tensor, out: Tensor, lse: Tensor, splits: int) -> Launch:
    batch, heads, queries, value_dim = out.shape
    block_m = 16
    arguments = {
        "partial_out": partial_out,
        "partial_lse": partial_lse,
        "partial_strides": partial_out.stride(),
        **views(out=out),
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
