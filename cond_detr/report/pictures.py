"""Pictures of a report: images with their detections and the ground truth."""

from collections.abc import Sequence

import torch

from cond_detr.data.dataset import CocoDataset
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.diagnosis import Doubt
from cond_detr.predict.detections import Detections, ground_truth
from cond_detr.predict.drawing import draw_detections
from cond_detr.report.judged import Judged, judge_class
from cond_detr.report.markup import embedded

# Classes of which the best and the worst image are shown
MOST_CLASSES = 10


def pictures(chosen: Sequence[Judged], dataset: CocoDataset, about: str = "") -> list[str]:
    """HTML of images with their detections and the ground truth in white; the captions begin with ``about``."""
    figures = []
    for record, found, value in chosen:
        truth = ground_truth(record, dataset.annotations.classes)
        image = draw_detections(dataset.load(record.file_name, record.size), found, truth)
        counts = f"detections: {len(found)}, objects: {len(record.labels)}"
        figures.append(embedded(image, f"{about}{record.file_name}: {value:.2f}; {counts}"))
    return figures


def of_classes(judged: Sequence[Judged], evaluation: Evaluation, dataset: CocoDataset) -> tuple[list[str], str]:
    """HTML of the best and the worst image of each class, the classes with the lowest AP first.

    Args:
        judged: the images.
        evaluation: AP of the classes.
        dataset: the data set.

    Returns:
        The pictures, and words that say so if there are too many classes to show all.
    """
    measured = [
        (values["AP"], label) for label, values in enumerate(evaluation.per_class.values()) if values["AP"] is not None
    ]
    figures = []
    for _, label in sorted(measured)[:MOST_CLASSES]:
        name = dataset.annotations.classes.names[label]
        ranked = judge_class(judged, label)
        figures += pictures(ranked[:1], dataset, f"{name}, best: ")
        figures += pictures(ranked[1:][-1:], dataset, f"{name}, worst: ")
    few = f": {MOST_CLASSES} of {len(measured)}" if len(measured) > MOST_CLASSES else ""
    return figures, few


def doubtful(doubts: Sequence[Doubt], dataset: CocoDataset) -> list[str]:
    """HTML of images with a detection that the annotations contradict, and the annotations in white."""
    figures = []
    classes = dataset.annotations.classes
    for doubt in doubts:
        record = dataset.annotations.records[doubt.image]
        label = torch.tensor([classes.names.index(doubt.found)])
        found = Detections.of(torch.tensor([doubt.box]), torch.tensor([doubt.score]), label, classes)
        image = draw_detections(dataset.load(record.file_name, record.size), found, ground_truth(record, classes))
        annotated = "nothing" if doubt.annotated is None else doubt.annotated
        caption = f"{record.file_name}: {doubt.found} {doubt.score:.2f}, annotated: {annotated}"
        figures.append(embedded(image, caption))
    return figures
