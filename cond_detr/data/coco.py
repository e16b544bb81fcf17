"""Data sets in COCO's format: reading, checking, and serving samples for training and evaluation."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cond_detr.boxes import xyxy_to_cxcywh
from cond_detr.classes import UNUSED, Classes, in_one_line
from cond_detr.config import DataConfig
from cond_detr.data.batching import Sample
from cond_detr.data.transforms import (
    Annotated,
    Augmentation,
    Size,
    augment,
    check_size,
    draw_augmentation,
    normalise,
    open_image,
    resize,
    resized,
)
from cond_detr.errors import InputError

# Gives the image of a file name, which has the size (width, height) that the annotations say
ImageLoader = Callable[[str, tuple[int, int]], Image.Image]


@dataclass(frozen=True)
class ImageRecord:
    """An image of a data set and what may be learnt from it.

    Attributes:
        image_id, file_name, size: as in the annotation file; size is (width, height).
        boxes: (n, 4) float32 xyxy in pixels, clipped to the image; crowds left out.
        labels: (n,) int64 index into the classes.
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
        name: where it came from, for messages.
        ground_truth: what COCO's evaluation reads: images, categories, and the boxes that were kept, with crowds.
        classes: its categories in the order of their ids.
        records: its images in the order of their ids.
        dropped: how many boxes were left out, by reason.
    """

    name: str
    ground_truth: dict[str, list[dict[str, Any]]]
    classes: Classes
    records: tuple[ImageRecord, ...]
    dropped: dict[str, int]


def read_annotations(path: Path, object_to: Callable[[str], None] | None = None) -> Annotations:
    """Reads and checks an annotation file; ``object_to`` as in :func:`check_annotations`.

    Raises:
        InputError: it is missing, not JSON, or says something that cannot be.
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
    """Raises it."""
    raise InputError(sentence)


def check_annotations(raw: Any, name: str, object_to: Callable[[str], None] = refuse) -> Annotations:
    """Checks annotations that are already parsed.

    Args:
        raw: what the JSON holds.
        name: of the file, for messages.
        object_to: what to do with the sentence about an annotation that cannot be used; if it returns, that annotation
            is left out.

    Raises:
        InputError: there are no images or categories that could be used.
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
            raise InputError(f"{name}: {what} {twice[0]!r} is used more than once")
    kept, dropped = _keep_boxes(raw, classes, name, object_to)
    ground_truth = {
        "images": [{key: image[key] for key in ("id", "file_name", "width", "height")} for image in raw["images"]],
        "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        "annotations": kept,
    }
    return Annotations(name, ground_truth, classes, _records(ground_truth, classes), dropped)


# of a side, beyond what any format holds
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
                    raise InputError(f"{name}: {key}[{i}] must have a {field!r}, got {value!r}")
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
    """The annotations to use, as COCO's evaluation wants them, and how many were dropped for which reason."""
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
    """Why an annotation cannot be used."""
    if image is None:
        return f"is for image {annotation['image_id']}, which is not among the images"
    if annotation["category_id"] not in categories:
        return f"has category {annotation['category_id']}, which is not among the categories"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {annotation['iscrowd']!r}; expected 0 or 1"
    bbox = annotation["bbox"]
    numbers = len(bbox) == 4 and all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in bbox)
    if not numbers or bbox[2] < 0 or bbox[3] < 0:
        return f"has bbox {bbox}; expected [left, top, width, height], finite, with width and height not negative"
    return None


def _records(ground_truth: dict[str, list[dict[str, Any]]], classes: Classes) -> tuple[ImageRecord, ...]:
    """The images in the order of their ids, with the boxes to learn from."""
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


class CocoDataset(Dataset[Sample | InputError]):
    """Samples of a data set: augmented for training, resized for evaluation.

    Args:
        annotations: checked annotations.
        load: gives the image of a file name.
        data: sizes and augmentation.
        stride: the network's; smaller images are refused.
        train: augment, with randomness that depends on (seed, epoch, index) only.
        seed: of the augmentation.
    """

    def __init__(
        self, annotations: Annotations, load: ImageLoader, data: DataConfig, stride: int, *, train: bool, seed: int = 0
    ) -> None:
        self.annotations = annotations
        self.load = load
        self.data = data
        self.stride = stride
        self.train = train
        self.seed = seed
        # shared memory: worker processes that outlive an epoch see the next one's number
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def training_sizes(self) -> list[Size]:
        """(width, height) that each image has in this epoch after augmentation."""
        return [self._augmentation(i, record.size).size for i, record in enumerate(self.annotations.records)]

    def _augmentation(self, index: int, size: Size) -> Augmentation:
        return draw_augmentation(size, self.data, np.random.default_rng((self.seed, int(self._epoch), index)))

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, index: int) -> Sample | InputError:
        record = self.annotations.records[index]
        try:
            image = self.load(record.file_name, record.size)
            check_size(image, self.stride, f"image {record.file_name}")
        except InputError as error:
            return error
        sample = Annotated(image, record.boxes, record.labels)
        if self.train:
            sample = augment(sample, self._augmentation(index, image.size))
        else:
            sample = resize(sample, resized(image.size, self.data.image_size, self.data.max_size))
        return Sample(
            normalise(sample.image),
            torch.from_numpy(sample.labels),
            _relative(torch.from_numpy(sample.boxes), sample.image.size),
            record.image_id,
            image.size,
        )


def _relative(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return xyxy_to_cxcywh(boxes) / torch.tensor([*size, *size], dtype=torch.float32)


@dataclass(frozen=True)
class FolderLoader:
    """Loads images by file name from a folder, and from nowhere else.

    An image that its EXIF tag turns is turned, unless the annotations were made without looking at the tag.
    """

    folder: Path

    def __call__(self, file_name: str, size: tuple[int, int]) -> Image.Image:
        root = self.folder.resolve()
        path = (root / file_name).resolve()
        if not path.is_relative_to(root):
            raise InputError(f"image {file_name} is outside its folder {self.folder}")
        image = open_image(path)
        if image.size != size and image.size[::-1] == size:
            image = open_image(path, turn=False)
        if image.size != size:
            width, height = image.size
            raise InputError(f"image {path} is {width}x{height} pixels, but its annotations say {size[0]}x{size[1]}")
        return image


def find_split(dataset_dir: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of "train" or "val", in either layout.

    The layouts are ``DIR/train`` with ``DIR/annotations/instances_train.json``, and COCO's own ``DIR/train2017`` (or
    ``DIR/images/train2017``) with ``DIR/annotations/instances_train2017.json``.

    Raises:
        InputError: a folder or file is missing.
    """
    if not dataset_dir.is_dir():
        raise InputError(f"dataset folder {dataset_dir} {'is a file' if dataset_dir.exists() else 'does not exist'}")
    for name in (split, f"{split}2017"):
        annotations = dataset_dir / "annotations" / f"instances_{name}.json"
        if annotations.is_file():
            break
    else:
        raise InputError(f"annotation file {dataset_dir}/annotations/instances_{split}.json does not exist")
    folders = [dataset_dir / name, dataset_dir / "images" / name]
    for folder in folders:
        if folder.is_dir():
            return folder, annotations
    raise InputError(f"image folder {folders[0]} does not exist")
