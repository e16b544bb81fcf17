"""What an evaluator finds out: precision, recall and scores, by pycocotools' definitions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]


class Accumulated(NamedTuple):
    """COCO's curves over T IoU thresholds, R recalls, K classes, A ranges of area and M numbers of detections.

    Attributes:
        precision: (T, R, K, A, M); -1 where there are no objects.
        scores: (T, R, K, A, M), the score at which each recall is reached.
        recall: (T, K, A, M), the highest recall; -1 where there are no objects.
        confusion: (K + 1, K + 1) numbers of objects by class (rows) and by the class they are found as (columns), at
            an IoU of 0.5; the last row and column are for nothing. None if the evaluator does not tell.
    """

    precision: Grid
    scores: Grid
    recall: Grid
    confusion: NDArray[np.int64] | None
