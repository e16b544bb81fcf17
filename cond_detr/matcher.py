"""Hungarian matching between predictions and targets (section 3.4)."""

from typing import NamedTuple

from torch import Tensor

from cond_detr.data.batching import Targets
from cond_detr.predictions import Predictions
from cond_detr_kernels import MatchStatus, MatchWeights, match
from cond_detr_kernels.assignment import match_reference

MATCHERS = {"native": match, "scipy": match_reference}


class Matching(NamedTuple):
    """What the matcher found.

    Attributes:
        pred_index: (L, B, T) int64, the query of each target, -1 where there is none.
        sanitised: (B,) bool, images for which NaN or infinite costs had to be replaced.
    """

    pred_index: Tensor
    sanitised: Tensor


class HungarianMatcher:
    """Gives each target the query that makes the total cost of its image least, in every decoder layer on its own.

    Args:
        weights: of the cost.
        implementation: "native", on the device of the predictions and without waiting for it, or "scipy", on the host.
    """

    def __init__(self, weights: MatchWeights, implementation: str = "native") -> None:
        self.weights = weights
        self.match = MATCHERS[implementation]

    def __call__(self, predictions: Predictions, targets: Targets) -> Matching:
        """Matches B images in L layers."""
        pred_index, status = self.match(
            predictions.logits.detach(),
            predictions.boxes.detach(),
            targets.labels,
            targets.boxes,
            targets.counts,
            weights=self.weights,
        )
        return Matching(pred_index, (status == MatchStatus.SANITISED).any(0))
