"""Tables of a report."""

from cond_detr.data.dataset import CocoDataset
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.diagnosis import Diagnosis
from cond_detr.report.markup import html_table, percent

CONFUSIONS = 12


def size_table(evaluation: Evaluation) -> str:
    """HTML table of AP over all objects, and by their size."""
    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APS": "small", "APM": "medium", "APL": "large"}
    return html_table(list(names.values()), [[percent(evaluation.metrics[name]) for name in names]])


def class_table(evaluation: Evaluation, dataset: CocoDataset) -> str:
    """HTML table of the classes: number of objects, AP and AP50 in percent, the threshold of the best F1, and that."""
    objects = dataset.annotations.objects
    labels = objects.labels[~objects.crowds]
    best, each = evaluation.best_f1, evaluation.best_f1_of_classes
    rows = [["all classes", str(len(labels)), *(percent(evaluation.metrics[name]) for name in ("AP", "AP50"))]]
    rows[0] += ["-", "-"] if best is None else [f"{best.threshold:.2f}", f"{best.f1:.2f}"]
    for i, (name, values) in enumerate(evaluation.per_class.items()):
        rows.append([name, str(int((labels == i).sum())), percent(values["AP"]), percent(values["AP50"])])
        found = each[name]
        rows[-1] += ["-", "-"] if found is None else [f"{found.threshold:.2f}", f"{found.f1:.2f}"]
    return html_table(["class", "objects", "AP", "AP50", "threshold", "F1"], rows)


def confusion_table(evaluation: Evaluation) -> str:
    """HTML table of what is taken for what, most frequent first."""
    if evaluation.confusion is None:
        return ""
    wrong = [pair for pair in evaluation.confusion if pair.truth != pair.found][:CONFUSIONS]
    rows = [[pair.truth or "nothing", pair.found or "nothing", str(pair.count)] for pair in wrong]
    return html_table(["object", "found as", "times"], rows) if rows else "<p>Nothing is taken for anything else.</p>"


def error_table(diagnosis: Diagnosis) -> str:
    """HTML table of the kinds of error, those that cost most first."""
    rows = [[each.name, str(each.times), percent(each.ap50), each.meaning] for each in diagnosis.errors]
    return html_table(["error", "times", "AP50 lost", "which detections"], rows)
