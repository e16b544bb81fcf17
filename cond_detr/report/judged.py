"""How good the detections in each image are: which images to look at."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from cond_detr.boxes import iou
from cond_detr.classes import Classes
from cond_detr.data.annotations import ImageRecord
from cond_detr.data.dataset import CocoDataset
from cond_detr.evaluate.coco_metrics import CONFUSED_ABOVE
from cond_detr.predict.detections import Detections
from cond_detr_kernels import linear_sum_assignment

THRESHOLD = CONFUSED_ABOVE


class Judged(NamedTuple):
    """An image with its detections.

    Attributes:
        record: the image and its ground truth.
        found: the detections above the threshold.
        quality: how well they match the ground truth, in [0, 1]; see :func:`quality`.
    """

    record: ImageRecord
    found: Detections
    quality: float


def quality(found: Detections, record: ImageRecord) -> float:
    """Quality of detections in [0, 1]: IoU summed over an optimal matching within classes, relative to the count.

    The count is the number of detections or of objects, whichever is larger.
    """
    most = max(len(found.labels), len(record.labels))
    if most == 0:
        return 1.0
    overlap = iou(found.boxes.double()[:, None], torch.from_numpy(record.boxes).double()[None]).numpy()
    overlap *= found.labels.numpy()[:, None] == record.labels[None]
    return float(overlap[linear_sum_assignment(overlap, maximize=True)].sum()) / most


def judge(dataset: CocoDataset, found: dict[int, Detections]) -> list[Judged]:
    """Judges the detections in all images that have objects or detections; returns the images, best first.

    Args:
        dataset: the data set.
        found: detections by id of the image.
    """
    classes = dataset.annotations.classes
    return _ranked(
        (record, relabelled(found[record.image_id].above(THRESHOLD), classes)) for record in dataset.annotations.records
    )


def judge_class(judged: Sequence[Judged], label: int) -> list[Judged]:
    """The same of the objects and detections of one class alone; returns the images that have any, best first."""
    return _ranked((_of_class(each.record, label), each.found[each.found.labels == label]) for each in judged)


def relabelled(found: Detections, classes: Classes) -> Detections:
    """Detections by a model, with a data set's indices of the classes; without those of classes it does not have."""
    label_of = {category_id: label for label, category_id in enumerate(classes.category_ids)}
    known = found[[i for i, category_id in enumerate(found.category_ids) if category_id in label_of]]
    labels = torch.tensor([label_of[category_id] for category_id in known.category_ids], dtype=torch.int64)
    return Detections.of(known.boxes, known.scores, labels, classes)


def _of_class(record: ImageRecord, label: int) -> ImageRecord:
    own = record.labels == label
    return replace(record, boxes=record.boxes[own], labels=record.labels[own])


def _ranked(pairs: Iterable[tuple[ImageRecord, Detections]]) -> list[Judged]:
    judged = [
        Judged(record, found, quality(found, record)) for record, found in pairs if len(found) or len(record.labels)
    ]
    return sorted(judged, key=lambda each: (-each.quality, -len(each.record.labels)))
