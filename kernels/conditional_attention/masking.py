"""The key padding mask in the form that the attention kernels want.

Most tiles of keys hold no masked key and should pay nothing for the mask. So each tile has a flag, and only flagged
tiles add a bias of 0 or minus infinity to their scores. Keys after the last one that counts are not visited at all.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cond_detr_kernels.conditional_attention.launch import Launch

# Keys that the preparing program looks at together; a multiple of every block of keys
CHUNK = 1024


@triton.jit
def key_mask_kernel(
    mask,
    bias,
    flags,
    ends,
    mask_stride_b,
    mask_stride_s,
    keys,
    chunks,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per image."""
    batch = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = CHUNK // BLOCK_N
    end = 0
    for chunk in range(0, chunks):
        index = chunk * CHUNK + tl.arange(0, CHUNK)
        masked = tl.load(mask + batch * mask_stride_b + index * mask_stride_s, mask=index < keys, other=1) != 0
        tl.store(bias + batch * chunks * CHUNK + index, tl.where(masked, float("-inf"), 0.0))
        flagged = tl.max(tl.reshape(masked.to(tl.int32), [blocks, BLOCK_N]), 1)
        tl.store(flags + batch * chunks * blocks + chunk * blocks + tl.arange(0, blocks), flagged)
        end = tl.maximum(end, tl.max(tl.where(masked, 0, index + 1), 0))
    tl.store(ends + batch, end)


NO_MASK: dict[str, Any] = {"bias": None, "flags": None, "ends": None, "bias_length": 0, "HAS_MASK": False}


def prepare_mask(key_padding_mask: Tensor | None, block_n: int) -> tuple[list[Launch], dict[str, Any]]:
    """What must run first, and the mask as kernel arguments for blocks of ``block_n`` keys.

    The arguments are ``bias`` (B, bias_length) fp32, 0 for keys that count, minus infinity for masked ones and behind
    the last key; ``flags`` (B, blocks) int32, 1 where the bias of a block is not all zero; ``ends`` (B,) int32, one
    more than the last key that counts.

    Args:
        key_padding_mask: (B, S) bool, True for keys that do not count, or None.
        block_n: keys in a tile of the kernel.
    """
    if key_padding_mask is None:
        return [], NO_MASK
    batch, keys = key_padding_mask.shape
    chunks = triton.cdiv(keys, CHUNK)
    new = key_padding_mask.new_empty
    prepared = {
        "bias": new(batch, chunks * CHUNK, dtype=torch.float32),
        "flags": new(batch, chunks * CHUNK // block_n, dtype=torch.int32),
        "ends": new(batch, dtype=torch.int32),
    }
    arguments = {
        "mask": key_padding_mask.view(torch.uint8),
        **prepared,
        "mask_stride_b": key_padding_mask.stride(0),
        "mask_stride_s": key_padding_mask.stride(1),
        "keys": keys,
        "chunks": chunks,
        "CHUNK": CHUNK,
        "BLOCK_N": block_n,
    }
    return [Launch(key_mask_kernel, (batch,), arguments)], {**prepared, "bias_length": chunks * CHUNK, "HAS_MASK": True}
