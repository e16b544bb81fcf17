"""The key padding mask in the form of the attention kernels, prepared once for all layers, forward and backward.

Most tiles of keys have no masked key, and should not pay for the mask. So each stretch of keys has a flag, and only
tiles in flagged stretches add a bias of 0 or minus infinity to their scores. Keys after the last unmasked one are
skipped.
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
    """Prepares a mask, one program per image; see ``prepare_mask`` in closed_form.py."""
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
    """Pointers to the bias and the flags of an image, and the index after its last unmasked key."""
    chunks = tl.cdiv(keys, _CHUNK)
    bias = prepared + batch * width
    flags = bias + chunks * _CHUNK
    return bias, flags, tl.load(flags + chunks * (_CHUNK // _STRETCH)).to(tl.int32)


@triton.jit
def flag_at(flags, key):
    """Flag of the stretch of keys that a key is in: not 0 if it has a masked key."""
    return tl.load(flags + key // _STRETCH)


def prepare_launch(mask: Tensor) -> tuple[Launch, Tensor]:
    """Launch that prepares a (B, S) bool mask, and its (B, mask_width(S)) fp32 result.

    See :func:`cond_detr_kernels.conditional_attention.closed_form.prepare_mask`.
    """
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
