"""COCO's metrics, by pycocotools, with per-class results by name."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cond_detr.boxes import xyxy_to_cxcywh
from cond_detr.data.coco import Annotations
from cond_detr.predictions import Detections

METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True)
class Evaluation:
    """COCO metrics in [0, 1]; None where there is nothing to measure.

    Attributes:
        metrics: AP, AP50, AP75, APS, APM, APL.
        per_class: AP and AP50 of each class by name.
        precision: of each class by name, at an IoU of 0.5, for the recalls 0, 0.01 ... 1; None without objects.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    precision: dict[str, list[float] | None]


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Detections of an image in COCO's result format: boxes as left, top, width, height."""
    boxes = xyxy_to_cxcywh(found.boxes.double())
    boxes[:, :2] -= boxes[:, 2:] / 2
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for box, score, category_id in zip(boxes.tolist(), found.scores.tolist(), found.category_ids, strict=True)
    ]


def evaluate_results(annotations: Annotations, results: list[dict[str, Any]]) -> Evaluation:
    """COCO's evaluation of results in COCO's format over all images of a data set."""
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
