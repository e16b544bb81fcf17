"""Conditional cross-attention by PyTorch's own attention, for devices without the kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cond_detr_kernels.conditional_attention.reference import conditional_attention_reference

# On a CPU, without a mask: from this number of keys on, PyTorch's flash kernel beats the plain formula, by 1.4 to 2.1
# times at 4200 keys; below, and with dropout, for which there is no such kernel, it is slower by up to 1.3 times. With
# a mask it always won, by up to 3.5 times.
KEYS_FOR_FLASH = 2048


# Backends of PyTorch's attention by name, in the order in which it prefers them
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def pytorch_attention(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    scale: float,
    backend: str | None = None,
) -> Tensor:
    """Computes :func:`cond_detr_kernels.conditional_attention` by ``scaled_dot_product_attention`` or the reference.

    Args:
        q_content: (B, H, N, Dc).
        q_spatial: (B, H, N, Ds).
        k_content: (B, H, S, Dc).
        k_spatial: (B, H, S, Ds).
        value: (B, H, S, Dv).
        key_padding_mask: (B, S) bool, True for masked keys, or None.
        dropout_p: probability of dropout.
        scale: factor of the scores.
        backend: a key of :data:`BACKENDS`; None leaves the choice to PyTorch.

    Raises:
        RuntimeError: if the backend does not support these arguments.
    """
    if backend is not None:
        with sdpa_kernel(BACKENDS[backend]):
            return pytorch_attention(
                q_content, q_spatial, k_content, k_spatial, value, key_padding_mask, dropout_p, scale
            )
    operands = (q_content, q_spatial, k_content, k_spatial, value)
    on_cpu = value.device.type == "cpu"
    if on_cpu and key_padding_mask is None and (dropout_p > 0 or value.shape[2] < KEYS_FOR_FLASH):
        return conditional_attention_reference(*operands, dropout_p=dropout_p, scale=scale)
    query, key = q_content, k_content
    if q_spatial.shape[-1] > 0:
        query = torch.cat([q_content, q_spatial], dim=-1)
        key = torch.cat([k_content, k_spatial], dim=-1)
    value_dim = value.shape[-1]
    if on_cpu and dropout_p == 0 and value_dim < query.shape[-1]:
        # the CPU's flash kernel wants equal head dims; padding the values for it is faster than going without
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
