"""Kinds of error, calibration and doubtful annotations: counted by hand, and costs as pycocotools sees them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cond_detr.boxes import iou
from cond_detr.data import shapes
from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.annotations import Annotations
from cond_detr.evaluate.diagnosis import KINDS, Diagnosis, Doubt, diagnose
from cond_detr.evaluate.over_dataset import table
from cond_detr.predict.detections import Detections
from tests.cond_detr.test_evaluation import by_hand, noisy, truth_as_found

# a cat, a dog, a crowd of cats; in the other image a cat
TRUTH = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in (7, 3)],
    "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"image_id": 3, "category_id": 5, "bbox": [0, 0, 50, 50]},
        {"image_id": 3, "category_id": 9, "bbox": [100, 100, 50, 50]},
        {"image_id": 3, "category_id": 5, "bbox": [0, 100, 80, 80], "iscrowd": 1},
        {"image_id": 7, "category_id": 5, "bbox": [0, 0, 50, 50]},
    ],
}
CAT, DOG = 0, 1
Row = tuple[int, list[float], float, int]


def diagnosis(*rows: Row) -> Diagnosis:
    found = np.array([[image, *box, score, label] for image, box, score, label in rows], np.float64).reshape(-1, 7)
    return diagnose(check_annotations(TRUTH, "raw"), found)


def counts(told: Diagnosis) -> dict[str, int]:
    return {kind.name: kind.times for kind in told.errors if kind.times}


@pytest.mark.parametrize(
    ("row", "errors"),
    [
        ((0, [0, 0, 50, 50], 0.9, CAT), {"missed": 2}),
        ((0, [0, 0, 50, 50], 0.2, CAT), {"missed": 3}),
        ((0, [0, 25, 50, 50], 0.9, CAT), {"place": 1, "missed": 2}),
        ((0, [0, 0, 50, 50], 0.9, DOG), {"class": 1, "missed": 2}),
        ((0, [0, 25, 50, 50], 0.9, DOG), {"class and place": 1, "missed": 3}),
        ((1, [100, 100, 50, 50], 0.9, CAT), {"nothing": 1, "missed": 3}),
        ((0, [5, 105, 30, 30], 0.9, CAT), {"missed": 3}),  # on a crowd
    ],
)
def test_each_kind(row: Row, errors: dict[str, int]) -> None:
    assert counts(diagnosis(row)) == errors


def test_twice() -> None:
    once, again = (0, [0.0, 0, 50, 50], 0.9, CAT), (0, [0.0, 2, 50, 50], 0.8, CAT)
    assert counts(diagnosis(once, again)) == {"twice": 1, "missed": 2}


def test_no_detections() -> None:
    told = diagnosis()
    assert counts(told) == {"missed": 3}
    assert (told.calibration, told.calibration_error, told.doubts) == ([], 0, [])


def without(found: list[tuple[int, Detections]], wrong: Callable[[int, Detections], torch.Tensor]) -> list:
    return [(image, each[~wrong(image, each)]) for image, each in found]


def test_costs_are_what_pycocotools_sees_without_these_detections() -> None:
    annotations = shapes.make_split("val", 40).annotations
    rng = np.random.default_rng(3)
    found = []
    for image, each in noisy(annotations):
        corners = torch.from_numpy(rng.uniform(0, 60, (4, 2))).float()
        extra = Detections(
            torch.cat([corners, corners + 30], 1),
            torch.from_numpy(rng.uniform(0, 1, 4)).float(),
            torch.from_numpy(rng.integers(0, 3, 4)),
            [],
            [annotations.classes.category_ids[0]] * 4,
        )
        labels = torch.cat([each.labels, extra.labels])
        both = Detections.together([each, extra])
        found.append((image, Detections.of(both.boxes, both.scores, labels, annotations.classes)))
    told = diagnose(annotations, table(annotations, found).numpy())
    costs = {kind.name: kind.ap50 for kind in told.errors}
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    assert set(costs) == {name for name, _ in KINDS.values()}
    truth = {record.image_id: torch.from_numpy(record.boxes) for record in annotations.records}

    def on_nothing(image: int, each: Detections) -> torch.Tensor:
        return (iou(each.boxes[:, None], truth[image][None]) < 0.1).all(1)

    base, mended = (by_hand(annotations, each).stats[1] for each in (found, without(found, on_nothing)))
    assert costs["nothing"] == pytest.approx(mended - base, abs=1e-6)
    assert costs["nothing"] > 0.01


def test_calibration_against_counting() -> None:
    annotations = shapes.make_split("val", 40).annotations
    perfect = truth_as_found(annotations)
    rows = table(annotations, perfect).numpy()
    rows[:, 5] = np.where(np.arange(len(rows)) % 4 == 0, 0.35, 0.85)
    wrong = rows.copy()
    wrong[:, 1:5] = [0, 0, 1, 1]
    told = diagnose(annotations, np.concatenate([rows, wrong[::4], wrong[::4]]))
    few = len(rows[::4])
    low, high = told.calibration
    assert (low.score, low.right, low.detections) == pytest.approx((0.35, 1 / 3, 3 * few))
    assert (high.score, high.right, high.detections) == pytest.approx((0.85, 1, len(rows) - few))
    error = (abs(0.35 - 1 / 3) * 3 * few + 0.15 * (len(rows) - few)) / (len(rows) + 2 * few)
    assert told.calibration_error == pytest.approx(error)


def test_doubts() -> None:
    told = diagnosis(
        (1, [100, 100, 50, 50], 0.6, CAT),  # nothing is annotated there
        (1, [120, 20, 50, 50], 0.9, DOG),  # nor there, and it is surer
        (0, [0, 0, 50, 50], 0.8, DOG),  # annotated as a cat
        (0, [101, 101, 50, 50], 0.99, DOG),  # right
        (0, [0, 0, 20, 20], 0.4, DOG),  # not sure
    )
    # images are in the order of their ids
    assert told.doubts == [
        Doubt(1, "7.png", (120, 20, 170, 70), 0.9, "dog", None),
        Doubt(0, "3.png", (0, 0, 50, 50), 0.8, "dog", "cat"),
    ]


def test_objects_without_any_in_the_data_set() -> None:
    empty: Annotations = check_annotations({**TRUTH, "annotations": []}, "raw")
    told = diagnose(empty, np.array([[0, 0, 0, 9, 9, 0.9, 0]], np.float64))
    assert counts(told) == {"nothing": 1}


def test_nobody_knows_what_is_right_in_a_crowd() -> None:
    """Whatever the class; where half of a box is outside it can be known."""
    for label in (CAT, DOG):
        assert not diagnosis((0, [5.0, 105, 30, 30], 0.9, label)).doubts
        assert diagnosis((0, [5.0, 65, 30, 60], 0.9, label)).doubts
