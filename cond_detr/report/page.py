"""Report of a run as a self-contained HTML page: settings, curves, classes, images, attention."""

import html
import json
from collections.abc import Sequence
from string import Template
from typing import Any

import torch

from cond_detr.attention_maps.drawing import draw
from cond_detr.attention_maps.maps import detection_maps
from cond_detr.data.dataset import CocoDataset
from cond_detr.errors import InputError
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import classes_in, measure, run_over
from cond_detr.files import read_text
from cond_detr.models.model import Model
from cond_detr.report.figures import calibration_figure, curve_figures, precision_figure, score_figure
from cond_detr.report.judged import THRESHOLD, Judged, judge
from cond_detr.report.markup import drawing, gallery
from cond_detr.report.pictures import doubtful, of_classes, pictures
from cond_detr.report.tables import class_table, confusion_table, error_table, size_table
from cond_detr.train.run_folder import RunFolder
from cond_detr.version import __version__
from cond_detr.weights.progress import RECORDED, is_record

SHOWN = 6
# By which a report is known as one
GENERATOR = '<meta name="generator" content="cond-detr report">'

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
$generator
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #222; --dim: #555; --line: #ccc; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --dim: #aaa; --line: #444; --back: #181818; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--back); overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
td, th { padding: .15rem .7rem .15rem 0; text-align: right; overflow-wrap: normal; }
.words { text-align: left; } td:first-child { overflow-wrap: anywhere; min-width: 5rem; }
.wide { overflow-x: auto; } .wide img { width: 100%; max-width: 34rem; background: #fff; }
.attention img { max-width: none; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--dim); }
figure img { max-width: 100%; height: auto; }
details { margin-top: 1rem; } pre { font-size: .85rem; overflow-x: auto; }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<h2>Precision</h2>
<p>Average precision of the best epoch in percent, as COCO defines it: AP is the mean over ten overlaps (IoU) from .5 to
.95 that a detection needs to count; AP50 and AP75 need .5 and .75; small objects have less than 32 x 32 pixels, large
ones more than 96 x 96.</p>
$sizes
<h2>Learning curves</h2><div class="figures">$curves</div>
<h2>Classes</h2>
<p>Above its best threshold, the detections of a class have the highest F1 (harmonic mean of precision and recall).</p>
$classes$precision
<h2>Which threshold</h2><p>Precision and recall of the detections above a score, at an overlap of .5, on average over
the classes; precision is the best at this recall or a higher one, as in COCO's AP.</p>$scores
$diagnosis
<h2>What is taken for what</h2><p>Of detections with a score of $threshold or more; an object found as nothing is
missed, and nothing found as an object is a false detection.</p>$confusion
<h2>Images with the best detections</h2><p>Ground truth in white; detections with a score of $threshold or more. The
number is the mean overlap (IoU) of detections and objects of the same class, where a missed object and a false
detection count 0. Images without either are left out.</p>
$best
<h2>Images with the worst detections</h2>$worst
<h2>Best and worst image of each class</h2><p>Counting the objects and detections of this class alone;
classes with the lowest AP first$few.</p>
$by_class
<h2>Where the heads look</h2>
<div class="attention">$attention</div>
<h2>Settings</h2><details><summary>all of them</summary><pre>$settings</pre></details>
<p>$versions</p>
</body></html>
""")

DIAGNOSIS = Template("""<h2>Kinds of error</h2><p>How often detections with a score of $threshold or more are wrong, and
how many points of AP50 each kind costs alone, over detections of all scores (TIDE,
ECCV 2020). A class without any detection counts 0 all the same.</p>
$errors
<h2>What a score means</h2><p>How many of the detections of a score are right, at an overlap of .5. On the dotted line
a score is the probability to be right; on average it is off by $error.</p>
$calibration
<h2>Annotations to look at again</h2><p>The surest detections that the annotations contradict, in images of their own:
one of the two is wrong.</p>
$doubts
""")


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
    evaluation = measure(dataset, found, diagnosed=True)
    judged = judge(dataset, dict(found))
    m = model.config.model
    summary = (
        f"{m.kind} with {m.backbone}, {len(history)} of {model.config.train.epochs} epochs, of which "
        f"{best_epoch(history)} was the best; {len(dataset)} images of {dataset.annotations.name}"
    )
    losses, curve = curve_figures(history)
    by_class, few = of_classes(judged, evaluation, dataset)
    return PAGE.substitute(
        generator=GENERATOR,
        title=html.escape(f"Run {folder.path.resolve().name}"),
        summary=html.escape(summary),
        sizes=size_table(evaluation),
        curves=drawing(losses, "Losses over the epochs") + drawing(curve, "Average precision over the epochs"),
        classes=class_table(evaluation, dataset),
        precision=drawing(precision_figure(evaluation), "Precision over recall for each class"),
        scores=drawing(score_figure(evaluation), "Precision, recall and F1 over the score"),
        diagnosis=diagnosis(evaluation, dataset),
        confusion=confusion_table(evaluation),
        threshold=THRESHOLD,
        best=gallery(pictures(judged[:SHOWN], dataset)),
        worst=gallery(pictures(judged[: -SHOWN - 1 : -1], dataset)),
        by_class=gallery(by_class),
        few=few,
        attention=attention(model, dataset, judged),
        settings=html.escape(settings),
        versions=html.escape(f"cond-detr {__version__}, torch {torch.__version__}; {trained_at(model)}"),
    )


def diagnosis(evaluation: Evaluation, dataset: CocoDataset) -> str:
    """HTML of what keeps AP50 from being higher."""
    found = evaluation.diagnosis
    if found is None:
        return ""
    return DIAGNOSIS.substitute(
        threshold=THRESHOLD,
        errors=error_table(found),
        error=f"{found.calibration_error:.2f}",
        calibration=drawing(calibration_figure(found), "Share of detections that are right over their score"),
        doubts=gallery(doubtful(found.doubts[:SHOWN], dataset)),
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
    maps = "".join(
        drawing(draw(image, each), f"Attention of each head for {each.name}") for each in detection_maps(model, image)
    )
    return f"<p>The last decoder layer, for the surest detection in {html.escape(record.file_name)}.</p>{maps}"
