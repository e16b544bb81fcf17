"""Hungarian matching between predictions and targets (section 3.4)."""

from torch import Tensor

from cond_detr.data.batching import Targets
from cond_detr.predictions import Predictions
from cond_detr_kernels import MatchWeights, match


class HungarianMatcher:
    """Gives each target the query that makes the total cost of its image least, in every decoder layer on its own."""

    def __init__(self, weights: MatchWeights) -> None:
        self.weights = weights

    def __call__(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Returns (L, B, T) int64: the query of each target, -1 where there is none."""
        pred_index, _ = match(
            predictions.logits,
            predictions.boxes,
            targets.labels,
            targets.boxes,
            targets.counts,
            weights=self.weights,
        )
        return pred_index
