"""COCO's metrics, with results for each class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cond_detr.data.annotations import Annotations
from cond_detr.errors import say
from cond_detr.evaluate import by_hotcoco, by_pycocotools
from cond_detr.evaluate.accumulated import Accumulated, Grid
from cond_detr.evaluate.best_f1 import BestF1, best_of_all, best_of_each
from cond_detr.evaluate.diagnosis import Diagnosis, diagnose

# Lowest score of detections in the confusion matrix; what predict shows by default
CONFUSED_ABOVE = 0.3
# Columns of a table of detections
IMAGE, BOX, SCORE, LABEL = 0, slice(1, 5), 5, 6


@dataclass(frozen=True)
class Confusion:
    """How many objects of a class were found as one of a class.

    Attributes:
        truth: name of the object's class; None if nothing is there.
        found: name of the detection's class; None if nothing was found.
        count: number of objects.
    """

    truth: str | None
    found: str | None
    count: int


@dataclass(frozen=True)
class Evaluation:
    """COCO metrics in [0, 1]; None where there are no objects.

    Attributes:
        metrics: AP, AP50, AP75, APS, APM, APL and AR (of 100 detections in an image) by name.
        per_class: AP, AP50 and AR of each class by name.
        precision: precision of each class by name, at an IoU of 0.5, for the recalls 0, 0.01 ... 1.
        scores: the score at which each of these recalls is reached.
        confusion: which classes are taken for which, most frequent first. Detections with a score of at least 0.3, the
            best first, take the object that they overlap most, of whatever class, if its IoU is at least 0.5 and no
            other has it; those on crowds of their class are left out. None if the evaluator does not tell.
        diagnosis: what keeps AP50 from being higher. None if it was not asked for, or the evaluator does not tell.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    precision: dict[str, list[float] | None]
    scores: dict[str, list[float] | None]
    confusion: list[Confusion] | None
    diagnosis: Diagnosis | None = None

    @property
    def best_f1(self) -> BestF1 | None:
        """The threshold of scores at which the classes' mean F1 is highest, at an IoU of 0.5."""
        return best_of_all(self.precision, self.scores)

    @property
    def best_f1_of_classes(self) -> dict[str, BestF1 | None]:
        """The threshold at which F1 is highest for each class by name; None without objects or detections of it."""
        return best_of_each(self.precision, self.scores)


def evaluate_table(
    annotations: Annotations,
    found: Grid,
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco",
    *,
    diagnosed: bool = False,
) -> Evaluation:
    """Runs COCO's evaluation of boxes over all images of a data set.

    Args:
        annotations: the ground truth.
        found: (n, 7) float64 table of detections, those of an image in any order: index of the image, left, top, width
            and height in pixels, score, and index of the class.
        evaluator: package that computes the numbers. They are the same, but pycocotools gives no confusions
            and no diagnosis.
        diagnosed: whether to find out what keeps AP50 from being higher, which takes another time as long.
    """
    if evaluator == "hotcoco" and not by_hotcoco.usable():
        say(
            "warning: hotcoco cannot be used in a fork of a process that has used it; pycocotools evaluates, without "
            "confusions"
        )
        evaluator = "pycocotools"
    if evaluator == "hotcoco":
        accumulated = by_hotcoco.accumulate(annotations, found, CONFUSED_ABOVE)
    else:
        accumulated = by_pycocotools.accumulate(annotations, found)
    names = annotations.classes.names
    # over all areas, with the most detections
    precision, scores, recall = accumulated.precision[..., 0, -1], accumulated.scores[..., 0, -1], accumulated.recall
    per_class = {
        name: {"AP": _mean(precision[:, :, i]), "AP50": _mean(precision[0, :, i]), "AR": _mean(recall[:, i, 0, -1])}
        for i, name in enumerate(names)
    }
    measured = {name: bool((precision[0, :, i] > -1).any()) for i, name in enumerate(names)}
    return Evaluation(
        _metrics(accumulated),
        per_class,
        {name: precision[0, :, i].tolist() if measured[name] else None for i, name in enumerate(names)},
        {name: scores[0, :, i].tolist() if measured[name] else None for i, name in enumerate(names)},
        None if accumulated.confusion is None else _confusions(accumulated.confusion, names),
        diagnose(annotations, found) if diagnosed and evaluator == "hotcoco" else None,
    )


def _metrics(accumulated: Accumulated) -> dict[str, float | None]:
    precision = accumulated.precision[..., -1]
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        "APS": _mean(precision[..., 1]),
        "APM": _mean(precision[..., 2]),
        "APL": _mean(precision[..., 3]),
        "AR": _mean(accumulated.recall[:, :, 0, -1]),
    }


def _mean(values: Grid) -> float | None:
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else None


def _confusions(matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]], names: tuple[str, ...]) -> list[Confusion]:
    called = [*names, None]
    pairs = [Confusion(called[i], called[j], int(matrix[i, j])) for i, j in np.argwhere(matrix).tolist()]
    return sorted(pairs, key=lambda pair: -pair.count)
