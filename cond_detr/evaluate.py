"""``python -m cond_detr.evaluate``: COCO metrics of a checkpoint on a data set."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from cond_detr import distributed
from cond_detr.classes import UNUSED, Classes
from cond_detr.cli import (
    add_precision_option,
    command_parser,
    default_workers,
    device_argument,
    make_folder,
    natural,
    positive,
    run,
)
from cond_detr.data import open_split
from cond_detr.data.coco import CocoDataset
from cond_detr.data.loading import checked, eval_loader
from cond_detr.errors import InputError
from cond_detr.evaluation import Evaluation, coco_results, evaluate_results
from cond_detr.models.detector import Detector
from cond_detr.precision import fp32_products
from cond_detr.predictions import Detections, detections
from cond_detr.run_folder import results_dict, write_json
from cond_detr.settings import configure


def run_over(
    model: Detector,
    dataset: CocoDataset,
    classes: Classes,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    amp: Literal["off", "bf16"] = "off",
) -> list[tuple[int, Detections]]:
    """The best detections, however unsure, in each image of a data set that is this process's: (image id, detections).

    Args:
        model: in evaluation mode, on ``device``.
        dataset: opened for evaluation.
        classes: of the model, with the data set's category ids.
        batch_size: images at once.
        device: where to run.
        workers: processes that load images.
        amp: "bf16" for autocast.
    """
    pin = device.type == "cuda"
    loader = eval_loader(dataset, batch_size, workers, pin, distributed.rank(), distributed.world_size())
    found: list[tuple[int, Detections]] = []
    # only a bar on a terminal: in a file it would be noise
    bar = tqdm(checked(loader), "evaluate", len(loader), unit="batch", leave=False, disable=None)
    for batch in bar:
        batch = batch.to(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"),
            fp32_products(model.config.train.matmul_precision, device),
        ):
            predictions = model(batch.images, batch.padding)
        images = detections(predictions, batch.sizes, classes, softmax=model.softmax)
        found += zip(batch.image_ids, images, strict=True)
    return found


def measure(dataset: CocoDataset, found: list[tuple[int, Detections]]) -> Evaluation:
    """COCO's metrics of what :func:`run_over` found in all processes; every process gets them."""
    results = [result for image_id, image in found for result in coco_results(image_id, image)]
    return evaluate_results(dataset.annotations, distributed.gather_lists(results))


def classes_in(dataset: CocoDataset, model_classes: Classes) -> Classes:
    """The model's classes with the category ids of another data set, matched by name.

    Raises:
        InputError: the names differ.
    """
    theirs = dataset.annotations.classes
    different = sorted(set(theirs.names) ^ (set(model_classes.names) - {UNUSED}))
    if different:
        where = "the file" if different[0] in theirs.names else "the model"
        raise InputError(
            f"{dataset.annotations.name} has {len(theirs)} classes and the model {len(model_classes)}, "
            f"and they differ: {different[0]!r} is only in {where}"
        )
    ids = {**dict(zip(theirs.names, theirs.category_ids, strict=True)), UNUSED: -1}  # no category of COCO's is negative
    return Classes(model_classes.names, tuple(ids[name] for name in model_classes.names))


def table(evaluation: Evaluation) -> str:
    """Metrics and per-class results for people."""

    def percent(value: float | None) -> str:
        return "    -" if value is None else f"{value * 100:5.1f}"

    width = max(map(len, [*evaluation.per_class, "all classes"]))
    lines = [f"{'':{width}}     AP   AP50"]
    for name, values in evaluation.per_class.items():
        lines.append(f"{name:{width}}  {percent(values['AP'])}  {percent(values['AP50'])}")
    metrics = evaluation.metrics
    lines.append(f"{'all classes':{width}}  {percent(metrics['AP'])}  {percent(metrics['AP50'])}")
    lines.append("  ".join(f"{name} {percent(metrics[name]).strip()}" for name in ("AP75", "APS", "APM", "APL")))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "evaluate",
        __doc__,
        "--checkpoint runs/small/best.pt",
        "--checkpoint model.safetensors --coco-path COCO --batch-size 2",
    )
    p.add_argument("--checkpoint", required=True, metavar="FILE", help="best.pt of a run, or another's detector")
    p.add_argument(
        "--dataset-dir", "--coco-path", metavar="DIR", help="data set folder (default: the one it was trained on)"
    )
    p.add_argument("--output-dir", type=Path, metavar="DIR", help="for results.json (default: evaluation/ beside FILE)")
    p.add_argument("--batch-size", type=positive, metavar="N", help="images at once (default: the preset's)")
    p.add_argument(
        "--workers",
        type=natural,
        default=default_workers(),
        metavar="N",
        help="processes that load images (default: %(default)s)",
    )
    p.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)"
    )
    add_precision_option(p, "as it was trained")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    device = distributed.local_device(device_argument(options.device))
    model = Detector.from_checkpoint(options.checkpoint).to(device)
    if options.matmul_precision:
        model.config = configure({"matmul_precision": options.matmul_precision}, model.config)
    data = model.config.data
    if options.dataset_dir:
        data = replace(data, dataset_dir=options.dataset_dir)
    dataset = open_split(data, "val", model.backbone.stride)
    found = run_over(
        model,
        dataset,
        classes_in(dataset, model.classes),
        batch_size=options.batch_size or model.config.train.eval_batch_size,
        device=device,
        workers=0 if data.dataset_dir is None else options.workers,
    )
    evaluation = measure(dataset, found)
    beside = Path() if "://" in options.checkpoint else Path(options.checkpoint).parent
    folder = options.output_dir or beside / "evaluation"
    make_folder(folder)
    write_json(
        folder / "results.json",
        results_dict(evaluation, checkpoint=options.checkpoint, images=len(dataset)),
    )
    print(table(evaluation))
    print(f"wrote {folder / 'results.json'}")
    return 0


if __name__ == "__main__":
    run(main)
