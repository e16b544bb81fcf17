"""Checking what an annotation file says: which images, classes and boxes of it can be used."""

import contextlib
import gc
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cond_detr.classes import UNUSED, Classes
from cond_detr.data.annotation_file import (
    AnnotationEntry,
    CategoryEntry,
    Content,
    Further,
    ImageEntry,
    content_of,
    read_content,
)
from cond_detr.data.annotations import Annotations, Images, Objects
from cond_detr.data.masks import mask_bounds
from cond_detr.data.packing import packed
from cond_detr.data.texts import Texts
from cond_detr.errors import InputError, shown

# Coordinates of boxes, and areas, in pixels: more is a mistake
LARGEST, LARGEST_AREA = 1e9, 1e18
# What no annotated image and category has
NOWHERE = -1
NO_BOX = (math.nan,) * 4
# Of annotations without an area
MISSING = -math.inf
# Entries of annotations whose arrays are made together
AT_ONCE = 4096

_IMAGE_ID, _CATEGORY_ID, _BBOX, _AREA, _ISCROWD = map(
    attrgetter, ("image_id", "category_id", "bbox", "area", "iscrowd")
)
_ID, _FILE_NAME, _WIDTH, _HEIGHT = map(attrgetter, ("id", "file_name", "width", "height"))


def read_annotations(
    path: Path, object_to: Callable[[str], None] | None = None, others: Sequence[Path] = ()
) -> Annotations:
    """Reads and checks an annotation file.

    Args:
        path: the file.
        object_to: as in :func:`check_annotations`; by default any unusable annotation raises InputError.
        others: annotation files of the same data set's other splits, where they are there: a category that has objects
            in one of them is a class in all.

    Raises:
        InputError: if it is missing, is not JSON, or its content cannot be used.
    """
    with _without_collector():
        return _checked(*read_content(path), str(path), object_to or refuse, others)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps the garbage collector from looking through a million new objects that nothing refers back to."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


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
    return _checked(*content_of(raw, name), name, object_to)


def _checked(
    content: Content, further: Further, name: str, object_to: Callable[[str], None], others: Sequence[Path] = ()
) -> Annotations:
    if not content.categories:
        raise InputError(f"{name}: expected at least one image and one category, got none")
    _check_unique("category id", [category.id for category in content.categories], name)
    groups = _groups(content, others)
    classes = _classes([category for category in content.categories if category not in groups], name)
    _check_unique("image id", list(map(_ID, content.images)), name)
    images = _images(content.images)
    objects = _objects(content.annotations, further, images, classes, name, object_to)
    kept, dropped, notes = _kept(objects, images)
    return Annotations(name, classes, images, kept, dropped, notes, tuple(group.name for group in groups))


def _classes(entries: Sequence[CategoryEntry], name: str) -> Classes:
    categories = sorted(entries, key=_ID)
    try:
        classes = Classes(tuple(c.name for c in categories), tuple(c.id for c in categories))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if UNUSED in classes.names:
        raise InputError(f"{name}: category name {UNUSED!r} stands for outputs without a class; choose another")
    _check_unique("category name", classes.names, name)
    return classes


def _check_unique(what: str, values: Sequence[Any], name: str) -> None:
    if len(set(values)) < len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise InputError(f"{name}: {what} {shown(twice)} is used more than once")


def _groups(content: Content, others: Sequence[Path]) -> list[CategoryEntry]:
    """The categories that only group others, as Roboflow's first one does, and have no object in any split."""
    # by which categories other than themselves names are used as groups
    groups: dict[Any, set[int]] = {}
    for category in content.categories:
        if isinstance(category.supercategory, str):
            groups.setdefault(category.supercategory, set()).add(category.id)
    grouping = [category for category in content.categories if groups.get(category.name, set()) - {category.id}]
    # seldom are there any, and annotations may be millions
    used = _used(content) if grouping else set()
    only = [category for category in grouping if (category.id, category.name) not in used]
    if only:
        for other in others:
            with contextlib.suppress(InputError):  # whoever reads it says what is wrong with it
                used |= _used(read_content(other)[0])
        only = [category for category in only if (category.id, category.name) not in used]
    # where all of them group each other, nothing tells which are classes
    return only if len(only) < len(content.categories) else []


def _used(content: Content) -> set[tuple[int, str]]:
    """The ids and names of the categories that have objects; a group can have the name of its class."""
    ids = set(map(_CATEGORY_ID, content.annotations))
    return {(category.id, category.name) for category in content.categories if category.id in ids}


def _images(entries: Sequence[ImageEntry]) -> Images:
    ids = list(map(_ID, entries))
    try:
        numbers = packed("q", ids)
    except struct.error:  # of more than 64 bits
        numbers = np.array(ids, object)
    # in the file's order, as the entries lie in memory, and then in that of the ids
    order = np.argsort(numbers)
    sizes = np.stack([packed("i", map(_WIDTH, entries)), packed("i", map(_HEIGHT, entries))], 1)
    return Images(numbers[order], Texts.of(map(_FILE_NAME, entries)).take(order), sizes[order])


# Stands for the box of a segmentation that has none
DAMAGED = object()


def bounds_of(segmentation: Any) -> tuple[float, ...] | None:
    """The bounds of polygons or of a run-length encoded mask: left, top, width and height; None if it is damaged."""
    try:
        if isinstance(segmentation, dict):
            return tuple(mask_bounds(segmentation))
        corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation])
        low, high = corners.min(0), corners.max(0)
    except Exception:  # polygons that are none can raise anything
        return None
    return tuple(float(value) for value in (*low, *(high - low)))


def _objects(
    annotations: list[AnnotationEntry],
    further: Further,
    images: Images,
    classes: Classes,
    name: str,
    object_to: Callable[[str], None],
) -> Objects:
    """The annotations in their order; those that cannot be used are objected to, and have no image."""
    arrays_of = _gathering(images, classes, len(annotations))
    parts: list[Objects] = []
    doubtful: dict[int, AnnotationEntry] = {}
    for entries in _taken_from(annotations):
        part, wrong = arrays_of(entries)
        before = AT_ONCE * len(parts)
        doubtful |= {before + i: entries[i] for i in np.flatnonzero(wrong).tolist()}
        parts.append(part)
    objects = Objects.together(parts)
    without = [i for i, entry in doubtful.items() if entry.bbox is None]
    for i, shape in zip(without, further("segmentation", without), strict=True):
        if shape:
            doubtful[i].bbox = bounds_of(shape) or DAMAGED  # type: ignore[assignment]
    if not doubtful:
        return objects
    numbers = np.array(list(doubtful))
    part, wrong = arrays_of(list(doubtful.values()))
    objects.boxes[numbers] = part.boxes
    refused = numbers[wrong].tolist()
    for i, own_id in zip(refused, further("id", refused), strict=True):
        image = objects.images[i]
        of_image = "" if image < 0 else f" ({images.names[image]})"
        called = f"number {i}" if own_id is None else own_id
        why = _what_is_wrong(doubtful[i], known_image=image >= 0, known_category=objects.labels[i] >= 0)
        object_to(f"{name}: annotation {shown(called)}{of_image} {why}")
    objects.images[refused] = NOWHERE
    return objects


def _taken_from(annotations: list[AnnotationEntry]) -> Iterator[list[AnnotationEntry]]:
    """Empties the list, and yields its entries in one part or more, each small enough for the processor's cache."""
    annotations.reverse()
    while True:
        yield annotations[: -AT_ONCE - 1 : -1]
        del annotations[-AT_ONCE:]
        if not annotations:
            break


def _gathering(
    images: Images, classes: Classes, count: int
) -> Callable[[list[AnnotationEntry]], tuple[Objects, NDArray[np.bool_]]]:
    """A function that makes arrays of entries, and tells which of them cannot be used; ``count`` are to come."""
    image_of, label_of = _places(images.ids, count), _places(np.array(classes.category_ids, object), count)

    def arrays_of(entries: list[AnnotationEntry]) -> tuple[Objects, NDArray[np.bool_]]:
        image, label = image_of(list(map(_IMAGE_ID, entries))), label_of(list(map(_CATEGORY_ID, entries)))
        flag, box = _flags(entries), _boxes(entries)
        wrong = (image < 0) | (label < 0) | (flag < 0) | ~_are_boxes(box)
        return Objects(image, label, box, _areas(entries), flag == 1), wrong

    return arrays_of


def _places(ids: NDArray[Any], count: int) -> Callable[[list[int]], NDArray[np.int32]]:
    """A function that finds wanted ids among those given, which ascend: their index, or :data:`NOWHERE`.

    It will be asked for ``count`` of them, for which a table may be worth its size.
    """
    first, last = int(ids[0]), int(ids[-1])
    if last - first > len(ids) + count or first < -(2**62) or last > 2**62:
        numbers = {number: i for i, number in enumerate(ids.tolist())}
        return lambda wanted: np.array([numbers.get(each, NOWHERE) for each in wanted], np.int32)
    # close together, as they mostly are: a table, where both ends stand for all that is outside
    table = np.full(last - first + 3, NOWHERE, np.int32)
    table[ids.astype(np.int64) - first + 1] = np.arange(len(ids))

    def look_up(wanted: list[int]) -> NDArray[np.int32]:
        try:
            asked = packed("q", wanted)
        except struct.error:  # of more than 64 bits
            asked = np.array([min(max(each, first - 1), last + 1) for each in wanted], np.int64)
        return table.take(asked.clip(first - 1, last + 1) - first + 1)

    return look_up


def _flags(annotations: Sequence[AnnotationEntry]) -> NDArray[np.int8]:
    """(M,) which are crowds: 0 or 1, as a file should say; :data:`NOWHERE` for anything else."""
    flags = list(map(_ISCROWD, annotations))
    with contextlib.suppress(TypeError, ValueError):  # text, fractions, negative or large ones
        found = np.frombuffer(bytes(flags), np.int8)
        if not (found & ~1).any():
            return found
    return np.array([int(flag) if flag in (0, 1) else NOWHERE for flag in flags], np.int8)


def _boxes(annotations: Sequence[AnnotationEntry]) -> NDArray[np.float64]:
    """(M, 4) float64 boxes; NaN where there is none."""
    boxes: list[Any] = list(map(_BBOX, annotations))
    if set(map(type, boxes)) != {tuple}:
        boxes = [box if isinstance(box, tuple) else NO_BOX for box in boxes]
    return packed("d", chain.from_iterable(boxes)).reshape(-1, 4)


def _are_boxes(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(M,) whether the numbers can be boxes."""
    left, top, width, height = boxes.T
    with np.errstate(invalid="ignore"):  # NaN is no box
        fine = (np.abs(left) < LARGEST) & (np.abs(top) < LARGEST) & (width < LARGEST) & (height < LARGEST)
        return fine & (width >= 0) & (height >= 0)


def _areas(annotations: Sequence[AnnotationEntry]) -> NDArray[np.float64]:
    """(M,) float64 areas; :data:`MISSING` where there is none, and NaN where it is no number."""
    try:
        return packed("d", map(_AREA, annotations))
    except struct.error:  # it is not there, or no number
        known = (MISSING if a is msgspec.UNSET else math.nan if a is None else a for a in map(_AREA, annotations))
        return packed("d", known)


def _what_is_wrong(entry: AnnotationEntry, *, known_image: bool, known_category: bool) -> str:
    """Why an annotation cannot be used."""
    if not known_image:
        return f"is for image {shown(entry.image_id)}, which is not among the images"
    if not known_category:
        return f"has category {shown(entry.category_id)}, which is not among the categories"
    if entry.iscrowd not in (0, 1):
        return f"has iscrowd {shown(entry.iscrowd)}; expected 0 or 1"
    bbox: Any = entry.bbox
    if bbox is None or bbox is DAMAGED:
        why = "there is no segmentation to take one from" if bbox is None else "its segmentation is damaged"
        return f"has no box: bbox is None, and {why}"
    if isinstance(bbox, tuple):
        bbox = [int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 2**53 else v for v in bbox]
    elif not isinstance(bbox, list):
        return f"has no box: bbox is {shown(bbox)}"
    return f"has bbox {shown(bbox)}; expected [left, top, width, height], finite, with width and height not negative"


def _kept(objects: Objects, images: Images) -> tuple[Objects, dict[str, int], tuple[str, ...]]:
    """The objects that can be used, by image, the number of dropped ones by reason, and notes about the others."""
    usable = objects.images >= 0
    sizes = images.sizes.take(objects.images, 0)
    with np.errstate(all="ignore"):  # those that are not usable can be anything
        inside = np.ones(len(objects), np.bool_)
        for first, extent, size in zip(objects.boxes[:, :2].T, objects.boxes[:, 2:].T, sizes.T, strict=True):
            inside &= (first < size) & (first + extent > 0) & (extent > 0)
    kept = np.flatnonzero(usable & (inside | objects.crowds))
    outside = int(usable.sum()) - len(kept)
    dropped = {"empty or outside the image": outside} if outside else {}
    # by image, and within an image in their order: a fifth of a stable argsort's time
    order = np.sort(objects.images[kept].astype(np.int64) << 32 | np.arange(len(kept))) & 0xFFFFFFFF
    objects = objects[kept[order]]
    good = (objects.areas > 0) & (objects.areas < LARGEST_AREA)
    odd = int((~good & (objects.areas != MISSING)).sum())
    notes = (f"{odd} annotations have an area that is no number above 0; width times height is taken",) * bool(odd)
    areas = np.where(good, objects.areas, objects.boxes[:, 2] * objects.boxes[:, 3])
    return replace(objects, areas=areas), dropped, notes
