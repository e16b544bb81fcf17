"""Conditional cross-attention: content and spatial dot products added per head."""

from cond_detr_kernels.conditional_attention.functional import (
    KeyMask,
    attention_path,
    conditional_attention,
    prepare_key_mask,
)
from cond_detr_kernels.conditional_attention.reference import attention_weights, conditional_attention_reference

__all__ = [
    "KeyMask",
    "attention_path",
    "attention_weights",
    "conditional_attention",
    "conditional_attention_reference",
    "prepare_key_mask",
]
