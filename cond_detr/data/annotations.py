"""Checked annotations, kept as arrays.

A training set of a hundred thousand images would be millions of Python objects, which every process that loads images
copies as soon as it looks at them. Arrays take a fiftieth of the memory, and are shared between processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cond_detr.classes import Classes
from cond_detr.data.texts import Texts
from cond_detr.errors import shown


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
class Images:
    """The images of a data set in the order of their ids.

    Attributes:
        ids: (N,) int64, or Python's whole numbers if one of them has more than 64 bits.
        names: N file names.
        sizes: (N, 2) int32 width and height in pixels.
    """

    ids: NDArray[Any]
    names: Texts
    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Objects:
    """The annotated boxes of a data set, those of an image one after the other.

    Attributes:
        images: (M,) int32 index of the image, ascending.
        labels: (M,) int32 index of the class.
        boxes: (M, 4) float64 left, top, width and height in pixels, as the annotation file says.
        areas: (M,) float64 in pixels, which COCO's evaluation sorts objects by.
        crowds: (M,) bool, True for crowds, which training leaves out and evaluation forgives.
    """

    images: NDArray[np.int32]
    labels: NDArray[np.int32]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]

    @classmethod
    def together(cls, parts: Sequence["Objects"]) -> "Objects":
        """Those of all parts, one part after the other."""
        fields = ("images", "labels", "boxes", "areas", "crowds")
        return cls(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: Any) -> "Objects":
        parts: tuple[Any, ...] = (self.images, self.labels, self.boxes, self.areas, self.crowds)
        if isinstance(which, np.ndarray) and which.dtype != np.bool_:
            return Objects(*(part.take(which, 0) for part in parts))  # a third of the time
        return Objects(*(part[which] for part in parts))


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file.

    Attributes:
        name: path of the file, for messages.
        classes: the categories in the order of their ids.
        images: the images in the order of their ids.
        objects: the boxes that were kept, with crowds.
        dropped: number of boxes that were left out, by reason.
        notes: sentences about what was not taken as the file has it, and should be looked at.
        groups: names of categories that only group others, as in Roboflow's exports, and are no classes.
        starts: (N + 1,) int64 index of the first object of each image, and after the last.
    """

    name: str
    classes: Classes
    images: Images
    objects: Objects
    dropped: dict[str, int]
    notes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    starts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        # now, so that loading processes share it
        starts = np.searchsorted(self.objects.images, np.arange(len(self.images) + 1))
        object.__setattr__(self, "starts", starts)

    @property
    def about_groups(self) -> list[str]:
        """A sentence about each of the groups."""
        return [f"category {shown(name)} only groups others, and is no class" for name in self.groups]

    @property
    def records(self) -> "Records":
        """Each image with its ground truth."""
        return Records(self)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(N,) number of objects in each image, without crowds."""
        return np.bincount(self.objects.images[~self.objects.crowds], minlength=len(self.images))

    def noting(self, remark: str) -> "Annotations":
        """The same with one more of the notes, unless it is empty."""
        return replace(self, notes=(*self.notes, remark)) if remark else self

    def to_coco(self) -> dict[str, list[dict[str, Any]]]:
        """The content of an annotation file in COCO's format: images, categories, and the boxes that were kept."""
        objects, ids = self.objects, self.classes.category_ids
        return {
            "images": [
                {"id": int(i), "file_name": name, "width": int(width), "height": int(height)}
                for i, name, (width, height) in zip(self.images.ids, self.images.names, self.images.sizes, strict=True)
            ],
            "categories": [{"id": i, "name": name} for i, name in zip(ids, self.classes.names, strict=True)],
            "annotations": [
                {
                    "id": number,  # from 1: pycocotools takes id 0 for "not matched"
                    "image_id": int(self.images.ids[image]),
                    "category_id": ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image, label, box, area, crowd) in enumerate(
                    zip(
                        objects.images.tolist(),
                        objects.labels.tolist(),
                        objects.boxes.tolist(),
                        objects.areas.tolist(),
                        objects.crowds.tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ],
        }


class Records(Sequence[ImageRecord]):
    """The images of a data set with their ground truth, each made when it is asked for.

    Args:
        annotations: the data set.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations.images)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        images, starts = self.annotations.images, self.annotations.starts
        objects = self.annotations.objects[starts[index] : starts[index + 1]]
        objects = objects[~objects.crowds]
        width, height = images.sizes[index].tolist()
        boxes = objects.boxes.astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        return ImageRecord(
            int(images.ids[index]), images.names[index], (width, height), boxes, objects.labels.astype(np.int64)
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[i] for i in range(len(self)))
