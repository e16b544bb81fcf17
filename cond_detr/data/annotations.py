"""Reading and checking annotation files in COCO's format."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cond_detr.classes import UNUSED, Classes, in_one_line
from cond_detr.errors import InputError, shown


@dataclass(frozen=True)
class ImageRecord:
    """An image of a data set with its ground truth.

    Attributes:
        image_id: id in the annotation file.
        file_name: path inside the image folder.
        size: (width, height) in pixels, as the annotation file says.
        boxes: (n, 4) float32 xyxy in pixels, clipped to the image, without crowds.
        labels: (n,) int64 indices into the classes.
    """

    image_id: int
    file_name: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file.

    Attributes:
        name: path of the file, for messages.
        ground_truth: input of COCO's evaluation: images, categories, and the boxes that were kept, with crowds.
        classes: the categories in the order of their ids.
        records: the images in the order of their ids.
        dropped: number of boxes that were left out, by reason.
    """

    name: str
    ground_truth: dict[str, list[dict[str, Any]]]
    classes: Classes
    records: tuple[ImageRecord, ...]
    dropped: dict[str, int]


def read_annotations(path: Path, object_to: Callable[[str], None] | None = None) -> Annotations:
    """Reads and checks an annotation file.

    Args:
        path: the file.
        object_to: as in :func:`check_annotations`; by default any unusable annotation raises InputError.

    Raises:
        InputError: if it is missing, is not JSON, or its content cannot be used.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"annotation file {path} does not exist") from None
    except OSError as error:
        raise InputError(f"annotation file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"annotation file {path} is not valid JSON: {error}") from None
    return check_annotations(raw, str(path), object_to or refuse)


def refuse(sentence: str) -> None:
    """Raises InputError with the given message."""
    raise InputError(sentence)


def check_annotations(raw: Any, name: str, object_to: Callable[[str], None] = refuse) -> Annotations:
    """Checks parsed annotations.

    Args:
        raw: content of the JSON file.
        name: name of the file, for messages.
        object_to: called with a message about each annotation that cannot be used; if it returns, the annotation is
            left out.

    Raises:
        InputError: if fields are missing, an id or name is used twice, or there is no image or no category.
    """
    _check_fields(raw, name)
    categories = sorted(raw["categories"], key=lambda c: c["id"])
    try:
        classes = Classes(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if UNUSED in classes.names:
        raise InputError(f"{name}: category name {UNUSED!r} stands for outputs without a class; choose another")
    for what, values in (
        ("image id", [image["id"] for image in raw["images"]]),
        ("category id", classes.category_ids),
        ("category name", classes.names),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise InputError(f"{name}: {what} {shown(twice[0])} is used more than once")
    kept, dropped = _keep_boxes(raw, classes, name, object_to)
    ground_truth = {
        "images": [{key: image[key] for key in ("id", "file_name", "width", "height")} for image in raw["images"]],
        "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        "annotations": kept,
    }
    return Annotations(name, ground_truth, classes, _records(ground_truth, classes), dropped)


# Of an image's side, more than any file format can hold
MOST_PIXELS = 10**6
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


def _check_fields(raw: Any, name: str) -> None:
    for key, needed in FIELDS.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list):
            raise InputError(f"{name}: expected an object with a list {key!r}, as in COCO's annotation files")
        for i, entry in enumerate(raw[key]):
            for field, kind in needed.items():
                value = entry.get(field) if isinstance(entry, dict) else None
                if not isinstance(value, kind):
                    raise InputError(f"{name}: {key}[{i}] must have a {field!r}, got {shown(value)}")
    for image in raw["images"]:
        if not 1 <= min(image["width"], image["height"]) <= max(image["width"], image["height"]) <= MOST_PIXELS:
            raise InputError(f"{name}: image {image['id']} must have a width and a height of 1 to {MOST_PIXELS} pixels")
        if not in_one_line(image["file_name"]):
            raise InputError(f"{name}: image {image['id']} has a file name that no file can have")
    if not raw["categories"] or not raw["images"]:
        raise InputError(f"{name}: expected at least one image and one category, got none")


def _keep_boxes(
    raw: dict[str, Any], classes: Classes, name: str, object_to: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The usable annotations in the form of COCO's evaluation, and the number of dropped ones by reason."""
    images = {image["id"]: image for image in raw["images"]}
    known = set(classes.category_ids)
    kept: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    for i, annotation in enumerate(raw["annotations"]):
        image = images.get(annotation["image_id"])
        wrong = _what_is_wrong(annotation, image, known)
        if wrong:
            of_image = f" ({image['file_name']})" if image else ""
            object_to(f"{name}: annotation {annotation.get('id', f'number {i}')}{of_image} {wrong}")
            continue
        assert image is not None
        left, top, width, height = bbox = annotation["bbox"]
        crowd = bool(annotation.get("iscrowd", 0))
        inside = left < image["width"] and top < image["height"] and left + width > 0 and top + height > 0
        if not crowd and not (inside and width > 0 and height > 0):
            dropped["empty or outside the image"] += 1
            continue
        area = annotation.get("area")
        kept.append(
            {
                "id": len(kept) + 1,  # pycocotools takes id 0 for "not matched"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": bbox,
                "area": area if isinstance(area, (int, float)) else width * height,
                "iscrowd": int(crowd),
            }
        )
    return kept, dict(dropped)


def _what_is_wrong(annotation: dict[str, Any], image: dict[str, Any] | None, categories: set[int]) -> str | None:
    """Why an annotation cannot be used; None if it can."""
    if image is None:
        return f"is for image {annotation['image_id']}, which is not among the images"
    if annotation["category_id"] not in categories:
        return f"has category {annotation['category_id']}, which is not among the categories"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {shown(annotation['iscrowd'])}; expected 0 or 1"
    bbox = annotation["bbox"]
    numbers = len(bbox) == 4 and all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in bbox)
    if not numbers or bbox[2] < 0 or bbox[3] < 0:
        return f"has bbox {bbox}; expected [left, top, width, height], finite, with width and height not negative"
    return None


def _records(ground_truth: dict[str, list[dict[str, Any]]], classes: Classes) -> tuple[ImageRecord, ...]:
    """The images in the order of their ids, with boxes and labels, without crowds."""
    label_of = {category_id: label for label, category_id in enumerate(classes.category_ids)}
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            found[annotation["image_id"]].append(annotation)
    records = []
    for image in sorted(ground_truth["images"], key=lambda image: image["id"]):
        size = (image["width"], image["height"])
        boxes = np.array([a["bbox"] for a in found[image["id"]]], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.array([*size, *size], np.float32))
        labels = np.array([label_of[a["category_id"]] for a in found[image["id"]]], np.int64)
        records.append(ImageRecord(image["id"], image["file_name"], size, boxes, labels))
    return tuple(records)
