"""COCO's evaluation by pycocotools, the reference implementation."""

import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cond_detr.data.annotations import Annotations
from cond_detr.evaluate.accumulated import Accumulated, Grid


def accumulate(annotations: Annotations, found: Grid) -> Accumulated:
    """Compares detections with the ground truth; see :func:`cond_detr.evaluate.coco_metrics.evaluate_table`.

    Args:
        annotations: the ground truth.
        found: table of detections.
    """
    ids, category_ids = annotations.images.ids.tolist(), annotations.classes.category_ids
    results = [
        {"image_id": ids[int(image)], "category_id": category_ids[int(label)], "bbox": bbox, "score": score}
        for image, *bbox, score, label in found.tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations.to_coco()
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = ids, list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    return Accumulated(curves["precision"], curves["scores"], curves["recall"], None)
