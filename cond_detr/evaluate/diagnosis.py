"""What keeps a detector from a higher AP50: kinds of error, scores that promise too much, doubtful annotations."""

from typing import NamedTuple

import hotcoco
import numpy as np

from cond_detr.data.annotations import Annotations
from cond_detr.evaluate import by_hotcoco
from cond_detr.evaluate.accumulated import Grid

# Detections that count as errors; AP50 takes all of them
COUNTED_ABOVE = 0.3
# Detections that may be right where the annotations say otherwise
SURE_ABOVE = 0.5
BINS = 10
# The kinds of error of TIDE (D. Bolya et al., ECCV 2020, section 2.2), by its names and by ours
KINDS = {
    "Cls": ("class", "at its place, but of another class"),
    "Loc": ("place", "of its class, but with an IoU of .1 to .5"),
    "Both": ("class and place", "of another class, and with an IoU of .1 to .5"),
    "Dupe": ("twice", "on an object that a surer detection has found"),
    "Bkg": ("nothing", "where there is no object"),
    "Miss": ("missed", "an object that no detection found, not even with a wrong class or place"),
}


class ErrorKind(NamedTuple):
    """A kind of error.

    Attributes:
        name: its name.
        meaning: what such a detection is; for "missed", such an object.
        times: how many there are, of detections with a score of at least 0.3.
        ap50: by how much AP50 would be higher without them, in [0, 1]; of all detections. A class that has none keeps
            its AP of 0 whatever is mended, as in TIDE.
    """

    name: str
    meaning: str
    times: int
    ap50: float


class ScoreBin(NamedTuple):
    """Detections of about the same score.

    Attributes:
        score: their mean score.
        right: share of them that are right, at an IoU of 0.5.
        detections: how many they are.
    """

    score: float
    right: float
    detections: int


class Doubt(NamedTuple):
    """A sure detection that the annotations contradict: an error of the detector, or of the annotations.

    Attributes:
        image: index of the image.
        file_name: its name.
        box: left, top, right and bottom in pixels.
        score: at least 0.5.
        found: name of its class.
        annotated: class of the object there; None if none is annotated.
    """

    image: int
    file_name: str
    box: tuple[float, float, float, float]
    score: float
    found: str
    annotated: str | None


class Diagnosis(NamedTuple):
    """What keeps a detector from a higher AP50.

    Attributes:
        errors: the kinds of error; those that cost most first.
        calibration: how often detections of a score are right, lowest scores first; empty bins are left out.
        calibration_error: mean difference of score and share of right ones over all detections (ECE).
        doubts: what may be an error of the annotations, surest first; at most one in an image.
    """

    errors: list[ErrorKind]
    calibration: list[ScoreBin]
    calibration_error: float
    doubts: list[Doubt]


def diagnose(annotations: Annotations, found: Grid) -> Diagnosis:
    """Compares detections with the ground truth, at an IoU of 0.5; hotcoco does.

    Args:
        annotations: the ground truth.
        found: table of detections; see :func:`cond_detr.evaluate.coco_metrics.evaluate_table`.
    """
    evaluation = by_hotcoco.evaluated(annotations, found)
    counts = by_hotcoco.evaluated(annotations, found[found[:, 5] >= COUNTED_ABOVE]).tide_errors()["counts"]
    costs = evaluation.tide_errors()["delta_ap"]
    errors = [ErrorKind(name, meaning, counts[kind], costs[kind]) for kind, (name, meaning) in KINDS.items()]
    calibration = evaluation.calibration(n_bins=BINS)
    bins = [ScoreBin(each["avg_confidence"], each["avg_accuracy"], each["count"]) for each in calibration["bins"]]
    return Diagnosis(
        sorted(errors, key=lambda kind: -kind.ap50),
        [each for each in bins if each.detections],
        calibration["ece"],
        _doubts(annotations, found, evaluation),
    )


def _in_crowd(annotations: Annotations, image: int, box: Grid) -> bool:
    """Whether most of a box, left, top, width and height in pixels, is in a crowd, where nobody knows what is right."""
    objects = annotations.objects[annotations.starts[image] : annotations.starts[image + 1]]
    crowds = objects.boxes[objects.crowds]
    shared = np.minimum(box[:2] + box[2:], crowds[:, :2] + crowds[:, 2:]) - np.maximum(box[:2], crowds[:, :2])
    return bool((shared.clip(min=0).prod(1) > 0.5 * box[2:].prod()).any())


def _doubts(annotations: Annotations, found: Grid, evaluation: hotcoco.COCOeval) -> list[Doubt]:
    names = annotations.classes.names
    surest: dict[int, Doubt] = {}
    for each in evaluation.image_diagnostics(score_thr=SURE_ABOVE)["label_errors"]:
        row = found[each["dt_id"] - 1]
        image, score = int(row[0]), float(row[5])
        if (image in surest and surest[image].score >= score) or _in_crowd(annotations, image, row[1:5]):
            continue
        left, top, width, height = row[1:5].tolist()
        annotated = each["gt_category_id"]
        surest[image] = Doubt(
            image,
            annotations.images.names[image],
            (left, top, left + width, top + height),
            score,
            names[int(row[6])],
            None if annotated is None else names[annotated - 1],
        )
    return sorted(surest.values(), key=lambda doubt: -doubt.score)
