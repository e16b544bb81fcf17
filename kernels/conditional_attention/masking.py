"""The key padding mask in the form that the attention kernels want, prepared once for all layers and directions.

Most tiles of keys hold no masked key and should pay nothing for the mask. So each stretch of keys has a flag, and only
tiles in flagged ones add a bias of 0 or minus infinity to their scores. Keys after the last one that counts are not
visited at all.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cond_detr_kernels.conditional_attention.launch import Launch
from cond_detr_kernels.conditional_attention.problem import MASK_CHUNK, MASK_STRETCH, mask_width

_CHUNK = tl.constexpr(MASK_CHUNK)
_STRETCH = tl.constexpr(MASK_STRETCH)


@triton.jit
def key_mask_kernel(mask, prepared, mask_strides, keys, chunks, width):
    """One program per image."""
    batch = tl.program_id(0).to(tl.int64)
    stretches: tl.constexpr = _CHUNK // _STRETCH
    prepared += batch * width
    flags = prepared + chunks * _CHUNK
    end = 0
    for chunk in range(0, chunks):
        index = chunk * _CHUNK + tl.arange(0, _CHUNK)
        masked = tl.load(mask + batch * mask_strides[0] + index * mask_strides[1], mask=index < keys, other=1) != 0
        tl.store(prepared + index, tl.where(masked, float("-inf"), 0.0))
        flagged = tl.max(tl.reshape(masked.to(tl.int32), [stretches, _STRETCH]), 1)
        tl.store(flags + chunk * stretches + tl.arange(0, stretches), flagged.to(tl.float32))
        end = tl.maximum(end, tl.max(tl.where(masked, 0, index + 1), 0))
    tl.store(flags + chunks * stretches, end.to(tl.float32))


@triton.jit
def mask_of(prepared, batch, keys, width):
    """An image's bias, flags, and one more than its last key that counts."""
    chunks = tl.cdiv(keys, _CHUNK)
    bias = prepared + batch * width
    flags = bias + chunks * _CHUNK
    return bias, flags, tl.load(flags + chunks * (_CHUNK // _STRETCH)).to(tl.int32)


@triton.jit
def flag_at(flags, key):
    """Whether there may be a masked key near a key."""
    return tl.load(flags + key // _STRETCH)


def prepare_launch(mask: Tensor) -> tuple[Launch, Tensor]:
    """What prepares a (B, S) bool mask, and what it fills; see :func:`prepare_reference`."""
    batch, keys = mask.shape
    prepared = mask.new_empty(batch, mask_width(keys), dtype=torch.float32)
    arguments: dict[str, Any] = {
        "mask": mask.view(torch.uint8),
        "prepared": prepared,
        "mask_strides": mask.stride(),
        "keys": keys,
        "chunks": triton.cdiv(keys, MASK_CHUNK),
        "width": prepared.shape[1],
    }
    return Launch(key_mask_kernel, (batch,), arguments), prepared
