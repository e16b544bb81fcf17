"""Conditional cross-attention by the fastest path there is for the tensors at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr_kernels.checks import check_same, check_shape

_NAMES = ("q_content", "q_spatial", "k_content", "k_spatial", "value")


def attention_path(device: torch.device) -> str:
    """Says, for people, which implementation :func:`conditional_attention` uses on a device."""
    return f"PyTorch scaled_dot_product_attention on {device.type}"


def conditional_attention(
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
    """softmax((q_content . k_content + q_spatial . k_spatial) * scale) value, per head (Conditional DETR, section 3.3).

    Args:
        q_content, q_spatial: (B, H, N, Dc) and (B, H, N, Ds) queries; views of any strides.
        k_content, k_spatial: (B, H, S, Dc) and (B, H, S, Ds) keys.
        value: (B, H, S, Dv).
        key_padding_mask: (B, S) bool, True for keys that nobody may look at. Queries whose keys are all masked get 0,
            and zero gradients.
        dropout_p: probability in [0, 1) with which attention weights are dropped (and the others scaled up). The
            caller passes 0 in evaluation.
        scale: factor of the scores; (Dc + Ds) ** -0.5 if None.

    Returns:
        (B, H, N, Dv), in the dtype of the inputs.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or dropout_p is not in [0, 1).
    """
    _check(q_content, q_spatial, k_content, k_spatial, value, key_padding_mask, dropout_p)
    query = torch.cat([q_content, q_spatial], dim=-1)
    key = torch.cat([k_content, k_spatial], dim=-1)
    if scale is None:
        scale = query.shape[-1] ** -0.5
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


def _check(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    dropout_p: float,
) -> None:
    tensors = (q_content, q_spatial, k_content, k_spatial, value)
    check_shape("q_content", q_content, "(B, H, N, Dc)", (None, None, None, None))
    batch, heads, queries, content_dim = q_content.shape
    check_shape("q_spatial", q_spatial, "(B, H, N, Ds)", (batch, heads, queries, None))
    check_shape("k_content", k_content, "(B, H, S, Dc)", (batch, heads, None, content_dim))
    keys = k_content.shape[2]
    check_shape("k_spatial", k_spatial, "(B, H, S, Ds)", (batch, heads, keys, q_spatial.shape[3]))
    check_shape("value", value, "(B, H, S, Dv)", (batch, heads, keys, None))
    check_same(_NAMES, tensors, "dtype")
    check_same(_NAMES, tensors, "device")
    if not q_content.is_floating_point():
        raise ValueError(f"q_content must be a floating point tensor, got {q_content.dtype}")
    if key_padding_mask is not None:
        check_shape("key_padding_mask", key_padding_mask, "(B, S)", (batch, keys))
        check_same(("q_content", "key_padding_mask"), (q_content, key_padding_mask), "device")
        if key_padding_mask.dtype != torch.bool:
            raise ValueError(f"key_padding_mask must be a bool tensor, got {key_padding_mask.dtype}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
