"""The score above which detections are best: where F1, the harmonic mean of precision and recall, is highest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Decimals of a threshold, rounded down so that the detection it comes from stays in
DIGITS = 3
Curve = Sequence[float] | None


@dataclass(frozen=True)
class BestF1:
    """A threshold of scores, and the F1 that it gives at an IoU of 0.5.

    Attributes:
        threshold: lowest score.
        f1: F1 of a class, or the mean of the classes.
    """

    threshold: float
    f1: float


def best_of_each(precision: Mapping[str, Curve], scores: Mapping[str, Curve]) -> dict[str, BestF1 | None]:
    """The best threshold of each class by name; None for those without objects or detections.

    COCO's precision at a recall is the highest at that recall or more. So the best F1 along it is the best there is.

    Args:
        precision: precision of each class by name, at the recalls 0, 0.01 ... 1; None where there are no objects.
        scores: the score at which each of these recalls is reached.
    """
    return {name: _best(f1_over_recall(curve), scores[name]) for name, curve in precision.items()}


def best_of_all(precision: Mapping[str, Curve], scores: Mapping[str, Curve]) -> BestF1 | None:
    """The threshold at which the mean F1 of the classes is highest; None if no class has objects and detections."""
    measured = [(f1_over_recall(curve), np.asarray(scores[name])) for name, curve in precision.items() if curve]
    candidates = sorted({float(score) for f1, at in measured for score in at[f1 > 0]})
    if not candidates:
        return None
    means = np.mean([_at(candidates, f1, at) for f1, at in measured], axis=0)
    best = int(means.argmax())
    return BestF1(_rounded(candidates[best]), float(means[best]))


def f1_over_recall(precision: Curve) -> NDArray[np.float64]:
    """F1 at the recalls 0, 0.01 ... 1."""
    curve = np.asarray([] if precision is None else precision, np.float64)
    recall = np.linspace(0, 1, len(curve))
    both = curve + recall
    return 2 * curve * recall / np.where(both > 0, both, 1)


def _best(f1: NDArray[np.float64], scores: Curve) -> BestF1 | None:
    if scores is None or not f1.any():
        return None
    best = int(f1.argmax())
    return BestF1(_rounded(scores[best]), float(f1[best]))


def _at(thresholds: Sequence[float], f1: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of a class at each threshold: that of the highest recall whose score is not below it; 0 if there is none."""
    reached = np.searchsorted(-scores[f1 > 0], -np.asarray(thresholds), side="right")
    return np.concatenate([[0.0], f1[f1 > 0]])[reached]


def _rounded(score: float) -> float:
    return math.floor(score * 10**DIGITS) / 10**DIGITS
