"""Conditional cross-attention as the paper writes it: concatenate, scale, softmax, weigh (section 3.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def conditional_attention_reference(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """The reference of :func:`cond_detr_kernels.conditional_attention`: same arguments, same result."""
    if scale is None:
        scale = (q_content.shape[-1] + q_spatial.shape[-1]) ** -0.5
    query = torch.cat([q_content, q_spatial], dim=-1)
    key = torch.cat([k_content, k_spatial], dim=-1)
    scores = (query * scale) @ key.transpose(-2, -1)
    if key_padding_mask is None:
        weights = scores.softmax(dim=-1)
    else:
        masked = key_padding_mask[:, None, None, :]
        weights = scores.masked_fill(masked, -math.inf).softmax(dim=-1)
        # a row without a single key is NaN there; it has nothing to attend to
        weights = weights.masked_fill(masked, 0.0)
    return F.dropout(weights, dropout_p) @ value
