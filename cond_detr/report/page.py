"""Report of a run as a self-contained HTML page: settings, curves, classes, images, attention."""

import base64
import html
import io
import json
from collections.abc import Sequence
from string import Template
from typing import Any, NamedTuple

import torch
from PIL import Image

from cond_detr.attention_maps.drawing import draw
from cond_detr.attention_maps.maps import detection_maps
from cond_detr.boxes import iou
from cond_detr.data.annotations import ImageRecord
from cond_detr.data.dataset import CocoDataset
from cond_detr.errors import InputError
from cond_detr.evaluate.coco_metrics import CONFUSED_ABOVE, Evaluation
from cond_detr.evaluate.over_dataset import classes_in, measure, run_over
from cond_detr.files import read_text
from cond_detr.models.model import Model
from cond_detr.predict.detections import Detections, ground_truth
from cond_detr.predict.drawing import draw_detections
from cond_detr.report.figures import precision_figure, score_figure
from cond_detr.train.curves import metrics_figure
from cond_detr.train.run_folder import RunFolder
from cond_detr.version import __version__
from cond_detr.weights.progress import RECORDED, is_record
from cond_detr_kernels import linear_sum_assignment

THRESHOLD = CONFUSED_ABOVE
SHOWN = 6
CONFUSIONS = 12

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #222; --dim: #555; --line: #ccc; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --dim: #aaa; --line: #444; --back: #181818; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--back); overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; overflow-wrap: normal; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; min-width: 3rem; }
.wide { overflow-x: auto; } .wide svg { min-width: 44rem; background: #fff; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--dim); }
img, svg { max-width: 100%; height: auto; } .wide svg { max-width: none; width: 100%; }
details { margin-top: 1rem; } pre { font-size: .85rem; overflow-x: auto; }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<h2>Precision</h2>
<p>Average precision of the best epoch in percent, as COCO defines it: AP is the mean over ten overlaps (IoU) from .5 to
.95 that a detection needs to count; AP50 and AP75 need .5 and .75; small objects have less than 32 x 32 pixels, large
ones more than 96 x 96.</p>
<div class="wide">$sizes</div>
<h2>Learning curves</h2><div class="wide">$curves</div>
<h2>Classes</h2><div class="wide">$classes</div><div class="wide">$precision</div>
<h2>Which threshold</h2><p>Precision and recall of the detections above a score, at an overlap of .5, on average over
the classes; precision is the best at this recall or a higher one, as in COCO's AP.</p><div class="wide">$scores</div>
<h2>What is taken for what</h2><p>Of detections with a score of $threshold or more; an object found as nothing is
missed, and nothing found as an object is a false detection.</p><div class="wide">$confusion</div>
<h2>Images with the best detections</h2><p>Ground truth in white; detections with a score of $threshold or more. The
number is the mean overlap (IoU) of detections and objects of the same class, where a missed object and a false
detection count 0. Images without either are left out.</p>
<div class="pictures">$best</div>
<h2>Images with the worst detections</h2><div class="pictures">$worst</div>
<h2>Where the heads look</h2>
$attention
<h2>Settings</h2><details><summary>all of them</summary><pre>$settings</pre></details>
<p>$versions</p>
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
    """Judges the detections in all images that have objects or detections; returns the images, best first.

    Args:
        dataset: the data set.
        found: detections by id of the image.
    """
    judged = []
    for record in dataset.annotations.records:
        shown = found[record.image_id].above(THRESHOLD)
        if len(shown) or len(record.labels):
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
        truth = ground_truth(record, dataset.annotations.classes)
        image = draw_detections(dataset.load(record.file_name, record.size), found, truth)
        count = f"{len(found)} detections, {len(record.labels)} objects"
        figures.append(embedded(image, f"{record.file_name}: {value:.2f}; {count}"))
    return "".join(figures) or "<p>None.</p>"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.1f}"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table."""
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def size_table(evaluation: Evaluation) -> str:
    """HTML table of AP over all objects, and by their size."""
    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APS": "small", "APM": "medium", "APL": "large"}
    return html_table(list(names.values()), [[percent(evaluation.metrics[name]) for name in names]])


def class_table(evaluation: Evaluation, dataset: CocoDataset) -> str:
    """HTML table of the classes: number of objects, AP and AP50 in percent."""
    objects = dataset.annotations.objects
    labels = objects.labels[~objects.crowds]
    rows = [["all classes", str(len(labels)), *(percent(evaluation.metrics[name]) for name in ("AP", "AP50"))]]
    for i, (name, values) in enumerate(evaluation.per_class.items()):
        rows.append([name, str(int((labels == i).sum())), percent(values["AP"]), percent(values["AP50"])])
    return html_table(["class", "objects", "AP", "AP50"], rows)


def confusion_table(evaluation: Evaluation) -> str:
    """HTML table of what is taken for what, most frequent first."""
    if evaluation.confusion is None:
        return ""
    wrong = [pair for pair in evaluation.confusion if pair.truth != pair.found][:CONFUSIONS]
    rows = [[pair.truth or "nothing", pair.found or "nothing", str(pair.count)] for pair in wrong]
    return html_table(["object", "found as", "times"], rows) if rows else "<p>Nothing is taken for anything else.</p>"


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
    m = model.config.model
    summary = (
        f"{m.kind} with {m.backbone}, {len(history)} of {model.config.train.epochs} epochs, of which "
        f"{best_epoch(history)} was the best; {len(dataset)} images of {dataset.annotations.name}"
    )
    return PAGE.substitute(
        title=html.escape(f"Run {folder.path.resolve().name}"),
        summary=html.escape(summary),
        sizes=size_table(evaluation),
        curves=drawing(metrics_figure(history)),
        classes=class_table(evaluation, dataset),
        precision=drawing(precision_figure(evaluation)),
        scores=drawing(score_figure(evaluation)),
        confusion=confusion_table(evaluation),
        threshold=THRESHOLD,
        best=pictures(judged[:SHOWN], dataset),
        worst=pictures(judged[: -SHOWN - 1 : -1], dataset),
        attention=attention(model, dataset, judged),
        settings=html.escape(settings),
        versions=html.escape(f"cond-detr {__version__}, torch {torch.__version__}; {trained_at(model)}"),
    )


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """The epoch that best.pt comes from: the latest of those with the highest AP."""
    known = [record for record in history if record["AP"] is not None] or history
    return int(max(known, key=lambda record: (record["AP"] or 0.0, record["epoch"]))["epoch"])


def trained_at(model: Model) -> str:
    """When and by which version a model was trained, as far as its checkpoint says so."""
    known = model.trained
    return f"trained by {known['version']} until {known['date']}" if {"version", "date"} <= known.keys() else ""


def attention(model: Model, dataset: CocoDataset, judged: Sequence[Judged]) -> str:
    """HTML of the attention maps of the surest detection in the best of the images that have any."""
    record = next((each.record for each in judged if len(each.found)), None)
    if record is None:
        return f"<p>No detection has a score of {THRESHOLD} or more.</p>"
    image = dataset.load(record.file_name, record.size)
    maps = "".join(f'<div class="wide">{drawing(draw(image, each))}</div>' for each in detection_maps(model, image))
    return f"<p>The last decoder layer, for the surest detection in {html.escape(record.file_name)}.</p>{maps}"
