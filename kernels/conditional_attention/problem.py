"""The arguments of an attention call, as its implementations take them."""

from typing import NamedTuple

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
# Arrays with a number per query are filled up to a multiple of this, itself one of every block of queries
ROW_PADDING = 128
# Keys that the preparation of a mask looks at together, and that share a flag: multiples of every block of keys
MASK_CHUNK = 1024
MASK_STRETCH = 128


def mask_width(keys: int) -> int:
    """Numbers that a prepared mask has for an image."""
    chunks = -(-keys // MASK_CHUNK)
    return chunks * (MASK_CHUNK + MASK_CHUNK // MASK_STRETCH) + 1


class Problem(NamedTuple):
    """The arguments of an attention call; see :func:`cond_detr_kernels.conditional_attention`."""

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
        """(B, H, length, dim) uninitialised, in the memory order (B, length, H, dim) that merging heads wants."""
        batch, heads = self.q_content.shape[:2]
        return self.value.new_empty(batch, length, heads, dim, dtype=dtype).transpose(1, 2)

    def new_rows(self) -> Tensor:
        """(B, H, N rounded up to ROW_PADDING) fp32, uninitialised."""
        batch, heads, queries, _ = self.sizes
        padded = -(-queries // ROW_PADDING) * ROW_PADDING
        return self.value.new_empty(batch, heads, padded, dtype=torch.float32)
