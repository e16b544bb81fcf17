"""A split of a data set in whatever format it lies there, and how it is read."""

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np

from cond_detr.data.annotation_checks import check_annotations, refuse
from cond_detr.data.annotations import Annotations, Images
from cond_detr.data.texts import Texts
from cond_detr.errors import InputError

# Takes a sentence about an annotation that cannot be used
Objection: TypeAlias = Callable[[str], None]
# Of the names that tools give to the split for validation
NAMES = {"train": ("train",), "val": ("val", "valid", "validation")}
SPLITS = tuple(NAMES)
EVERY = (*(name for names in NAMES.values() for name in names), "test")


@dataclass(frozen=True)
class Split:
    """Where a split lies, and how it is read.

    Attributes:
        format: what it was recognised as, such as "YOLO".
        folder: the image folder.
        read: reads and checks the annotations, and objects to those that cannot be used.
        alone: whether there are no images of other splits in the folder.
        annotation_file: if there is one for the split in COCO's format.
    """

    format: str
    folder: Path
    read: Callable[[Objection], Annotations]
    alone: bool = True
    annotation_file: Path | None = None

    def annotations(self, object_to: Objection = refuse) -> Annotations:
        """Reads and checks the annotations.

        Raises:
            InputError: if they cannot be used.
        """
        return self.read(object_to)

    def part(self, split: str, fraction: float) -> "Split":
        """The part of all images that is for a split, where they come in one piece.

        Args:
            split: "train" or "val".
            fraction: of the images, those for validation.
        """
        return replace(
            self,
            read=lambda object_to: part_of(self.read(object_to), split, fraction),
            alone=False,
            annotation_file=None,
        )


def part_of(annotations: Annotations, split: str, fraction: float) -> Annotations:
    """The images for training, or those for validation: always the same for the same data and fraction.

    Raises:
        InputError: if there are no images for one of them.
    """
    count = len(annotations.images)
    for_validation = round(count * fraction)
    if not 0 < for_validation < count:
        raise InputError(
            f"{annotations.name}: {fraction:g} of {count} images for validation leaves none for it or for training; "
            "set val_fraction"
        )
    order = np.random.default_rng(0).permutation(count)
    chosen = np.sort(order[:for_validation] if split == "val" else order[for_validation:])
    position = np.full(count, -1, np.int32)
    position[chosen] = np.arange(len(chosen))
    images, objects = annotations.images, annotations.objects
    kept = objects[position[objects.images] >= 0]
    what = f"{fraction:.0%} of its images, for validation" if split == "val" else f"{1 - fraction:.0%} of its images"
    return replace(
        annotations,
        name=f"{annotations.name}, {what}",
        images=Images(images.ids[chosen], Texts.of(images.names[i] for i in chosen.tolist()), images.sizes[chosen]),
        objects=replace(kept, images=position[kept.images]),
    )


def in_order(folder: Path, pattern: str) -> list[Path]:
    """A folder's files that a pattern fits, but hidden ones: macOS puts one beside each on other systems' disks."""
    found = ((file.relative_to(folder).parts, file) for file in folder.glob(pattern))
    return sorted(file for parts, file in found if not any(part.startswith(".") for part in parts))


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files in a folder, and in the folders in it, that have one of the suffixes, but hidden ones.

    Links to folders are followed; a folder that is met again, as in a circle, is left out.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        about = os.stat(where)  # noqa: PTH116 - a text, as os.walk gives it
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(
            (each for each in folders if not each.startswith(".")),
            key=lambda each: (os.path.islink(os.path.join(where, each)), each),  # noqa: PTH114, PTH118 - likewise
        )
        found += [Path(where, each) for each in names if not each.startswith(".") and suffix_of(each) in suffixes]
    return sorted(found)


def suffix_of(name: str) -> str:
    """The suffix of a file name, in lower case."""
    return PurePath(name).suffix.lower()


def checked(
    name: str,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    object_to: Objection,
) -> Annotations:
    """Checks what another format says, with the rules for COCO's.

    Args:
        name: what messages call the data set's file or folder.
        images: entries as in COCO's files, without ids.
        annotations: likewise; image_id and category_id are positions, and an id is where it stands, for messages.
        names: class names.
        object_to: as of :func:`check_annotations`.

    Raises:
        InputError: as :func:`check_annotations`.
    """
    raw = {
        "images": [{"id": i, **image} for i, image in enumerate(images, 1)],
        "annotations": [
            {**each, "image_id": each["image_id"] + 1, "category_id": each["category_id"] + 1} for each in annotations
        ],
        "categories": [{"id": i, "name": class_name} for i, class_name in enumerate(names, 1)],
    }
    return check_annotations(raw, name, object_to)
