"""Detections as entries of JSON files."""

from pathlib import Path
from typing import Any

from cond_detr.boxes import xyxy_to_cxcywh
from cond_detr.models.predictions import Detections


def detections_dict(image: Path, size: tuple[int, int], found: Detections) -> dict[str, Any]:
    """Makes the entry of an image in predictions.json, boxes as left, top, right, bottom in pixels.

    Args:
        image: file of the image.
        size: (width, height) in pixels.
        found: its detections.
    """
    return {
        "file": str(image),
        "width": size[0],
        "height": size[1],
        "detections": [
            {"class": name, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
        ],
    }


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Converts the detections of an image to COCO's result format, boxes as left, top, width, height in pixels."""
    boxes = xyxy_to_cxcywh(found.boxes.double())
    boxes[:, :2] -= boxes[:, 2:] / 2
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for box, score, category_id in zip(boxes.tolist(), found.scores.tolist(), found.category_ids, strict=True)
    ]
