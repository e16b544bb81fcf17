"""Conditional cross-attention through PyTorch's scaled dot-product attention, for devices without the kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_dot_product(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    scale: float,
) -> Tensor:
    """See :func:`cond_detr_kernels.conditional_attention`."""
    query = torch.cat([q_content, q_spatial], dim=-1)
    key = torch.cat([k_content, k_spatial], dim=-1)
    value_dim = value.shape[-1]
    if value.device.type == "cpu" and dropout_p == 0.0 and value_dim < query.shape[-1]:
        # The CPU's flash kernel wants equal head dims; padding the values for it is up to 3x faster than going without
        value = F.pad(value, (0, query.shape[-1] - value_dim))
    if key_padding_mask is None:
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, scale=scale)
        return out[..., :value_dim]
    # An image whose keys are all masked attends to everything here and is set to 0 below: kernels disagree about it
    empty = key_padding_mask.all(dim=1, keepdim=True)
    attend = ~key_padding_mask | empty
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attend[:, None, None, :], dropout_p=dropout_p, scale=scale
    )
    return out[..., :value_dim].masked_fill(empty[:, :, None, None], 0.0)
