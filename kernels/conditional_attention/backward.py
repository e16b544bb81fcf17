"""Gradients of fused conditional cross-attention, by recomputing the weights from the log-sum-exp (Dao et al., 2022).

Two ways. Deterministic: one kernel walks over keys and gathers the gradients of queries, a second walks over queries
and gathers those of keys and values; every score is computed twice. In one pass: the second kernel alone, which adds
its share of the gradients of queries atomically in fp32, so their last bits depend on the order of programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cond_detr_kernels.conditional_attention.dropout import dropped
from cond_detr_kernels.conditional_attention.launch import Launch, head_dims, scoring, views
from cond_detr_kernels.conditional_attention.masking import prepare_mask
from cond_detr_kernels.conditional_attention.problem import Problem
from cond_detr_kernels.conditional_attention.tiles import (
    head_pointer,
    load_tile,
    store_rows,
    store_tile,
    tile_inside,
    tile_offsets,
)
from cond_detr_kernels.conditional_attention.tuning import Tuning, options


@triton.jit(do_not_specialize=["drop_below"])
def backward_queries_kernel(
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
    grad_out,
    delta,
    grad_q_content,
    grad_q_spatial,
    q_content_strides,
    q_spatial_strides,
    k_content_strides,
    k_spatial_strides,
    value_strides,
    out_strides,
    grad_out_strides,
    grad_q_content_strides,
    grad_q_spatial_strides,
    heads,
    queries,
    keys,
    bias_length,
    scale,
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
    """One program: the gradients of BLOCK_M queries of one head; leaves ``delta`` (B, H, padded N) for the next."""
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    batch = (head // heads).to(tl.int64)
    in_query = tl.arange(0, BLOCK_M)
    in_key = tl.arange(0, BLOCK_N)
    query_index = first_query + in_query
    q_content = head_pointer(q_content, q_content_strides, head, heads)
    q_spatial = head_pointer(q_spatial, q_spatial_strides, head, heads)
    k_content = head_pointer(k_content, k_content_strides, head, heads)
    k_spatial = head_pointer(k_spatial, k_spatial_strides, head, heads)
    value = head_pointer(value, value_strides, head, heads)
    out = head_pointer(out, out_strides, head, heads)
    grad_out = head_pointer(grad_out, grad_out_strides, head, heads)
    grad_q_content = head_pointer(grad_q_content, grad_q_content_strides, head, heads)
    grad_q_spatial = head_pointer(grad_q_spatial, grad_q_spatial_strides, head, heads)

    qc = load_tile(q_content, q_content_strides, first_query, queries, CONTENT_DIM, BLOCK_M, CONTENT_BLOCK)
    qs = load_tile(q_spatial, q_spatial_strides, first_query, queries, SPATIAL_DIM, BLOCK_M, SPATIAL_BLOCK)
    do = load_tile(grad_out, grad_out_strides, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
    o = load_tile(out, out_strides, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    first_row = head.to(tl.int64) * tl.cdiv(queries, ROW_PADDING) * ROW_PADDING
    store_rows(delta + first_row, row_delta, first_query, queries, 0.0, BLOCK_M, ROW_PADDING)
    row_lse = tl.load(lse + first_row + query_index)

    end = keys
    flag = 0
    if HAS_MASK:
        bias += batch * bias_length
        flags += batch * (bias_length // BLOCK_N)
        end = tl.load(ends + batch)
        flag = tl.load(flags)
    keep_factor = 1.0
    if DROPOUT:
        seed_value = tl.load(seed)
        keep_factor = 65536.0 / (65536 - drop_below)
    last_tile = tl.cdiv(end, BLOCK_N)
    grad_qc = tl.zeros([BLOCK_M, CONTENT_BLOCK], tl.float32)
    grad_qs = tl.zeros([BLOCK_M, SPATIAL_BLOCK], tl.float32)
    for tile in range(0, last_tile):
        first_key = tile * BLOCK_N
        key_index = first_key + in_key
        kc = load_tile(k_content, k_content_strides, first_key, keys, CONTENT_DIM, BLOCK_N, CONTENT_BLOCK)
        ks = load_tile(k_spatial, k_spatial_strides, first_key, keys, SPATIAL_DIM, BLOCK_N, SPATIAL_BLOCK)
        v = load_tile(value, value_strides, first_key, keys, VALUE_DIM, BLOCK_N, VALUE_BLOCK)
        scores = tl.dot(qc, tl.trans(kc), input_precision=PRECISION)
        scores = tl.dot(qs, tl.trans(ks), scores, input_precision=PRECISION)
        if HAS_MASK:
            if flag != 0:
                scores += tl.load(bias + key_index)[None, :]
            flag = tl.load(flags + tile + 1, mask=tile + 1 < last_tile, other=0)
        elif first_key + BLOCK_N > keys:
            scores += tl.where(key_index < keys, 0.0, float("-inf"))[None, :]
        weights = tl.exp2(scores * scale_log2 - row_lse[:, None])
        grad_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            drop = dropped(seed_value, head, first_query, first_key, in_query[:, None], in_key[None, :], drop_below)
            grad_weights = tl.where(drop, 0.0, grad_weights) * keep_factor
        grad_scores = (weights * (grad_weights - row_delta[:, None])).to(kc.dtype)
        grad_qc = tl.dot(grad_scores, kc, grad_qc, input_precision=PRECISION)
        grad_qs = tl.dot(grad_scores, ks, grad_qs, input_precision=PRECISION)
    store_tile(
        grad_q_content,
        grad_q_content_strides,
        grad_qc * scale,
        first_query,
        queries,
        CONTENT_DIM,
        BLOCK_M,
        CONTENT_BLOCK,
    )
    store_tile(
        grad_q_spatial,
        grad_q_spatial_strides,
        grad_qs * scale,
        first_query,
        queries,
        SPATIAL_DIM,
        BLOCK_M,
        SPATIAL_BLOCK,
    )


@triton.jit
def delta_kernel(
    out,
    grad_out,
    delta,
    grad_q_content,
    grad_q_spatial,
    out_strides,
    grad_out_strides,
    grad_q_content_strides,
    grad_q_spatial_strides,
    heads,
    queries,
    CONTENT_DIM: tl.constexpr,
    SPATIAL_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    CONTENT_BLOCK: tl.constexpr,
    SPATIAL_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Before one pass: ``delta`` (B, H, padded N), sums of out * grad_out, and zeros where programs will add up."""
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    o = load_tile(
        head_pointer(out, out_strides, head, heads), out_strides, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK
    )
    do = load_tile(
        head_pointer(grad_out, grad_out_strides, head, heads),
        grad_out_strides,
        first_query,
        queries,
        VALUE_DIM,
        BLOCK_M,
        VALUE_BLOCK,
    )
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    first_row = head.to(tl.int64) * tl.cdiv(queries, ROW_PADDING) * ROW_PADDING
    store_rows(delta + first_row, row_delta, first_query, queries, 0.0, BLOCK_M, ROW_PADDING)
    grad_q_content = head_pointer(grad_q_content, grad_q_content_strides, head, heads)
    grad_q_spatial = head_pointer(grad_q_spatial, grad_q_spatial_strides, head, heads)
    content_zeros = tl.zeros([BLOCK_M, CONTENT_BLOCK], tl.float32)
    spatial_zeros = tl.zeros([BLOCK_M, SPATIAL_BLOCK], tl.float32)
    store_tile(
        grad_q_content, grad_q_content_strides, content_zeros, first_query, queries, CONTENT_DIM, BLOCK_M, CONTENT_BLOCK
    )
    store_tile(
        grad_q_spatial, grad_q_spatial_strides, spatial_zeros, first_query, queries, SPATIAL_DIM, BLOCK_M, SPATIAL_BLOCK
    )


@triton.jit(do_not_specialize=["drop_below"])
def backward_keys_kernel(
    q_content,
    q_spatial,
    k_content,
    k_spatial,
    value,
    bias,
    flags,
    ends,
    seed,
    lse,
    grad_out,
    delta,
    grad_q_content,
    grad_q_spatial,
    grad_k_content,
    grad_k_spatial,
    grad_value,
    q_content_strides,
    q_spatial_strides,
    k_content_strides,
    k_spatial_strides,
    value_strides,
    grad_out_strides,
    grad_q_content_strides,
    grad_q_spatial_strides,
    grad_k_content_strides,
    grad_k_spatial_strides,
    grad_value_strides,
    heads,
    queries,
    keys,
    bias_length,
    scale,
    scale_log2,
    drop_below,
    CONTENT_DIM: tl.constexpr,
    SPATIAL_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    CONTENT_BLOCK: tl.constexpr,
    SPATIAL_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    ADD_QUERIES: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradients of BLOCK_N keys and values of one head.

    Tiles are (keys, queries), so that they are left operands of the products as they are. With ADD_QUERIES the
    gradients of queries are added to ``grad_q_content`` and ``grad_q_spatial``, fp32.
    """
    head = tl.program_id(0)
    first_key = tl.program_id(1) * BLOCK_N
    batch = (head // heads).to(tl.int64)
    in_query = tl.arange(0, BLOCK_M)
    in_key = tl.arange(0, BLOCK_N)
    key_index = first_key + in_key
    q_content = head_pointer(q_content, q_content_strides, head, heads)
    q_spatial = head_pointer(q_spatial, q_spatial_strides, head, heads)
    grad_out = head_pointer(grad_out, grad_out_strides, head, heads)
    first_row = head.to(tl.int64) * tl.cdiv(queries, ROW_PADDING) * ROW_PADDING
    lse += first_row
    delta += first_row
    if ADD_QUERIES:
        grad_q_content = head_pointer(grad_q_content, grad_q_content_strides, head, heads)
        grad_q_spatial = head_pointer(grad_q_spatial, grad_q_spatial_strides, head, heads)
    k_content = head_pointer(k_content, k_content_strides, head, heads)
    k_spatial = head_pointer(k_spatial, k_spatial_strides, head, heads)
    value = head_pointer(value, value_strides, head, heads)
    kc = load_tile(k_content, k_content_strides, first_key, keys, CONTENT_DIM, BLOCK_N, CONTENT_BLOCK)
    ks = load_tile(k_spatial, k_spatial_strides, first_key, keys, SPATIAL_DIM, BLOCK_N, SPATIAL_BLOCK)
    v = load_tile(value, value_strides, first_key, keys, VALUE_DIM, BLOCK_N, VALUE_BLOCK)

    key_bias = tl.where(key_index < keys, 0.0, float("-inf"))
    flag = (first_key + BLOCK_N > keys).to(tl.int32)
    end = keys
    if HAS_MASK:
        key_bias = tl.load(bias + batch * bias_length + key_index)
        flag = tl.load(flags + batch * (bias_length // BLOCK_N) + tl.program_id(1))
        end = tl.load(ends + batch)
    keep_factor = 1.0
    if DROPOUT:
        seed_value = tl.load(seed)
        zero = scale_log2 * 0.0  # unknown to the compiler, see the forward kernel
        keep_factor = 65536.0 / (65536 - drop_below)
    grad_kc = tl.zeros([BLOCK_N, CONTENT_BLOCK], tl.float32)
    grad_ks = tl.zeros([BLOCK_N, SPATIAL_BLOCK], tl.float32)
    grad_v = tl.zeros([BLOCK_N, VALUE_BLOCK], tl.float32)
    for first_query in range(0, tl.where(first_key < end, queries, 0), BLOCK_M):
        query_index = first_query + in_query
        qc = load_tile(q_content, q_content_strides, first_query, queries, CONTENT_DIM, BLOCK_M, CONTENT_BLOCK)
        qs = load_tile(q_spatial, q_spatial_strides, first_query, queries, SPATIAL_DIM, BLOCK_M, SPATIAL_BLOCK)
        do = load_tile(grad_out, grad_out_strides, first_query, queries, VALUE_DIM, BLOCK_M, VALUE_BLOCK)
        row_lse = tl.load(lse + query_index)
        row_delta = tl.load(delta + query_index)
        scores = tl.dot(kc, tl.trans(qc), input_precision=PRECISION)
        scores = tl.dot(ks, tl.trans(qs), scores, input_precision=PRECISION)
        if ADD_QUERIES:
            # without it a masked key spoils no more than its own gradients, which are cleared at the end
            if flag != 0:
                scores += key_bias[:, None]
        weights = tl.exp2(scores * scale_log2 - row_lse[None, :])
        grad_weights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        if DROPOUT:
            drop = dropped(seed_value, head, first_query, first_key, in_query[None, :], in_key[:, None], drop_below)
            grad_v = tl.dot(tl.where(drop, zero, weights).to(do.dtype), do, grad_v, input_precision=PRECISION)
            grad_weights = tl.where(drop, 0.0, grad_weights) * keep_factor
        else:
            grad_v = tl.dot(weights.to(do.dtype), do, grad_v, input_precision=PRECISION)
        grad_scores = (weights * (grad_weights - row_delta[None, :])).to(qc.dtype)
        grad_kc = tl.dot(grad_scores, qc, grad_kc, input_precision=PRECISION)
        grad_ks = tl.dot(grad_scores, qs, grad_ks, input_precision=PRECISION)
        if ADD_QUERIES:
            by_query = tl.trans(grad_scores)
            grad_qc = tl.dot(by_query, kc, input_precision=PRECISION) * scale
            tl.atomic_add(
                grad_q_content + tile_offsets(grad_q_content_strides, first_query, BLOCK_M, CONTENT_BLOCK),
                grad_qc,
                mask=tile_inside(first_query, queries, CONTENT_DIM, BLOCK_M, CONTENT_BLOCK),
                sem="relaxed",
            )
            grad_qs = tl.dot(by_query, ks, input_precision=PRECISION) * scale
            tl.atomic_add(
                grad_q_spatial + tile_offsets(grad_q_spatial_strides, first_query, BLOCK_M, SPATIAL_BLOCK),
                grad_qs,
                mask=tile_inside(first_query, queries, SPATIAL_DIM, BLOCK_M, SPATIAL_BLOCK),
                sem="relaxed",
            )
    counts = (key_bias == 0.0)[:, None]
    grad_k_content = head_pointer(grad_k_content, grad_k_content_strides, head, heads)
    grad_k_spatial = head_pointer(grad_k_spatial, grad_k_spatial_strides, head, heads)
    grad_value = head_pointer(grad_value, grad_value_strides, head, heads)
    grad_kc = tl.where(counts, grad_kc * scale, 0.0)
    grad_ks = tl.where(counts, grad_ks * scale, 0.0)
    grad_v = tl.where(counts, grad_v * keep_factor, 0.0)
    store_tile(grad_k_content, grad_k_content_strides, grad_kc, first_key, keys, CONTENT_DIM, BLOCK_N, CONTENT_BLOCK)
    store_tile(grad_k_spatial, grad_k_spatial_strides, grad_ks, first_key, keys, SPATIAL_DIM, BLOCK_N, SPATIAL_BLOCK)
    store_tile(grad_value, grad_value_strides, grad_v, first_key, keys, VALUE_DIM, BLOCK_N, VALUE_BLOCK)


def backward_launches(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, tuning: Tuning, deterministic: bool
) -> tuple[list[Launch], list[Tensor], list[Tensor]]:
    """What to launch, and what it fills: gradients of q_content, q_spatial in ``query_dtype``, and of keys and value.

    In one pass the gradients of queries are sums in fp32, which the caller rounds to the dtype of the operands.
    """
    batch, heads, queries, keys = problem.sizes
    content_dim, spatial_dim, value_dim = problem.dims
    dtype = problem.value.dtype
    query_dtype = dtype if deterministic else torch.float32
    grad_queries = [problem.new_like_heads(queries, dim, query_dtype) for dim in (content_dim, spatial_dim)]
    grad_keys = [problem.new_like_heads(keys, dim, dtype) for dim in (content_dim, spatial_dim, value_dim)]
    shared = {
        **views(grad_out=grad_out, grad_q_content=grad_queries[0], grad_q_spatial=grad_queries[1]),
        "delta": torch.empty_like(lse),
        "heads": heads,
        "queries": queries,
        **head_dims(problem),
    }
    if deterministic:
        launches = queries_launches(problem, shared, out, lse, tuning)
    else:
        block_m = 64
        arguments = {**shared, **views(out=out), "BLOCK_M": block_m}
        launches = [Launch(delta_kernel, (batch * heads, triton.cdiv(queries, block_m)), arguments)]
    blocks = tuning.backward_keys if deterministic else tuning.backward
    preparation, key_mask = prepare_mask(problem.key_padding_mask, blocks.keys)
    arguments = {
        **shared,
        **scoring(problem, key_mask),
        **views(grad_k_content=grad_keys[0], grad_k_spatial=grad_keys[1], grad_value=grad_keys[2]),
        "lse": lse,
        "scale": problem.scale,
        "ADD_QUERIES": not deterministic,
        **options(blocks),
    }
    last = Launch(backward_keys_kernel, (batch * heads, triton.cdiv(keys, blocks.keys)), arguments)
    return [*launches, *preparation, last], grad_queries, grad_keys


def queries_launches(
    problem: Problem, shared: dict[str, Any], out: Tensor, lse: Tensor, tuning: Tuning
) -> list[Launch]:
    batch, heads, queries, _ = problem.sizes
    blocks = tuning.backward_queries
    launches, key_mask = prepare_mask(problem.key_padding_mask, blocks.keys)
    arguments = {
        **shared,
        **scoring(problem, key_mask),
        **views(out=out),
        "lse": lse,
        "scale": problem.scale,
        **options(blocks),
    }
    grid = (batch * heads, triton.cdiv(queries, blocks.queries))
    return [*launches, Launch(backward_queries_kernel, grid, arguments)]
