"""COCO's evaluation by hotcoco: pycocotools' numbers in a seventieth of the time."""

import os

import hotcoco
import numpy as np
from numpy.typing import NDArray

from cond_detr.data.annotations import Annotations
from cond_detr.evaluate.accumulated import Accumulated, Grid

# What makes numbers from 1 of the indices of images and classes in a table
NUMBERED = np.array([1.0, 0, 0, 0, 0, 0, 1])
# Classes of a confusion matrix: it has the square of that
MOST_CONFUSED = 2000
# The process whose threads it computes with. A fork of it has none, and would wait for them for ever
_started_in: int | None = None


def usable() -> bool:
    """Whether this process can use it: not if it was forked from one that has."""
    return _started_in in {None, os.getpid()}


def accumulate(annotations: Annotations, found: Grid, confusion_above: float) -> Accumulated:
    """Compares detections with the ground truth; see :func:`cond_detr.evaluate.coco_metrics.evaluate_table`.

    Args:
        annotations: the ground truth.
        found: table of detections.
        confusion_above: lowest score of detections in the confusion matrix.
    """
    truth = _truth(annotations)
    evaluation = _against(truth, found)
    evaluation.evaluate()
    evaluation.accumulate()
    confusion = None
    if len(annotations.classes) <= MOST_CONFUSED:
        sure = found[found[:, 5] >= confusion_above]
        sure = sure[~on_crowds(annotations, sure)]
        confusion = _against(truth, sure).confusion_matrix()["matrix"].astype(np.int64)
    curves = evaluation.eval
    assert curves is not None
    return Accumulated(curves["precision"], curves["scores"], curves["recall"], confusion)


def evaluated(annotations: Annotations, found: Grid) -> hotcoco.COCOeval:
    """The evaluation of a table of detections, after its ``evaluate()``; images and classes have numbers from 1."""
    evaluation = _against(_truth(annotations), found)
    evaluation.evaluate()
    return evaluation


def _truth(annotations: Annotations) -> hotcoco.COCO:
    global _started_in
    _started_in = os.getpid()
    objects, sizes = annotations.objects, annotations.images.sizes.tolist()
    # numbers from 1 in place of ids, which it wants to be small and not negative
    return hotcoco.COCO.from_arrays(
        [{"id": i, "width": width, "height": height} for i, (width, height) in enumerate(sizes, start=1)],
        [{"id": i, "name": name} for i, name in enumerate(annotations.classes.names, start=1)],
        objects.images + 1,
        objects.labels + 1,
        objects.boxes,
        area=objects.areas,
        iscrowd=objects.crowds,
    )


def _against(truth: hotcoco.COCO, found: Grid) -> hotcoco.COCOeval:
    return hotcoco.COCOeval(truth, truth.load_res(found + NUMBERED), "bbox")


def on_crowds(annotations: Annotations, found: Grid) -> NDArray[np.bool_]:
    """(n,) bool, True for detections of which half or more lies in a crowd of their class, as COCO forgives them."""
    crowds = annotations.objects[annotations.objects.crowds]
    forgiven = np.zeros(len(found), np.bool_)
    by_image = np.argsort(found[:, 0], kind="stable")
    begins, ends = (np.searchsorted(found[by_image, 0], crowds.images, side) for side in ("left", "right"))
    for begin, end, label, (left, top, width, height) in zip(begins, ends, crowds.labels, crowds.boxes, strict=True):
        rows = by_image[begin:end]
        rows = rows[found[rows, 6] == label]
        boxes = found[rows, 1:5]
        low = np.maximum(boxes[:, :2], [left, top])
        high = np.minimum(boxes[:, :2] + boxes[:, 2:], [left + width, top + height])
        inside = (high - low).clip(min=0).prod(1)
        forgiven[rows] |= inside >= 0.5 * boxes[:, 2:].prod(1)
    return forgiven
