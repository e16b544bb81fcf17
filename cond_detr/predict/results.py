"""Detections as entries of JSON files."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cond_detr.data.annotation_checks import read_annotations
from cond_detr.download import path_at
from cond_detr.errors import InputError, shown
from cond_detr.predict.detections import Detections
from cond_detr.predict.video import Frame


def file_name(source: Path | str) -> str:
    """The name of an image's file, or of the file at its address."""
    return source.name if isinstance(source, Path) else path_at(source).name or "image"


def ids_of(sources: Sequence[Path | str], annotation_file: Path | None) -> dict[Path | str, int | str]:
    """The ids of images in coco_results.json, no two of which are the same.

    Args:
        sources: files and addresses of the images.
        annotation_file: has their ids, by the names of their files without folders. By default the names are the ids,
            or the paths of those that share a name.

    Raises:
        InputError: if the annotation file cannot be used, or does not tell the images apart.
    """
    times = Counter(map(file_name, sources))
    if annotation_file is None:
        return {each: file_name(each) if times[file_name(each)] == 1 else str(each) for each in sources}
    records = read_annotations(annotation_file).records
    ids = {Path(record.file_name).name: record.image_id for record in records}
    if len(ids) < len(records):
        raise InputError(f"annotation file {annotation_file} has images of the same name in several folders")
    for name, count in times.items():
        if name not in ids:
            raise InputError(f"annotation file {annotation_file} has no image {name}")
        if count > 1:
            raise InputError(f"annotation file {annotation_file} has one image {shown(name)}, got {count} of that name")
    return {each: ids[file_name(each)] for each in sources}


def detections_dict(image: Path | str, size: tuple[int, int], found: Detections, picture: str) -> dict[str, Any]:
    """Makes the entry of an image in predictions.json, boxes as left, top, right, bottom in pixels.

    Args:
        image: file or address of the image.
        size: (width, height) in pixels.
        found: its detections.
        picture: name of the picture with them.
    """
    return {
        "file": str(image),
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "detections": found.to_dicts(),
    }


def frame_line(picture: str, frame: Frame, size: tuple[int, int], found: Detections) -> bytes:
    """Makes the line of a frame in a video's file of JSON lines.

    Args:
        picture: name of the video with boxes.
        frame: the frame.
        size: (width, height) in pixels, which may change on the way.
        found: its detections.
    """
    line = {
        "picture": picture,
        "frame": frame.number,
        "seconds": frame.seconds,
        "width": size[0],
        "height": size[1],
        "detections": found.to_dicts(),
    }
    return json.dumps(line).encode() + b"\n"
