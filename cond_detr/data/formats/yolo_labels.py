"""YOLO's labels: a text file for each image, with a line for each object."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cond_detr.data.annotations import Annotations
from cond_detr.data.formats.headers import size_of
from cond_detr.data.formats.split import Objection, checked, in_order
from cond_detr.data.images import IMAGE_SUFFIXES
from cond_detr.errors import shown
from cond_detr.files import read_text

# Decimals of a box in pixels, as COCO has them; six digits of a fraction are exact to that
DIGITS = 2
# Fractions of the image size beyond this are pixels, or something else
LARGEST = 2.0
# The class names, where a tool writes no description; it may lie among the labels
CLASSES = "classes.txt"


class Labelling(NamedTuple):
    """What the labels of a data set are about.

    Attributes:
        file: the data set's description, for messages.
        names: class names.
        keypoints: how many keypoints, of two or three numbers, come behind each box.
    """

    file: Path
    names: list[str]
    keypoints: int = 0


def label_file(image: Path) -> Path:
    """Where the labels of an image are: in ``labels`` where it is in ``images``."""
    parts = list(beside(image).parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts)


def beside(image: Path) -> Path:
    """Where the labels of an image are that lie beside it."""
    return image.with_suffix(".txt")


def label_files(images: Sequence[Path]) -> list[Path]:
    """Where the labels of images are: by their names, or by what their folder, or they, lead to.

    One of these holds for all images of a folder, and one for all that are links there: an image without labels is not
    to get those of another data set.
    """
    places: Sequence[Callable[[Path], Path]] = (
        label_file,
        beside,
        lambda image: label_file(image.parent.resolve() / image.name),
        lambda image: label_file(image.resolve()),
    )
    kinds: dict[tuple[Path, bool], list[Path]] = {}
    for image in images:
        kinds.setdefault((image.parent, image.is_symlink()), []).append(image)
    place_of = {
        kind: next((place for place in places if any(os.path.lexists(place(image)) for image in alike)), label_file)
        for kind, alike in kinds.items()
    }
    return [place_of[image.parent, image.is_symlink()](image) for image in images]


def read_labels(about: Labelling, folder: Path, images: Sequence[Path], object_to: Objection) -> Annotations:
    """Reads the labels of images; those without a file have no objects.

    Raises:
        InputError: if an image or a file cannot be read, or ``object_to`` raises it.
    """
    file = about.file
    entries, annotations = [], []
    files = label_files(images)
    for i, (image, path) in enumerate(zip(images, files, strict=True)):
        width, height = size_of(image)
        name = image.relative_to(folder).as_posix()
        entries.append({"file_name": name, "width": width, "height": height})
        if not os.path.lexists(path):  # a link that leads nowhere is no image without objects
            continue
        for number, line in enumerate(read_text(path, "labels").split("\n"), 1):
            if not line.strip():
                continue
            where = f"{os.path.relpath(path, file.parent)} line {number}"
            found = parsed(line, len(about.names), about.keypoints)
            if isinstance(found, str):
                object_to(f"{file}: {where} {found}")
                continue
            label, box = found
            scaled = [round(v * side, DIGITS) for v, side in zip(box, (width, height) * 2, strict=True)]
            annotations.append({"id": where, "image_id": i, "category_id": label, "bbox": scaled})
    read = checked(f"{file} (YOLO)", entries, annotations, about.names, object_to)
    return read.noting(without_image(images, files)).noting(from_elsewhere(images, files))


def from_elsewhere(images: Sequence[Path], files: Sequence[Path]) -> str:
    """A remark about images that have labels of another data set, in a folder whose others have their own."""
    own, others = set(), []
    for image, path in zip(images, files, strict=True):
        if path in (label_file(image), beside(image)):
            own.add(image.parent)
        elif os.path.lexists(path):
            others.append((image, path))
    mixed = [(image, path) for image, path in others if image.parent in own]
    if not mixed:
        return ""
    image, path = mixed[0]
    return f"{len(mixed)} images are links and have labels of elsewhere, such as {image.name} those in {path}"


def without_image(images: Sequence[Path], files: Sequence[Path]) -> str:
    """A remark about label files that belong to no image, of this split or another; empty if there are none."""
    # of images that are links, labels lie with those of others
    folders = {(path.parent, image.parent) for image, path in zip(images, files, strict=True) if same_tree(image, path)}
    left = []
    for labels, beside_it in sorted(folders):
        known = {each.stem for each in beside_it.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES}
        left += [path for path in in_order(labels, "*.txt") if path.stem not in known and path.name != CLASSES]
    return f"{len(left)} label files belong to no image that can be read, such as {left[0]}" if left else ""


def same_tree(image: Path, labels: Path) -> bool:
    """Whether labels are in a folder for them, and it is that of the image's name."""
    return labels == label_file(image) != beside(image)


def parsed(line: str, classes: int, keypoints: int = 0) -> tuple[int, tuple[float, float, float, float]] | str:
    """Class and box (left, top, width, height in fractions) of a line, or what is wrong with it.

    After the class come centre, width and height, and in data sets of poses their keypoints; or the corners of a
    polygon or of a turned box.
    """
    words = line.split()
    try:
        label, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        return f"must be a class and numbers, got {shown(line.strip())}"
    if not 0 <= label < classes:
        return f"has class {label}, but there are {classes}, from 0 on"
    if keypoints:
        if len(values) not in (4, 4 + 2 * keypoints, 4 + 3 * keypoints):
            return f"must have 4 numbers after the class, and {keypoints} keypoints behind them, got {len(values)}"
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"must have 4 numbers after the class, or the corners of a polygon, got {len(values)}"
    if not all(math.isfinite(value) and abs(value) <= LARGEST for value in values):
        return f"must have fractions of the image size, got {shown(line.strip())}"
    if len(values) == 4:
        x, y, width, height = values
        return label, (x - width / 2, y - height / 2, width, height)
    across, down = values[::2], values[1::2]
    return label, (min(across), min(down), max(across) - min(across), max(down) - min(down))
