"""COCO's evaluation by hotcoco: pycocotools' numbers in a seventieth of the time."""

import os

import hotcoco
import numpy as np

from cond_detr.data.annotations import Annotations
from cond_detr.evaluate.accumulated import Accumulated, Grid

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
    global _started_in
    _started_in = os.getpid()
    objects, sizes = annotations.objects, annotations.images.sizes.tolist()
    # numbers from 1 in place of ids, which it wants to be small and not negative
    truth = hotcoco.COCO.from_arrays(
        [{"id": i, "width": width, "height": height} for i, (width, height) in enumerate(sizes, start=1)],
        [{"id": i, "name": name} for i, name in enumerate(annotations.classes.names, start=1)],
        objects.images + 1,
        objects.labels + 1,
        objects.boxes,
        area=objects.areas,
        iscrowd=objects.crowds,
    )
    numbered = found.copy()
    numbered[:, [0, 6]] += 1
    evaluation = hotcoco.COCOeval(truth, truth.load_res(numbered), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    confusion = evaluation.confusion_matrix(min_score=confusion_above)["matrix"].astype(np.int64)
    curves = evaluation.eval
    assert curves is not None
    return Accumulated(curves["precision"], curves["scores"], curves["recall"], confusion)
