"""Data sets in COCO's format: reading, checking, and serving samples for training and evaluation."""

import json
import math
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
from cond_detr.classes import Classes
from cond_detr.config import DataConfig
from cond_detr.data.batching import Sample
from cond_detr.data.transforms import Annotated, augment, check_size, normalise, open_image, resize
from cond_detr.errors import InputError

ImageLoader = Callable[[str], Image.Image]


@dataclass(frozen=True)
class ImageRecord:
    """An image of a data set and what may be learnt from it.

    Attributes:
        image_id, file_name: as in the annotation file.
        boxes: (n, 4) float32 xyxy in pixels, clipped to the image; crowds left out.
        labels: (n,) int64 index into the classes.
    """

    image_id: int
    file_name: str
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file.

    Attributes:
        name: where it came from, for messages.
        raw: the file's content, which COCO's evaluation reads.
        classes: its categories in the order of their ids.
        records: its images in the order of their ids.
        dropped: how many boxes were left out, by reason.
    """

    name: str
    raw: dict[str, Any]
    classes: Classes
    records: tuple[ImageRecord, ...]
    dropped: dict[str, int]


def read_annotations(path: Path) -> Annotations:
    """Reads and checks an annotation file.

    Raises:
        InputError: it is missing, not JSON, or says something that cannot be.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"annotation file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"annotation file {path} is not valid JSON: {error}") from None
    return check_annotations(raw, str(path))


def check_annotations(raw: Any, name: str) -> Annotations:
    """Checks annotations that are already parsed; ``name`` is for messages."""
    for key, needed in (
        ("images", {"id", "file_name", "width", "height"}),
        ("annotations", {"image_id", "category_id", "bbox"}),
        ("categories", {"id", "name"}),
    ):
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list):
            raise InputError(f"{name}: expected an object with a list {key!r}, as in COCO's annotation files")
        for i, entry in enumerate(raw[key]):
            missing = sorted(needed - set(entry)) if isinstance(entry, dict) else sorted(needed)
            if missing:
                raise InputError(f"{name}: {key}[{i}] has no {', '.join(map(repr, missing))}")
    if not raw["categories"] or not raw["images"]:
        raise InputError(f"{name}: expected at least one image and one category, got none")
    categories = sorted(raw["categories"], key=lambda c: c["id"])
    classes = Classes(tuple(str(c["name"]) for c in categories), tuple(c["id"] for c in categories))
    for key, entries in (("image", raw["images"]), ("category", categories)):
        twice = [i for i, n in Counter(e["id"] for e in entries).items() if n > 1]
        if twice:
            raise InputError(f"{name}: {key} id {twice[0]} is used more than once")
    records, dropped = _collect(raw, classes, name)
    return Annotations(name, raw, classes, records, dropped)


def _collect(raw: dict[str, Any], classes: Classes, name: str) -> tuple[tuple[ImageRecord, ...], dict[str, int]]:
    images = {image["id"]: image for image in raw["images"]}
    label_of = {category_id: label for label, category_id in enumerate(classes.category_ids)}
    boxes: dict[int, list[NDArray[np.float32]]] = {image_id: [] for image_id in images}
    labels: dict[int, list[int]] = {image_id: [] for image_id in images}
    dropped: Counter[str] = Counter()
    for i, annotation in enumerate(raw["annotations"]):
        where = f"{name}: annotation {annotation.get('id', f'number {i}')}"
        image = images.get(annotation["image_id"])
        if image is None:
            raise InputError(f"{where} is for image {annotation['image_id']}, which is not among the images")
        if annotation["category_id"] not in label_of:
            raise InputError(
                f"{where} ({image['file_name']}) has category {annotation['category_id']}, "
                "which is not among the categories"
            )
        if annotation.get("iscrowd", 0):
            continue
        box = _clipped_box(annotation["bbox"], image, where)
        if box[2] <= box[0] or box[3] <= box[1]:
            dropped["empty or outside the image"] += 1
            continue
        boxes[image["id"]].append(box)
        labels[image["id"]].append(label_of[annotation["category_id"]])
    return tuple(
        ImageRecord(
            image_id,
            str(images[image_id]["file_name"]),
            np.array(boxes[image_id], np.float32).reshape(-1, 4),
            np.array(labels[image_id], np.int64),
        )
        for image_id in sorted(images)
    ), dict(dropped)


def _clipped_box(bbox: Any, image: dict[str, Any], where: str) -> NDArray[np.float32]:
    """COCO's (left, top, width, height) -> xyxy inside the image."""
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(v, (int, float)) for v in bbox)
    if not numbers or not all(map(math.isfinite, bbox)) or bbox[2] < 0 or bbox[3] < 0:
        raise InputError(
            f"{where} ({image['file_name']}) has bbox {bbox}; expected [left, top, width, height], "
            "finite, with width and height not negative"
        )
    left, top, width, height = bbox
    box = np.array([left, top, left + width, top + height], np.float32)
    return np.clip(box, 0, np.array([image["width"], image["height"]] * 2, np.float32))


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

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, index: int) -> Sample | InputError:
        record = self.annotations.records[index]
        try:
            image = self.load(record.file_name)
            check_size(image, self.stride, f"image {record.file_name}")
        except InputError as error:
            return error
        sample = Annotated(image, record.boxes, record.labels)
        if self.train:
            rng = np.random.default_rng((self.seed, int(self._epoch), index))
            sample = augment(sample, self.data, rng)
        else:
            sample = resize(sample, self.data.image_size, self.data.max_size)
        return Sample(
            normalise(sample.image),
            torch.from_numpy(sample.labels),
            _relative(torch.from_numpy(sample.boxes), sample.image.size),
            record.image_id,
            image.size,
        )


def _relative(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return xyxy_to_cxcywh(boxes) / torch.tensor([*size, *size], dtype=torch.float32)


def folder_loader(folder: Path) -> ImageLoader:
    """Loads images by file name from a folder, and from nowhere else."""
    root = folder.resolve()

    def load(file_name: str) -> Image.Image:
        path = (root / file_name).resolve()
        if not path.is_relative_to(root):
            raise InputError(f"image {file_name} is outside its folder {folder}")
        return open_image(path)

    return load


def find_split(dataset_dir: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of "train" or "val", in either layout.

    The layouts are ``DIR/train`` with ``DIR/annotations/instances_train.json``, and COCO's own ``DIR/train2017`` (or
    ``DIR/images/train2017``) with ``DIR/annotations/instances_train2017.json``.

    Raises:
        InputError: a folder or file is missing.
    """
    if not dataset_dir.is_dir():
        raise InputError(f"dataset folder {dataset_dir} does not exist")
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
