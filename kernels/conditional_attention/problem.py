"""The arguments of an attention call in the form that its implementations take."""

from typing import NamedTuple

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
# Arrays with a number per query are padded to a multiple of this, itself a multiple of every block of queries
ROW_PADDING = 128
# Keys that mask preparation handles together, and keys that share a flag: multiples of every block of keys
MASK_CHUNK = 1024
MASK_STRETCH = 128


def mask_width(keys: int) -> int:
    """Length of a prepared mask's row, which is for one image."""
    chunks = -(-keys // MASK_CHUNK)
    return chunks * (MASK_CHUNK + MASK_CHUNK // MASK_STRETCH) + 1


class Problem(NamedTuple):
    """The arguments of an attention call; see :func:`cond_detr_kernels.conditional_attention`.

    Attributes:
        q_content: (B, H, N, Dc).
        q_spatial: (B, H, N, Ds).
        k_content: (B, H, S, Dc).
        k_spatial: (B, H, S, Ds).
        value: (B, H, S, Dv).
        key_mask: (B, mask_width(S)) fp32 prepared mask, see masking.py; None without a mask.
        seed: (1,) int64 seed of dropout; None without dropout.
        dropout_p: probability of dropout.
        scale: factor of the scores.
    """

    q_content: Tensor
    q_spatial: Tensor
    k_content: Tensor
    k_spatial: Tensor
    value: Tensor
    key_mask: Tensor | None  # prepared, see masking.py
    seed: Tensor | None
    dropout_p: float
    scale: float

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries, keys."""
        return (*self.q_content.shape[:3], self.k_content.shape[2])

    @property
    def dims(self) -> tuple[int, int, int]:
        """Head dims: content, spatial, value."""
        return self.q_content.shape[3], self.q_spatial.shape[3], self.value.shape[3]

    def new_like_heads(self, length: int, dim: int, dtype: torch.dtype) -> Tensor:
        """Allocates (B, H, length, dim), with the memory layout (B, length, H, dim) so that heads merge as a view."""
        batch, heads = self.q_content.shape[:2]
        return self.value.new_empty(batch, length, heads, dim, dtype=dtype).transpose(1, 2)

    def new_rows(self) -> Tensor:
        """Allocates an fp32 array with a number per query: (B, H, N rounded up to a multiple of ROW_PADDING)."""
        batch, heads, queries, _ = self.sizes
        padded = -(-queries // ROW_PADDING) * ROW_PADDING
        return self.value.new_empty(batch, heads, padded, dtype=torch.float32)
