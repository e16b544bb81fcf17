"""Detections as entries of JSON files."""

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from cond_detr.predict.detections import Detections


def file_name(source: Path | str) -> str:
    """The name of an image's file, or of the file at its address."""
    return source.name if isinstance(source, Path) else Path(urlparse(source).path).name


def detections_dict(image: Path | str, size: tuple[int, int], found: Detections) -> dict[str, Any]:
    """Makes the entry of an image in predictions.json, boxes as left, top, right, bottom in pixels.

    Args:
        image: file or address of the image.
        size: (width, height) in pixels.
        found: its detections.
    """
    return {
        "file": str(image),
        "width": size[0],
        "height": size[1],
        "detections": found.to_dicts(),
    }
