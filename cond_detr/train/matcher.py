"""Hungarian matching between predictions and targets (section 3.4)."""

from typing import NamedTuple

from torch import Tensor

from cond_detr.data.batching import Targets
from cond_detr.models.predictions import Predictions
from cond_detr_kernels import MatchStatus, MatchWeights, match
from cond_detr_kernels.assignment import match_reference

MATCHERS = {"native": match, "scipy": match_reference}


class Matching(NamedTuple):
    """Result of the matching.

    Attributes:
        pred_index: (L, B, T) int64 query of each target, -1 where there is none.
        sanitised: (B,) bool, True for images with NaN or infinite costs, which were replaced.
    """

    pred_index: Tensor
    sanitised: Tensor


class HungarianMatcher:
    """Matches targets to queries one to one, with least total cost, for each image and decoder layer separately.

    Args:
        weights: weights of the cost.
        implementation: "native", on the device of the predictions without host-device synchronisation, or "scipy", on
            the host.
    """

    def __init__(self, weights: MatchWeights, implementation: str = "native") -> None:
        self.weights = weights
        self.match = MATCHERS[implementation]

    def __call__(self, predictions: Predictions, targets: Targets) -> Matching:
        """Matches the predictions of L layers for B images with their targets."""
        pred_index, status = self.match(
            predictions.logits.detach(),
            predictions.boxes.detach(),
            targets.labels,
            targets.boxes,
            targets.counts,
            weights=self.weights,
        )
        return Matching(pred_index, (status == MatchStatus.SANITISED).any(0))
