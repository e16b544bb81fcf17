"""Linear sum assignment and the Hungarian matching of DETR on top of it."""

from cond_detr_kernels.assignment.functional import linear_sum_assignment, match
from cond_detr_kernels.assignment.hungarian_matcher import HungarianMatcher
from cond_detr_kernels.assignment.reference import MatchStatus, MatchWeights
from cond_detr_kernels.assignment.reference import match as match_reference

__all__ = ["HungarianMatcher", "MatchStatus", "MatchWeights", "linear_sum_assignment", "match", "match_reference"]
