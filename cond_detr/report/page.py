"""Report of a run as a self-contained HTML page: settings, curves, classes, images, attention."""

import base64
import html
import io
import json
from collections.abc import Sequence
from string import Template
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from cond_detr.attention_maps.drawing import draw
from cond_detr.attention_maps.maps import detection_maps
from cond_detr.boxes import iou
from cond_detr.data.annotations import ImageRecord
from cond_detr.data.dataset import CocoDataset
from cond_detr.errors import InputError
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import classes_in, measure, run_over
from cond_detr.files import read_text
from cond_detr.models.model import Model
from cond_detr.predict.detections import Detections
from cond_detr.predict.drawing import draw_detections
from cond_detr.train.curves import metrics_figure
from cond_detr.train.run_folder import RunFolder
from cond_detr.weights.progress import RECORDED, is_record
from cond_detr_kernels import linear_sum_assignment

THRESHOLD = 0.3
SHOWN = 6

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #555; } img, svg { max-width: 100%; height: auto; }
details { margin-top: 1rem; } pre { font-size: .85rem; overflow-x: auto; }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<h2>Learning curves</h2>$curves
<h2>Classes</h2>$classes$precision
<h2>Images with the best detections</h2><p>Ground truth in white; detections with a score of $threshold or more.</p>
<div class="pictures">$best</div>
<h2>Images with the worst detections</h2><div class="pictures">$worst</div>
<h2>Where the heads look</h2>
<p>For the surest detection in the best of these images: the last decoder layer.</p>
$attention
<h2>Settings</h2><details><summary>all of them</summary><pre>$settings</pre></details>
</body></html>
""")


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
    """Judges the detections in all images; returns the images, highest quality first.

    Args:
        dataset: the data set.
        found: detections by id of the image.
    """
    judged = []
    for record in dataset.annotations.records:
        shown = found[record.image_id].above(THRESHOLD)
        judged.append(Judged(record, shown, quality(shown, record)))
    return sorted(judged, key=lambda each: (-each.quality, -len(each.record.labels)))


def embedded(image: Image.Image, caption: str) -> str:
    """HTML of an image, embedded as JPEG, with a caption."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def drawing(figure: Any) -> str:
    """HTML of a matplotlib figure, embedded as SVG."""
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    return text[text.index("<svg") :]


def pictures(chosen: Sequence[Judged], dataset: CocoDataset) -> str:
    """HTML of images with their detections and the ground truth in white."""
    figures = []
    for record, found, value in chosen:
        image = draw_detections(dataset.load(record.file_name, record.size), found, torch.from_numpy(record.boxes))
        figures.append(embedded(image, f"{record.file_name}: {value:.2f}"))
    return "".join(figures)


def class_table(evaluation: Evaluation, dataset: CocoDataset) -> str:
    """HTML table of the classes: number of objects, AP and AP50 in percent."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    labels = np.concatenate([record.labels for record in dataset.annotations.records])
    rows = [("all classes", len(labels), evaluation.metrics["AP"], evaluation.metrics["AP50"])]
    for i, (name, values) in enumerate(evaluation.per_class.items()):
        rows.append((name, int((labels == i).sum()), values["AP"], values["AP50"]))
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count}</td><td>{percent(ap)}</td><td>{percent(ap50)}</td></tr>"
        for name, count, ap, ap50 in rows
    )
    return f"<table><tr><th>class</th><th>objects</th><th>AP</th><th>AP50</th></tr>{body}</table>"


def precision_figure(evaluation: Evaluation) -> Any:
    """Plots precision over recall at an IoU of 0.5, for each class and on average; at most 10 classes are labelled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    curves = {name: curve for name, curve in evaluation.precision.items() if curve is not None}
    few = len(curves) <= 10
    for name, curve in curves.items():
        axes.plot(recall, curve, label=name if few else None, alpha=1 if few else 0.2, linewidth=1)
    if curves:
        axes.plot(recall, np.mean(list(curves.values()), axis=0), color="black", linewidth=2, label="mean")
        axes.legend(loc="lower left")
    axes.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure


def read_history(folder: RunFolder) -> list[dict[str, Any]]:
    """Reads the records of log.jsonl.

    Raises:
        InputError: if there is no log, or it is damaged or empty.
    """
    path = folder.path / "log.jsonl"
    history: list[dict[str, Any]] = []
    for line in read_text(path, "log").splitlines():
        try:
            history.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no log of a run: line {len(history) + 1} is not valid JSON: {error}") from None
        if not is_record(history[-1]):
            wanted = ", ".join(sorted(RECORDED))
            raise InputError(f"{path} is no log of a run: line {len(history)} must have numbers as {wanted}")
    if not history:
        raise InputError(f"{path} is empty: no epoch has finished yet")
    return history


def page(model: Model, dataset: CocoDataset, folder: RunFolder, workers: int) -> str:
    """Evaluates a model, and writes the report as HTML.

    Args:
        model: the model, in evaluation mode.
        dataset: the validation set.
        folder: folder of the run.
        workers: number of processes that load images.

    Raises:
        InputError: if the log, the settings or an image cannot be read, or the data set has classes that the model has
            not.
    """
    history = read_history(folder)
    settings = read_text(folder.path / "config.json", "settings file")
    found = run_over(
        model,
        dataset,
        classes_in(dataset, model.classes),
        batch_size=model.config.train.eval_batch_size,
        workers=workers,
    )
    evaluation = measure(dataset, found)
    judged = judge(dataset, dict(found))
    first = judged[0].record
    maps = detection_maps(model, dataset.load(first.file_name, first.size))
    m = model.config.model
    summary = (
        f"{m.kind} with {m.backbone}, {len(history)} of {model.config.train.epochs} epochs; "
        f"{len(dataset)} images of {dataset.annotations.name}"
    )
    return PAGE.substitute(
        title=html.escape(f"Run {folder.path.resolve().name}"),
        summary=html.escape(summary),
        curves=drawing(metrics_figure(history)),
        classes=class_table(evaluation, dataset),
        precision=drawing(precision_figure(evaluation)),
        threshold=THRESHOLD,
        best=pictures(judged[:SHOWN], dataset),
        worst=pictures(judged[: -SHOWN - 1 : -1], dataset),
        attention="".join(drawing(draw(dataset.load(first.file_name, first.size), each)) for each in maps),
        settings=html.escape(settings),
    )
