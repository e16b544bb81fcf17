"""Figures of a report about precision and scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.diagnosis import Diagnosis
from cond_detr.predict.lettering import families, in_figure
from cond_detr.train.curves import plot_losses, plot_precision

# Characters of a class name in a legend
LONGEST_LABEL = 16


def small_figure() -> tuple[Any, Any]:
    """A figure that fits on a phone, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3, 3.2), layout="constrained")
    return figure, figure.subplots()


def curve_figures(history: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """Plots the losses and the average precision of a run over its epochs."""
    losses, precision = small_figure(), small_figure()
    plot_losses(losses[1], history)
    plot_precision(precision[1], history)
    return losses[0], precision[0]


def precision_figure(evaluation: Evaluation) -> Any:
    """Plots precision over recall at an IoU of 0.5, for each class and on average; at most 10 classes are labelled."""
    figure, axes = small_figure()
    recall = np.linspace(0, 1, 101)
    curves = {name: curve for name, curve in evaluation.precision.items() if curve is not None}
    few = len(curves) <= 10
    for name, curve in curves.items():
        axes.plot(recall, curve, label=short(name) if few else None, alpha=1 if few else 0.2, linewidth=1)
    if curves:
        axes.plot(recall, np.mean(list(curves.values()), axis=0), color="black", linewidth=2, label="mean")
        axes.legend(loc="best", prop={"family": families(curves)}, fontsize=10)
    axes.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure


def score_figure(evaluation: Evaluation) -> Any:
    """Plots precision, recall and F1 over the score, each on average over the classes."""
    figure, axes = small_figure()
    scores, precision, recall, f1 = over_score(evaluation)
    for values, name in ((precision, "precision"), (recall, "recall"), (f1, "F1")):
        axes.plot(scores, values, label=name, linewidth=2 if name == "F1" else 1)
    if best := evaluation.best_f1:
        axes.axvline(best.threshold, color="gray", linewidth=1, linestyle=":")
        axes.set_title(f"best F1: {best.f1:.2f} at a score of {best.threshold:.2f}", fontsize=10)
    axes.set(xlabel="score", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    return figure


def calibration_figure(diagnosis: Diagnosis) -> Any:
    """Plots the share of detections that are right over their score, with their numbers."""
    figure, axes = small_figure()
    scores, right = [each.score for each in diagnosis.calibration], [each.right for each in diagnosis.calibration]
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle=":")
    axes.plot(scores, right, marker="o")
    for each in diagnosis.calibration:
        # below the curve, which rises; at its foot there is room above it
        low = each.right < 0.1
        axes.annotate(
            str(each.detections),
            (each.score, each.right),
            xytext=(0, 6) if low else (7, -11),
            textcoords="offset points",
            rotation=60 if low else 0,
            fontsize=10,
        )
    axes.set(xlabel="score", ylabel="share of them that are right", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure


def over_score(evaluation: Evaluation) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Scores 0, 0.01 ... 1; and COCO's precision, recall and F1 of the detections above each, averaged over classes.

    That precision is the best at this recall or a higher one, so at a score it may be that of a lower one.
    Classes without objects do not count; a class without detections above a score has none of the three there.
    """
    scores = np.linspace(0, 1, 101)
    precision, recall = [], []
    for name, curve in evaluation.precision.items():
        reached = evaluation.scores[name]
        if curve is None or reached is None:
            continue
        # recalls that are not reached have a score of 0
        counts = (np.array(reached)[None] >= np.maximum(scores, 1e-12)[:, None]).sum(1)
        recall.append(np.maximum(counts - 1, 0) / 100)
        precision.append(np.where(counts > 0, np.array(curve)[np.maximum(counts - 1, 0)], 0.0))
    if not recall:
        return scores, np.zeros(101), np.zeros(101), np.zeros(101)
    p, r = np.array(precision), np.array(recall)
    f1 = 2 * p * r / np.where(p + r > 0, p + r, 1)
    return scores, p.mean(0), r.mean(0), f1.mean(0)


def short(name: str) -> str:
    """A class name as a legend has room for it."""
    text = in_figure(name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 3]}...")
    return f" {text}" if text.startswith("_") else text  # or matplotlib hides it
