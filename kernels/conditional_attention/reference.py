"""Reference of conditional cross-attention as in the paper (section 3.3), and of the kernels' dropout."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Philox 2x32 (Salmon et al., 2011)
PHILOX_MULTIPLIER = 0xD256D193
PHILOX_KEY_STEP = 0x9E3779B9
# The fewest that pass BigCrush
PHILOX_ROUNDS = 7


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
    """Reference of :func:`cond_detr_kernels.conditional_attention`, with the same arguments and result."""
    weights = attention_weights(
        q_content, q_spatial, k_content, k_spatial, key_padding_mask=key_padding_mask, scale=scale
    )
    return F.dropout(weights, dropout_p) @ value


def attention_weights(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention weights before dropout: (B, H, N, S), rows sum to 1, or to 0 where all keys are masked.

    Args:
        q_content: (B, H, N, Dc) content queries.
        q_spatial: (B, H, N, Ds) spatial queries.
        k_content: (B, H, S, Dc) content keys.
        k_spatial: (B, H, S, Ds) spatial keys.
        key_padding_mask: (B, S) bool, True for masked keys.
        scale: factor of the scores; (Dc + Ds) ** -0.5 if None.
    """
    if scale is None:
        scale = (q_content.shape[-1] + q_spatial.shape[-1]) ** -0.5
    query = torch.cat([q_content, q_spatial], dim=-1)
    key = torch.cat([k_content, k_spatial], dim=-1)
    scores = (query * scale) @ key.transpose(-2, -1)
    if key_padding_mask is None:
        return scores.softmax(dim=-1)
    masked = key_padding_mask[:, None, None, :]
    # softmax gives NaN in rows whose keys are all masked; the second fill sets them to 0
    return scores.masked_fill(masked, -math.inf).softmax(dim=-1).masked_fill(masked, 0.0)


def drop_threshold(dropout_p: float) -> int:
    """``dropout_p`` in units of 2**-16, the resolution of the kernels; less than 1."""
    return min(round(dropout_p * 65536), 65535)


def philox(low: Tensor, high: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """Philox 2x32 (Salmon et al., 2011): two random 32-bit words for each counter, all held in int64 tensors.

    Args:
        low: lower words of the counters.
        high: upper words of the counters, of the same shape.
        key: the key, 32 bits.
    """
    for _ in range(PHILOX_ROUNDS):
        # a product of 64 bits, in halves that do not overflow the signed integers there are
        lower = low * (PHILOX_MULTIPLIER & 0xFFFF)
        upper = low * (PHILOX_MULTIPLIER >> 16) + (lower >> 16)
        low, high = (upper >> 16) ^ key ^ high, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)
        key = (key + PHILOX_KEY_STEP) & 0xFFFFFFFF
    return low, high


def head_thresholds(seed: int, heads: int, dropout_p: float, device: torch.device | None = None) -> Tensor:
    """Dropout thresholds of the heads, (heads, 1, 1) int64: the kernels drop weights whose 8-bit draw is below it.

    A threshold is one of the two multiples of 2**-8 next to ``dropout_p``, drawn so that their mean is ``dropout_p``.

    Args:
        seed: seed of the call.
        heads: number of heads, counted over the batch.
        dropout_p: probability of dropout.
        device: device of the result.
    """
    threshold = drop_threshold(dropout_p)
    head = torch.arange(heads, device=device)
    word, _ = philox(torch.full_like(head, 0xFFFFFFFF), head, seed & 0xFFFFFFFF)
    more = (word >> 24) < (threshold & 255)
    return ((threshold >> 8) + more.long()).clamp(max=255)[:, None, None]


def dropped_reference(
    seed: int, heads: int, queries: int, keys: int, dropout_p: float, device: torch.device | None = None
) -> Tensor:
    """The weights that the kernels drop for a seed: (heads, queries, keys) bool.

    One evaluation of Philox yields eight draws of 8 bits, for the weights whose query differs in bit 3 and whose key
    differs in bits 3 and 4 only.

    Args:
        seed: seed of the call.
        heads: number of heads, counted over the batch.
        queries: number of queries.
        keys: number of keys.
        dropout_p: probability of dropout.
        device: device of the result.
    """
    head = torch.arange(heads, device=device)[:, None, None]
    query = torch.arange(queries, device=device)[:, None]
    key = torch.arange(keys, device=device)
    high, low = torch.broadcast_tensors(((query & ~8) + (head << 16)) & 0xFFFFFFFF, key & ~24)
    low, high = philox(low, high, seed & 0xFFFFFFFF)
    word = torch.where((key & 16) == 0, low, high)
    draw = word >> (24 - (query & 8) - 2 * (key & 8)) & 255
    return draw < head_thresholds(seed, heads, dropout_p, device)
