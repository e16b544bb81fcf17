"""Kernels for Conditional DETR: conditional cross-attention and Hungarian matching.

They do not depend on the detector and can be used in any DETR: :func:`conditional_attention`, :func:`match` and
:func:`linear_sum_assignment`. Each has a reference implementation in plain PyTorch or SciPy.
"""

from cond_detr_kernels.assignment import HungarianMatcher, MatchStatus, MatchWeights, linear_sum_assignment, match
from cond_detr_kernels.conditional_attention import KeyMask, attention_path, conditional_attention, prepare_key_mask

__all__ = [
    "HungarianMatcher",
    "KeyMask",
    "MatchStatus",
    "MatchWeights",
    "attention_path",
    "conditional_attention",
    "linear_sum_assignment",
    "match",
    "prepare_key_mask",
]
