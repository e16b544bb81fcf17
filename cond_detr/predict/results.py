"""Detections as entries of JSON files."""

from pathlib import Path
from typing import Any

from cond_detr.predict.detections import Detections


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
        "detections": found.to_dicts(),
    }
