"""Figures of a report about precision."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.predict.lettering import families, in_figure


def precision_figure(evaluation: Evaluation) -> Any:
    """Plots precision over recall at an IoU of 0.5, for each class and on average; at most 10 classes are labelled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    curves = {name: curve for name, curve in evaluation.precision.items() if curve is not None}
    few = len(curves) <= 10
    for name, curve in curves.items():
        axes.plot(recall, curve, label=in_figure(name) if few else None, alpha=1 if few else 0.2, linewidth=1)
    if curves:
        axes.plot(recall, np.mean(list(curves.values()), axis=0), color="black", linewidth=2, label="mean")
        axes.legend(loc="lower left", prop={"family": families(curves)})
    axes.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure


def score_figure(evaluation: Evaluation) -> Any:
    """Plots precision, recall and their harmonic mean over the score, on average over the classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    scores, precision, recall = over_score(evaluation)
    both = precision + recall
    f1 = 2 * precision * recall / np.where(both > 0, both, 1)
    for values, name in ((precision, "precision"), (recall, "recall"), (f1, "F1")):
        axes.plot(scores, values, label=name, linewidth=2 if name == "F1" else 1)
    if f1.any():
        best = int(f1.argmax())
        axes.axvline(scores[best], color="gray", linewidth=1, linestyle=":")
        axes.set_title(f"best F1, {f1[best]:.2f}, near a score of {scores[best]:.2f}", fontsize=10)
    axes.set(xlabel="score", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    return figure


def over_score(evaluation: Evaluation) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Scores 0, 0.01 ... 1, recall of the detections above each, and COCO's precision there, averaged over the classes.

    That precision is the best at this recall or a higher one, so at a score it may be that of a lower one.
    Classes without objects do not count; a class without detections above a score has neither there.
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
        return scores, np.zeros(101), np.zeros(101)
    return scores, np.mean(precision, axis=0), np.mean(recall, axis=0)
