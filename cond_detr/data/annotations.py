"""Reading and checking annotation files in COCO's format."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cond_detr.classes import UNUSED, Classes, in_one_line
from cond_detr.data.masks import mask_bounds
from cond_detr.errors import InputError, shown
from cond_detr.files import read_json


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
        notes: sentences about what was read otherwise than it stands there.
    """

    name: str
    ground_truth: dict[str, list[dict[str, Any]]]
    classes: Classes
    records: tuple[ImageRecord, ...]
    dropped: dict[str, int]
    notes: tuple[str, ...] = ()


def read_annotations(path: Path, object_to: Callable[[str], None] | None = None) -> Annotations:
    """Reads and checks an annotation file.

    Args:
        path: the file.
        object_to: as in :func:`check_annotations`; by default any unusable annotation raises InputError.

    Raises:
        InputError: if it is missing, is not JSON, or its content cannot be used.
    """
    return check_annotations(read_json(path, "annotation file"), str(path), object_to or refuse)


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
    notes: list[str] = []
    categories = sorted(_without_roots(raw, notes), key=lambda c: c["id"])
    if not categories:
        raise InputError(f"{name}: expected at least one image and one category, got none")
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
    kept, dropped = _keep_boxes(raw, classes, name, object_to, notes)
    ground_truth = {
        "images": [{key: image[key] for key in ("id", "file_name", "width", "height")} for image in raw["images"]],
        "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        "annotations": kept,
    }
    return Annotations(name, ground_truth, classes, _records(ground_truth, classes), dropped, tuple(notes))


# Of an image's side, more than any file format can hold
MOST_PIXELS = 10**6
# Characters of a file name with its folders; Linux allows as many bytes
LONGEST_PATH = 4096
# What must be there, and of which type; bbox may be missing where there is a segmentation
FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
TYPES = {int: "a whole number", str: "text"}


def _check_fields(raw: Any, name: str) -> None:
    for key in FIELDS:
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list):
            raise InputError(f"{name}: expected an object with a list {key!r}, as in COCO's annotation files")
        for i, entry in enumerate(raw[key]):
            _check_entry(entry, FIELDS[key], f"{name}: {key}[{i}]")
    for image in raw["images"]:
        width, height = image["width"], image["height"]
        if not 1 <= min(width, height) <= max(width, height) <= MOST_PIXELS:
            raise InputError(
                f"{name}: image {shown(image['id'])} must have a width and a height of 1 to {MOST_PIXELS} pixels, "
                f"got {shown(width)} and {shown(height)}"
            )
        if not in_one_line(image["file_name"]) or len(image["file_name"]) > LONGEST_PATH:
            raise InputError(
                f"{name}: image {shown(image['id'])} has a file name that no file can have: {shown(image['file_name'])}"
            )
    if not raw["images"]:
        raise InputError(f"{name}: expected at least one image and one category, got none")


def _check_entry(entry: Any, needed: dict[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object, got {shown(entry)}")
    for field, kind in needed.items():
        value = entry.get(field)
        if kind is int and isinstance(value, str) and value.isdecimal() and len(value) < 19:
            value = entry[field] = int(value)  # some tools write numbers as text
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where} must have {TYPES[kind]} as {field!r}, got {shown(value)}")


def _without_roots(raw: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """The categories, without those that only group others, as Roboflow's first one does."""
    used = {annotation["category_id"] for annotation in raw["annotations"]}
    # by which categories other than themselves names are used as groups
    groups: dict[Any, set[int]] = {}
    for category in raw["categories"]:
        if isinstance(category.get("supercategory"), str):
            groups.setdefault(category["supercategory"], set()).add(category["id"])
    kept = []
    for category in raw["categories"]:
        if category["id"] not in used and groups.get(category["name"], set()) - {category["id"]}:
            notes.append(f"category {shown(category['name'])} only groups others, and is no class")
        else:
            kept.append(category)
    return kept


def _keep_boxes(
    raw: dict[str, Any], classes: Classes, name: str, object_to: Callable[[str], None], notes: list[str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The usable annotations in the form of COCO's evaluation, and the number of dropped ones by reason."""
    images = {image["id"]: image for image in raw["images"]}
    known = set(classes.category_ids)
    kept: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    areas = 0
    for i, annotation in enumerate(raw["annotations"]):
        image = images.get(annotation["image_id"])
        bbox = box_of(annotation)
        wrong = _what_is_wrong(annotation, bbox, image, known)
        if wrong:
            of_image = f" ({image['file_name']})" if image else ""
            object_to(f"{name}: annotation {shown(annotation.get('id', f'number {i}'))}{of_image} {wrong}")
            continue
        assert image is not None
        assert bbox is not None
        left, top, width, height = bbox
        crowd = bool(annotation.get("iscrowd", 0))
        inside = left < image["width"] and top < image["height"] and left + width > 0 and top + height > 0
        if not crowd and not (inside and width > 0 and height > 0):
            dropped["empty or outside the image"] += 1
            continue
        area = annotation.get("area", width * height)
        if not _is_number(area) or not 0 < area < 1e18:
            areas += 1
            area = width * height
        kept.append(
            {
                "id": len(kept) + 1,  # pycocotools takes id 0 for "not matched"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
        )
    if areas:
        notes.append(f"{areas} annotations have an area that is none; width times height is taken")
    return kept, dict(dropped)


def box_of(annotation: dict[str, Any]) -> list[float] | None:
    """The box of an annotation, [left, top, width, height]; without one, the bounds of its polygons or its RLE mask."""
    bbox = annotation.get("bbox")
    if bbox is not None or not annotation.get("segmentation"):
        return bbox if isinstance(bbox, list) else None
    shape = annotation["segmentation"]
    try:
        if isinstance(shape, dict):
            return mask_bounds(shape)
        corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in shape])
        low, high = corners.min(0), corners.max(0)
    except Exception:  # polygons that are none can raise anything
        return None
    return [float(value) for value in (*low, *(high - low))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _what_is_wrong(
    annotation: dict[str, Any], bbox: list[Any] | None, image: dict[str, Any] | None, categories: set[int]
) -> str | None:
    """Why an annotation cannot be used; None if it can."""
    if image is None:
        return f"is for image {annotation['image_id']}, which is not among the images"
    if annotation["category_id"] not in categories:
        return f"has category {annotation['category_id']}, which is not among the categories"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {shown(annotation['iscrowd'])}; expected 0 or 1"
    if bbox is None:
        damaged = annotation.get("segmentation")
        why = "its segmentation is damaged" if damaged else "there is no segmentation to take one from"
        remark = "" if annotation.get("bbox") is not None else f", and {why}"
        return f"has no box: bbox is {shown(annotation.get('bbox'))}{remark}"
    numbers = len(bbox) == 4 and all(_is_number(v) and abs(v) < 1e9 for v in bbox)
    if not numbers or bbox[2] < 0 or bbox[3] < 0:
        return (
            f"has bbox {shown(bbox)}; expected [left, top, width, height], finite, with width and height not negative"
        )
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
