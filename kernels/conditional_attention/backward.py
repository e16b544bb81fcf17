"""Gradients of fused conditional cross-attention, by recomputing the weights from the log-sum-exp (Dao et al., 2022).

There are two implementations. Deterministic: one kernel loops over keys and accumulates the gradients of queries, a
second one loops over queries and accumulates those of keys and values; every score is computed twice. In one pass: the
second kernel alone, which also adds to the gradients of queries atomically in fp32, so that their last bits depend on
the order of the programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cond_detr_kernels.conditional_attention.dropout import dropped, head_threshold
from cond_detr_kernels.conditional_attention.forward import TAIL
from cond_detr_kernels.conditional_attention.launch import Launch, head_dims, scoring, view
from cond_detr_kernels.conditional_attention.masking import flag_at, mask_of
from cond_detr_kernels.conditional_attention.problem import Problem
from cond_detr_kernels.conditional_attention.scores import heads_of, load_parts, product, score
from cond_detr_kernels.conditional_attention.tiles import (
    add_tile,
    head_of,
    load_tile,
    padded_rows,
    store_rows,
    store_tile,
)
from cond_detr_kernels.conditional_attention.tuning import Blocks, Tuning, options


@triton.jit
def store_parts(heads, content, spatial, first, length, DIMS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr):
    """Stores the gradients of the content part and, if there is one, of the spatial part."""
    store_tile(heads[0], content, first, length, DIMS[0], ROWS, BLOCKS[0])
    if DIMS[1] > 0:
        store_tile(heads[1], spatial, first, length, DIMS[1], ROWS, BLOCKS[1])


@triton.jit
def add_keys(
    grad_content,
    grad_spatial,
    q_tile,
    do,
    row_lse,
    row_delta,
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
    """Adds the contributions of BLOCK_N keys to the gradients of BLOCK_M queries."""
    in_key = tl.arange(0, BLOCK_N)
    k_tile = load_parts(k, first_key, keys, DIMS, BLOCKS, BLOCK_N, WHOLE)
    v = load_tile(value, first_key, keys, DIMS[2], BLOCK_N, BLOCKS[2], WHOLE)
    scores = score(q_tile, k_tile, DIMS, PRECISION)
    if HAS_MASK:
        if flag != 0:
            scores += tl.load(bias + first_key + in_key)[None, :]
    elif not WHOLE:
        scores += tl.where(in_key < keys - first_key, 0.0, float("-inf"))[None, :]
    weights = tl.exp2(scores * scale_log2 - row_lse[:, None])
    grad_weights = product(do, tl.trans(v), None, PRECISION)
    if DROPOUT:
        seed, head, first_query, threshold = draws
        in_query = tl.arange(0, BLOCK_M)
        drop = dropped(seed, head, first_query, first_key, in_query[:, None], in_key[None, :], threshold)
        grad_weights = tl.where(drop, 0.0, grad_weights) * (256.0 / (256 - threshold))
    grad_scores = (weights * (grad_weights - row_delta[:, None])).to(k_tile[0].dtype)
    grad_content = product(grad_scores, k_tile[0], grad_content, PRECISION)
    if DIMS[1] > 0:
        grad_spatial = product(grad_scores, k_tile[1], grad_spatial, PRECISION)
    return grad_content, grad_spatial


@triton.jit(do_not_specialize=["drop_below"])
def backward_queries_kernel(
    q,
    k,
    value,
    mask,
    seed,
    out,
    lse,
    grad_out,
    delta,
    scaled_lse,
    grad_q,
    mask_width,
    heads,
    queries,
    keys,
    scale,
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
    """Gradients of queries; one program computes those of BLOCK_M queries of one head.

    Also writes ``delta`` (B, H, padded N), the row sums of out * grad_out, and ``scaled_lse`` for the next kernel.
    """
    HAS_MASK: tl.constexpr = mask is not None
    DROPOUT: tl.constexpr = seed is not None
    CONTENT_BLOCK: tl.constexpr = BLOCKS[0]
    SPATIAL_BLOCK: tl.constexpr = BLOCKS[1]
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    k_heads = heads_of(k, head, heads)
    value_head = head_of(value, head, heads)
    q_tile = load_parts(heads_of(q, head, heads), first_query, queries, DIMS, BLOCKS, BLOCK_M)
    do = load_tile(head_of(grad_out, head, heads), first_query, queries, DIMS[2], BLOCK_M, BLOCKS[2])
    o = load_tile(head_of(out, head, heads), first_query, queries, DIMS[2], BLOCK_M, BLOCKS[2])
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    first_row = padded_rows(head, queries, ROW_PADDING)
    store_rows(delta + first_row, row_delta, first_query, queries, 0.0, BLOCK_M, ROW_PADDING)
    row_lse = tl.load(lse + first_row + first_query + tl.arange(0, BLOCK_M)) - tl.log2(scale)
    store_rows(scaled_lse + first_row, row_lse, first_query, queries, float("inf"), BLOCK_M, ROW_PADDING)

    end = keys
    bias = mask
    flag = 0.0
    draws = (0, 0, 0, 0)
    if HAS_MASK:
        bias, flags, end = mask_of(mask, (head // heads).to(tl.int64), keys, mask_width)
        flag = flag_at(flags, 0)
    if DROPOUT:
        seed_value = tl.load(seed)
        draws = (seed_value, head, first_query, head_threshold(seed_value, head, drop_below))
    whole_tiles = tl.minimum(tl.cdiv(end, BLOCK_N), keys // BLOCK_N)
    grad_qc = tl.zeros([BLOCK_M, CONTENT_BLOCK], tl.float32)
    grad_qs = tl.zeros([BLOCK_M, SPATIAL_BLOCK], tl.float32)
    for tile in range(0, whole_tiles):
        grad_qc, grad_qs = add_keys(
            grad_qc,
            grad_qs,
            q_tile,
            do,
            row_lse,
            row_delta,
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
            flag = flag_at(flags, (tile + 1) * BLOCK_N)
    for first_key in tl.range(whole_tiles * BLOCK_N, end, TAIL, num_stages=1):
        grad_qc, grad_qs = add_keys(
            grad_qc,
            grad_qs,
            q_tile,
            do,
            row_lse,
            row_delta,
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
    grad_heads = heads_of(grad_q, head, heads)
    store_parts(grad_heads, grad_qc, grad_qs, first_query, queries, DIMS, BLOCKS, BLOCK_M)


@triton.jit
def delta_kernel(
    out,
    lse,
    grad_out,
    delta,
    scaled_lse,
    grad_q,
    heads,
    queries,
    padded,
    scale,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Prepares one pass: ``delta``, ``scaled_lse``, and zeros in ``grad_q`` (B, H, padded N, D)."""
    CONTENT_BLOCK: tl.constexpr = BLOCKS[0]
    SPATIAL_BLOCK: tl.constexpr = BLOCKS[1]
    head = tl.program_id(0)
    first_query = tl.program_id(1) * BLOCK_M
    o = load_tile(head_of(out, head, heads), first_query, queries, DIMS[2], BLOCK_M, BLOCKS[2])
    do = load_tile(head_of(grad_out, head, heads), first_query, queries, DIMS[2], BLOCK_M, BLOCKS[2])
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    first_row = padded_rows(head, queries, ROW_PADDING)
    store_rows(delta + first_row, row_delta, first_query, queries, 0.0, BLOCK_M, ROW_PADDING)
    row_lse = tl.load(lse + first_row + first_query + tl.arange(0, BLOCK_M)) - tl.log2(scale)
    store_rows(scaled_lse + first_row, row_lse, first_query, queries, float("inf"), BLOCK_M, ROW_PADDING)
    content_zeros = tl.zeros([BLOCK_M, CONTENT_BLOCK], tl.float32)
    spatial_zeros = tl.zeros([BLOCK_M, SPATIAL_BLOCK], tl.float32)
    grad_heads = heads_of(grad_q, head, heads)
    store_parts(grad_heads, content_zeros, spatial_zeros, first_query, padded, DIMS, BLOCKS, BLOCK_M)


@triton.jit(do_not_specialize=["drop_below"])
def backward_keys_kernel(
    q,
    k,
    value,
    mask,
    seed,
    grad_out,
    delta,
    scaled_lse,
    grad_q,
    grad_k,
    grad_value,
    mask_width,
    heads,
    queries,
    keys,
    scale,
    scale_log2,
    drop_below,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ADD_QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of keys and values; one program computes those of BLOCK_N keys of one head.

    Tiles are (keys, queries), so that they can be left operands of products without a transposition. With ADD_QUERIES
    the gradients of queries are added to ``grad_q``, which is fp32 and padded to whole tiles.

    The scale of the scores is in ``scaled_lse``, the log-sum-exp minus log2(scale). So the weights are multiplied by
    the scale, as the gradients of queries and keys need it; only those of values are divided by it, at the end.
    """
    HAS_MASK: tl.constexpr = mask is not None
    DROPOUT: tl.constexpr = seed is not None
    CONTENT_BLOCK: tl.constexpr = BLOCKS[0]
    SPATIAL_BLOCK: tl.constexpr = BLOCKS[1]
    VALUE_BLOCK: tl.constexpr = BLOCKS[2]
    head = tl.program_id(0)
    first_key = tl.program_id(1) * BLOCK_N
    in_query = tl.arange(0, BLOCK_M)
    in_key = tl.arange(0, BLOCK_N)
    q_heads = heads_of(q, head, heads)
    grad_q_heads = heads_of(grad_q, head, heads)
    grad_out_head = head_of(grad_out, head, heads)
    first_row = padded_rows(head, queries, ROW_PADDING)
    scaled_lse += first_row
    delta += first_row
    k_tile = load_parts(heads_of(k, head, heads), first_key, keys, DIMS, BLOCKS, BLOCK_N)
    v = load_tile(head_of(value, head, heads), first_key, keys, DIMS[2], BLOCK_N, BLOCKS[2])

    key_bias = tl.where(first_key + in_key < keys, 0.0, float("-inf"))
    flag = (first_key + BLOCK_N > keys).to(tl.float32)
    end = keys
    if HAS_MASK:
        bias, flags, end = mask_of(mask, (head // heads).to(tl.int64), keys, mask_width)
        key_bias = tl.load(bias + first_key + in_key)
        flag = flag_at(flags, first_key)
    keep_factor = 1.0
    if DROPOUT:
        seed_value = tl.load(seed)
        threshold = head_threshold(seed_value, head, drop_below)
        keep_factor = 256.0 / (256 - threshold)
    grad_kc = tl.zeros([BLOCK_N, CONTENT_BLOCK], tl.float32)
    grad_ks = tl.zeros([BLOCK_N, SPATIAL_BLOCK], tl.float32)
    grad_v = tl.zeros([BLOCK_N, VALUE_BLOCK], tl.float32)
    for first_query in range(0, tl.where(first_key < end, queries, 0), BLOCK_M):
        q_tile = load_parts(q_heads, first_query, queries, DIMS, BLOCKS, BLOCK_M)
        do = load_tile(grad_out_head, first_query, queries, DIMS[2], BLOCK_M, BLOCKS[2])
        row_lse = tl.load(scaled_lse + first_query + in_query)
        row_delta = tl.load(delta + first_query + in_query)
        scores = score(k_tile, q_tile, DIMS, PRECISION)
        if ADD_QUERIES:
            # without it a masked key spoils no more than its own gradients, which are cleared at the end
            if flag != 0:
                scores += key_bias[:, None]
        weights = tl.exp2(scores * scale_log2 - row_lse[None, :])
        grad_weights = product(v, tl.trans(do), None, PRECISION)
        if DROPOUT:
            drop = dropped(seed_value, head, first_query, first_key, in_query[None, :], in_key[:, None], threshold)
            # a zero that is unknown to the compiler, see the forward kernel
            kept = tl.where(drop, scale_log2 * 0.0, weights)
            grad_v = product(kept.to(do.dtype), do, grad_v, PRECISION)
            grad_weights = tl.where(drop, 0.0, grad_weights) * keep_factor
        else:
            grad_v = product(weights.to(do.dtype), do, grad_v, PRECISION)
        grad_scores = (weights * (grad_weights - row_delta[None, :])).to(q_tile[0].dtype)
        grad_kc = product(grad_scores, q_tile[0], grad_kc, PRECISION)
        if DIMS[1] > 0:
            grad_ks = product(grad_scores, q_tile[1], grad_ks, PRECISION)
        if ADD_QUERIES:
            by_query = tl.trans(grad_scores)
            grad_qc = product(by_query, k_tile[0], None, PRECISION)
            add_tile(grad_q_heads[0], grad_qc, first_query, DIMS[0], BLOCK_M, BLOCKS[0])
            if DIMS[1] > 0:
                grad_qs = product(by_query, k_tile[1], None, PRECISION)
                add_tile(grad_q_heads[1], grad_qs, first_query, DIMS[1], BLOCK_M, BLOCKS[1])
    counts = (key_bias == 0.0)[:, None]
    grad_kc = tl.where(counts, grad_kc, 0.0)
    grad_ks = tl.where(counts, grad_ks, 0.0)
    grad_v = tl.where(counts, grad_v * (keep_factor / scale), 0.0)
    store_parts(heads_of(grad_k, head, heads), grad_kc, grad_ks, first_key, keys, DIMS, BLOCKS, BLOCK_N)
    store_tile(head_of(grad_value, head, heads), grad_v, first_key, keys, DIMS[2], BLOCK_N, BLOCKS[2])


def backward_launches(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, tuning: Tuning, deterministic: bool
) -> tuple[list[Launch], list[Tensor], list[Tensor]]:
    """Prepares the launches of the backward kernels.

    Args:
        problem: the arguments of the call.
        out: (B, H, N, Dv) output.
        lse: (B, H, padded N) base-2 log-sum-exp of the scores.
        grad_out: (B, H, N, Dv) gradient of the output.
        tuning: kernel configurations.
        deterministic: whether to use the deterministic kernels.

    Returns:
        The launches, the gradients of q_content and q_spatial, and those of k_content, k_spatial and value. In one pass
        the gradients of queries are fp32, and the caller converts them to the dtype of the operands.
    """
    batch, heads, queries, keys = problem.sizes
    dtype = problem.value.dtype
    rows, query_dtype = (queries, dtype) if deterministic else (lse.shape[2], torch.float32)
    grad_queries = [problem.new_like_heads(rows, dim, query_dtype) for dim in problem.dims[:2]]
    grad_keys = [problem.new_like_heads(keys, dim, dtype) for dim in problem.dims]
    shared = {
        "grad_out": view(grad_out),
        "delta": torch.empty_like(lse),
        "scaled_lse": torch.empty_like(lse),
        "grad_q": (view(grad_queries[0]), view(grad_queries[1])),
        "heads": heads,
        "queries": queries,
        "scale": problem.scale,
        **head_dims(problem),
    }
    before = {**shared, "out": view(out), "lse": lse}
    first = queries_launch(problem, before, tuning.backward_queries) if deterministic else delta_launch(problem, before)
    blocks = tuning.backward_keys if deterministic else tuning.backward
    arguments = {
        **shared,
        **scoring(problem),
        "grad_k": (view(grad_keys[0]), view(grad_keys[1])),
        "grad_value": view(grad_keys[2]),
        "ADD_QUERIES": not deterministic,
        **options(blocks),
    }
    last = Launch(backward_keys_kernel, (batch * heads, triton.cdiv(keys, blocks.keys)), arguments)
    return [first, last], [gradient[:, :, :queries] for gradient in grad_queries], grad_keys


def queries_launch(problem: Problem, before: dict[str, Any], blocks: Blocks) -> Launch:
    """Launch of :func:`backward_queries_kernel`; ``before`` are arguments that it shares with :func:`delta_kernel`."""
    batch, heads, queries, _ = problem.sizes
    arguments = {**before, **scoring(problem), "TAIL": min(TAIL, blocks.keys), **options(blocks)}
    return Launch(backward_queries_kernel, (batch * heads, triton.cdiv(queries, blocks.queries)), arguments)


def delta_launch(problem: Problem, before: dict[str, Any]) -> Launch:
    """Launch of :func:`delta_kernel`; ``before`` are arguments that it shares with :func:`backward_queries_kernel`."""
    batch, heads, _, _ = problem.sizes
    padded = before["lse"].shape[2]
    block_m = 64
    arguments = {**before, "padded": padded, "BLOCK_M": block_m}
    return Launch(delta_kernel, (batch * heads, triton.cdiv(padded, block_m)), arguments)
