"""Evaluation of a model on a data set: its detections and COCO's metrics."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cond_detr import distributed, progress
from cond_detr.boxes import xyxy_to_xywh
from cond_detr.classes import UNUSED, Classes
from cond_detr.data import open_split
from cond_detr.data.annotations import Annotations
from cond_detr.data.batching import Batch
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.loading import checked, eval_loader, loading_processes
from cond_detr.errors import InputError, shown
from cond_detr.evaluate.coco_metrics import CONFUSED_ABOVE, Evaluation, evaluate_table
from cond_detr.evaluate.diagnosis import COUNTED_ABOVE, Diagnosis
from cond_detr.models.inference import inference
from cond_detr.models.model import Model
from cond_detr.models.predictions import Predictions
from cond_detr.predict.detections import MOST_MEASURED, Detections, detections

CPU = torch.device("cpu")
# Doubtful annotations that are written down
MOST_DOUBTS = 100


def run_over(
    model: Model,
    dataset: CocoDataset,
    classes: Classes,
    *,
    batch_size: int,
    workers: int = 0,
    amp: Literal["off", "bf16"] = "off",
    timeout: int | None = None,
    watch: Callable[[Predictions, Batch], None] = lambda *_: None,
) -> list[tuple[int, Detections]]:
    """Runs a model over this process's share of a data set.

    Args:
        model: the model; its network runs in evaluation mode, and returns to its own.
        dataset: the data set, opened for evaluation.
        classes: classes of the model, with the category ids of the data set.
        batch_size: images per forward pass.
        workers: number of processes that load images.
        amp: "bf16" for autocast, or "off".
        timeout: seconds of silence after which a process that loads images is lost.
        watch: gets the predictions for each batch.

    Returns:
        The id of each image and its best detections, of any score.

    Raises:
        InputError: if an image cannot be used.
    """
    network, device = model.network, model.device
    pin = device.type == "cuda"
    loader = eval_loader(dataset, batch_size, workers, pin, distributed.rank(), distributed.world_size(), timeout)
    found: list[tuple[int, Detections]] = []
    # only a bar on a terminal: in a file it would be noise
    bar = progress.bar(checked(loader), "evaluate", len(loader), unit="batch", leave=False)
    for batch in bar:
        batch = batch.to(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"),
            inference(model),
        ):
            predictions = network(*batch.inputs())
        watch(predictions, batch)
        images = detections(predictions, batch.sizes, classes, MOST_MEASURED, softmax=network.softmax)
        found += zip(batch.image_ids, images, strict=True)
    return found


def measure(
    dataset: CocoDataset,
    found: list[tuple[int, Detections]],
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco",
    device: torch.device = CPU,
    *,
    diagnosed: bool = False,
) -> Evaluation:
    """Computes COCO's metrics of the detections of all processes; every process gets the result.

    hotcoco takes a second, and runs in the first of them. For pycocotools the others might wait too long.

    Args:
        dataset: the data set.
        found: result of :func:`run_over` on this process.
        evaluator: package that computes the numbers.
        device: carries the exchange between processes.
        diagnosed: whether to find out what keeps AP50 from being higher.
    """
    rows = distributed.gather_rows(table(dataset.annotations, found), device).numpy()
    if evaluator == "pycocotools":
        return evaluate_table(dataset.annotations, rows, evaluator)
    return distributed.from_rank_zero(lambda: evaluate_table(dataset.annotations, rows, evaluator, diagnosed=diagnosed))


def table(annotations: Annotations, found: list[tuple[int, Detections]]) -> Tensor:
    """Detections as the (n, 7) float64 table of :func:`cond_detr.evaluate.coco_metrics.evaluate_table`.

    Args:
        annotations: the data set.
        found: ids of images, and the detections in each of them. Those of classes that the data set does not have are
            left out: they are not measured.
    """
    numbers = {image_id: i for i, image_id in enumerate(annotations.images.ids.tolist())}
    label_of = {category_id: label for label, category_id in enumerate(annotations.classes.category_ids)}
    images = [image for _, image in found]
    labels = torch.tensor([label_of.get(i, -1) for image in images for i in image.category_ids], dtype=torch.float64)
    lengths = torch.tensor([len(image) for image in images], dtype=torch.int64)
    rows = torch.tensor([numbers[image_id] for image_id, _ in found], dtype=torch.float64).repeat_interleave(lengths)
    boxes = xyxy_to_xywh(torch.cat([torch.zeros(0, 4), *(image.boxes for image in images)]).double())
    scores = torch.cat([torch.zeros(0), *(image.scores for image in images)]).double()
    return torch.cat([rows[:, None], boxes, scores[:, None], labels[:, None]], dim=1)[labels >= 0]


def classes_in(dataset: CocoDataset, model_classes: Classes) -> Classes:
    """Returns the model's classes with the category ids of a data set, matched by name.

    Classes of the model that the data set does not have get an id that it does not have either: they are not measured.

    Raises:
        InputError: if the data set has classes that the model does not have.
    """
    theirs = dataset.annotations.classes
    unknown = sorted(set(theirs.names) - (set(model_classes.names) - {UNUSED}))
    if unknown:
        raise InputError(
            f"{dataset.annotations.name} has {len(theirs)} classes and the model {len(model_classes)}, "
            f"and {shown(unknown[0])} is not among the model's"
        )
    ids = dict(zip(theirs.names, theirs.category_ids, strict=True))
    nowhere = min(theirs.category_ids) - 1
    return Classes(model_classes.names, tuple(ids.get(name, nowhere) for name in model_classes.names))


def evaluate(
    model: Model,
    *,
    dataset_dir: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco",
) -> tuple[CocoDataset, Evaluation]:
    """Computes COCO's metrics of a model on the validation images of a data set.

    Args:
        model: the model.
        dataset_dir: folder of the data set; by default the one that the model was trained on.
        batch_size: images per forward pass; by default the model's ``eval_batch_size``.
        workers: number of processes that load images; by default as :func:`loading_processes` says.
        evaluator: package that computes the numbers.

    Returns:
        The data set and the metrics.

    Raises:
        InputError: if the data set cannot be used, or its classes are not the model's.
    """
    data = model.config.data
    if dataset_dir is not None:
        data = replace(data, dataset_dir=str(dataset_dir))
    dataset = open_split(data, "val", model.stride)
    found = run_over(
        model,
        dataset,
        classes_in(dataset, model.classes),
        batch_size=batch_size or model.config.train.eval_batch_size,
        workers=loading_processes(data, workers, model.device),
    )
    return dataset, measure(dataset, found, evaluator, model.device, diagnosed=True)


def results_dict(evaluation: Evaluation, **more: Any) -> dict[str, Any]:
    """The content of results.json: metrics, results and curves of each class, confusions, and further entries."""
    curves = {
        name: {"precision": rounded(curve), "score": rounded(evaluation.scores[name])}
        for name, curve in evaluation.precision.items()
    }
    content = {**more, **evaluation.metrics, "per_class": evaluation.per_class, "over_recall": curves}
    if best := evaluation.best_f1:
        each = evaluation.best_f1_of_classes
        per_class = {name: None if found is None else asdict(found) for name, found in each.items()}
        content["best_f1"] = {**asdict(best), "per_class": per_class}
    if evaluation.confusion is not None:
        content["confusion"] = {
            "threshold": CONFUSED_ABOVE,
            "pairs": [asdict(pair) for pair in evaluation.confusion],
        }
    if evaluation.diagnosis is not None:
        content["diagnosis"] = diagnosis_dict(evaluation.diagnosis)
    return content


def diagnosis_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """What results.json says of the errors: their kinds, and how far scores can be believed, what to look at."""
    return {
        "threshold": COUNTED_ABOVE,
        "errors": {each.name: {"times": each.times, "AP50_lost": each.ap50} for each in diagnosis.errors},
        "calibration_error": diagnosis.calibration_error,
        "calibration": [each._asdict() for each in diagnosis.calibration],
        "doubts": [each._asdict() for each in diagnosis.doubts[:MOST_DOUBTS]],
    }


def rounded(curve: list[float] | None) -> list[float] | None:
    """A curve in four digits."""
    return None if curve is None else [round(value, 4) for value in curve]
