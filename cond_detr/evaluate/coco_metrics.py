"""COCO's metrics by pycocotools, with results for each class."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cond_detr.data.annotations import Annotations

METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True)
class Evaluation:
    """COCO metrics in [0, 1]; None where there are no objects.

    Attributes:
        metrics: AP, AP50, AP75, APS, APM and APL by name.
        per_class: AP and AP50 of each class by name.
        precision: precision of each class by name, at an IoU of 0.5, for the recalls 0, 0.01 ... 1.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    precision: dict[str, list[float] | None]


def evaluate_results(annotations: Annotations, results: list[dict[str, Any]]) -> Evaluation:
    """Runs COCO's evaluation of boxes over all images of a data set.

    Args:
        annotations: the ground truth.
        results: detections in COCO's result format.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations.ground_truth
        truth.createIndex()
        coco_eval = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        coco_eval.params.imgIds = [record.image_id for record in annotations.records]
        coco_eval.params.catIds = list(annotations.classes.category_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    # precision: (IoU thresholds, recalls, classes, areas, detections per image)
    precision = coco_eval.eval["precision"][:, :, :, 0, -1]
    per_class = {
        name: {"AP": _mean(precision[:, :, i]), "AP50": _mean(precision[0, :, i])}
        for i, name in enumerate(annotations.classes.names)
    }
    curves = {
        name: precision[0, :, i].tolist() if (precision[0, :, i] > -1).any() else None
        for i, name in enumerate(annotations.classes.names)
    }
    return Evaluation({name: _known(coco_eval.stats[i]) for i, name in enumerate(METRICS)}, per_class, curves)


def _mean(precision: Any) -> float | None:
    valid = precision[precision > -1]
    return float(np.mean(valid)) if valid.size else None


def _known(value: float) -> float | None:
    return None if value < 0 else float(value)
