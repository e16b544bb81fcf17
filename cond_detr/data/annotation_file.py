"""What an annotation file in COCO's format holds, before its meaning is checked.

Files are decoded by msgspec into typed entries, without segmentations: a tenth of the time and memory of Python's own
objects. What msgspec refuses is read once more by Python's json: numbers that are written as text or as NaN are then
accepted, and whatever is wrong gets its sentence.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from cond_detr.classes import in_one_line
from cond_detr.errors import InputError, shown
from cond_detr.files import mapped, read_json

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
# What msgspec raises at files that it does not take
REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# The values of a field that is seldom needed, "id" or "segmentation", of the annotations of given numbers
Further: TypeAlias = Callable[[str, Sequence[int]], list[Any]]


class ImageEntry(msgspec.Struct, gc=False):
    """An entry of ``images``."""

    id: int
    file_name: str
    width: int
    height: int


class CategoryEntry(msgspec.Struct, gc=False):
    """An entry of ``categories``."""

    id: int
    name: str
    supercategory: Any = None


class AnnotationEntry(msgspec.Struct, gc=False):
    """An entry of ``annotations``.

    Attributes:
        image_id: id of the image.
        category_id: id of the category.
        bbox: left, top, width and height. Anything but a tuple is no box, and None may be replaced by a segmentation's.
        area: in pixels; None if it is no number.
        iscrowd: should be 0 or 1.
    """

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] | None = None
    area: float | msgspec.UnsetType | None = msgspec.UNSET
    iscrowd: int = 0


class Content(msgspec.Struct, gc=False):
    """The lists of a file."""

    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]


def _decoder_of(field: str) -> msgspec.json.Decoder[Any]:
    """A decoder of one field of the annotations."""
    entry = msgspec.defstruct("Entry", [(field, Any, None)], gc=False)
    return msgspec.json.Decoder(msgspec.defstruct("Entries", [("annotations", list[entry])], gc=False))  # type: ignore[valid-type]


_FILE_NAME, _WIDTH, _HEIGHT = map(attrgetter, ("file_name", "width", "height"))
_CONTENT = msgspec.json.Decoder(Content)
_FURTHER = {field: _decoder_of(field) for field in ("id", "segmentation")}


def read_content(path: Path) -> tuple[Content, Further]:
    """Reads an annotation file.

    Raises:
        InputError: if it is missing, is not JSON, or lacks a field.
    """
    called = "annotation file"
    with mapped(path, called) as raw, contextlib.suppress(*REFUSED):
        content = _CONTENT.decode(raw)
        check_images(content.images, str(path))
        return content, lambda field, numbers: _further(path, called, field, numbers)
    return content_of(read_json(path, called), str(path))


def _further(path: Path, called: str, field: str, numbers: Sequence[int]) -> list[Any]:
    if not numbers:
        return []
    with mapped(path, called) as raw, contextlib.suppress(*REFUSED):
        entries = _FURTHER[field].decode(raw).annotations
        return [getattr(entries[i], field) for i in numbers]
    return content_of(read_json(path, called), str(path))[1](field, numbers)


def content_of(raw: Any, name: str) -> tuple[Content, Further]:
    """Takes the entries from parsed JSON.

    Args:
        raw: content of the JSON file.
        name: name of the file, for messages.

    Raises:
        InputError: if a field is missing or of another type.
    """
    for key in FIELDS:
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list):
            raise InputError(f"{name}: expected an object with a list {key!r}, as in COCO's annotation files")
    values = {
        key: [_fields(entry, needed, f"{name}: {key}[{i}]") for i, entry in enumerate(raw[key])]
        for key, needed in FIELDS.items()
    }
    images = [ImageEntry(**fields) for fields in values["images"]]
    check_images(images, name)
    categories = [
        CategoryEntry(**fields, supercategory=entry.get("supercategory"))
        for fields, entry in zip(values["categories"], raw["categories"], strict=True)
    ]
    annotations = [
        _annotation(fields, entry) for fields, entry in zip(values["annotations"], raw["annotations"], strict=True)
    ]
    return Content(images, annotations, categories), lambda field, numbers: [
        raw["annotations"][i].get(field) for i in numbers
    ]


def _annotation(fields: dict[str, int], entry: dict[str, Any]) -> AnnotationEntry:
    bbox = entry.get("bbox")
    if isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)):
        bbox = tuple(bbox)
    area = entry.get("area", msgspec.UNSET)
    if area is not msgspec.UNSET and not (_is_number(area) and math.isfinite(area)):
        area = None
    return AnnotationEntry(**fields, bbox=bbox, area=area, iscrowd=entry.get("iscrowd", 0))


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can be."""
    return isinstance(value, float) or (isinstance(value, int) and type(value) is not bool and abs(value) < 2**1000)


def check_images(images: Sequence[ImageEntry], name: str) -> None:
    """Checks sizes and file names.

    Raises:
        InputError: if one of them is of no image that there can be, or there is no image.
    """
    names = list(map(_FILE_NAME, images))
    sides = set(map(_WIDTH, images)) | set(map(_HEIGHT, images))
    fine = images and 1 <= min(sides) <= max(sides) <= MOST_PIXELS and max(map(len, names)) <= LONGEST_PATH
    together = "".join(names)
    if fine and together.isascii() and together.isprintable():
        return  # at once, as there may be millions
    for image in images:
        if not (1 <= image.width <= MOST_PIXELS and 1 <= image.height <= MOST_PIXELS):
            raise InputError(
                f"{name}: image {shown(image.id)} must have a width and a height of 1 to {MOST_PIXELS} pixels, "
                f"got {shown(image.width)} and {shown(image.height)}"
            )
        if not in_one_line(image.file_name) or len(image.file_name) > LONGEST_PATH:
            raise InputError(
                f"{name}: image {shown(image.id)} has a file name that is not one line of text, or is too long: "
                f"{shown(image.file_name)}"
            )
    if not images:
        raise InputError(f"{name}: expected at least one image and one category, got none")


def _fields(entry: Any, needed: dict[str, type], where: str) -> dict[str, Any]:
    """The needed fields of an entry."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object, got {shown(entry)}")
    fields = {}
    for field, kind in needed.items():
        value = entry.get(field)
        if kind is int and isinstance(value, str) and value.isdecimal() and len(value) < 19:
            value = int(value)  # some tools write numbers as text
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where} must have {TYPES[kind]} as {field!r}, got {shown(value)}")
        fields[field] = value
    return fields
