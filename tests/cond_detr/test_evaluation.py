"""COCO metrics: perfect for the ground truth, and equal to what pycocotools says when called by hand, to six digits."""

import json
import os
import signal
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cond_detr.config import DataConfig
from cond_detr.data import open_split, shapes
from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.annotations import Annotations
from cond_detr.evaluate.coco_metrics import Confusion, Evaluation, evaluate_table
from cond_detr.evaluate.over_dataset import results_dict, table
from cond_detr.predict.detections import Detections

Evaluator: TypeAlias = Literal["hotcoco", "pycocotools"]
EVALUATORS: tuple[Evaluator, ...] = ("hotcoco", "pycocotools")


def evaluation_of(
    annotations: Annotations, found: list[tuple[int, Detections]], evaluator: Evaluator = "hotcoco"
) -> Evaluation:
    return evaluate_table(annotations, table(annotations, found).numpy(), evaluator)


def truth_as_found(annotations: Annotations) -> list[tuple[int, Detections]]:
    """Every box of the ground truth as a detection, through the same path as a model's."""
    found = []
    for record in annotations.records:
        ids = [annotations.classes.category_ids[label] for label in record.labels]
        boxes, labels = torch.from_numpy(record.boxes), torch.from_numpy(record.labels)
        found.append((record.image_id, Detections(boxes, torch.ones(len(labels)), labels, [], ids)))
    return found


def by_hand(annotations: Annotations, found: list[tuple[int, Detections]]) -> COCOeval:
    """What pycocotools says of detections."""
    truth = COCO()
    truth.dataset = annotations.to_coco()
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes([each for i, image in found for each in image.to_coco(i)]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def check_equal(evaluation: Evaluation, reference: COCOeval) -> None:
    """All numbers, to six digits."""
    names = ("AP", "AP50", "AP75", "APS", "APM", "APL")
    got = [-1 if evaluation.metrics[name] is None else evaluation.metrics[name] for name in (*names, "AR")]
    np.testing.assert_allclose(got, [*reference.stats[:6], reference.stats[8]], rtol=0, atol=1e-6)
    precision, scores = reference.eval["precision"][0, :, :, 0, 2], reference.eval["scores"][0, :, :, 0, 2]
    for i, name in enumerate(evaluation.per_class):
        if precision[0, i] < 0:
            assert evaluation.per_class[name] == {"AP": None, "AP50": None, "AR": None}
            continue
        np.testing.assert_allclose(evaluation.precision[name], precision[:, i], rtol=0, atol=1e-6)
        np.testing.assert_allclose(evaluation.scores[name], scores[:, i], rtol=0, atol=1e-6)
        of_class = reference.eval["precision"][:, :, i, 0, 2].mean()
        np.testing.assert_allclose(evaluation.per_class[name]["AP"], of_class, rtol=0, atol=1e-6)
        recall = reference.eval["recall"][:, i, 0, 2].mean()
        np.testing.assert_allclose(evaluation.per_class[name]["AR"], recall, rtol=0, atol=1e-6)


def noisy(annotations: Annotations, seed: int = 0) -> list[tuple[int, Detections]]:
    """Detections as of a mediocre model: shifted, doubled, missed, of other classes; scores are often tied."""
    rng = np.random.default_rng(seed)
    found = []
    for record in annotations.records:
        keep = np.repeat(rng.permutation(len(record.labels)), rng.integers(0, 4))
        sizes = record.boxes[keep, 2:] - record.boxes[keep, :2]
        boxes = record.boxes[keep] + np.tile(sizes, 2) * rng.normal(0, 0.15, (len(keep), 4))
        labels = np.where(rng.random(len(keep)) < 0.2, rng.integers(0, len(annotations.classes)), record.labels[keep])
        scores = torch.from_numpy(rng.integers(0, 12, len(keep)) / 12).float()
        ids = [annotations.classes.category_ids[label] for label in labels]
        found.append(
            (record.image_id, Detections(torch.from_numpy(boxes).float(), scores, torch.from_numpy(labels), [], ids))
        )
    return found


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_ground_truth_scores_one_on_shapes(evaluator: Evaluator) -> None:
    annotations = shapes.make_split("val").annotations
    evaluation = evaluation_of(annotations, truth_as_found(annotations), evaluator)
    assert (evaluation.metrics["AP"], evaluation.metrics["AP50"], evaluation.metrics["AR"]) == pytest.approx((1, 1, 1))
    assert evaluation.metrics["APL"] is None  # no object is larger than 96 x 96
    assert [evaluation.per_class[name]["AP"] for name in shapes.NAMES] == pytest.approx([1.0] * len(shapes.NAMES))


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["bccd", "everyday", "coco_subset"])
def test_equals_pycocotools_on_real_data(real_data: Path, name: str, split: str, evaluator: Evaluator) -> None:
    annotations = open_split(DataConfig(dataset_dir=str(real_data / name)), split, 32).annotations
    assert evaluation_of(annotations, truth_as_found(annotations), evaluator).metrics["AP"] == pytest.approx(1)
    found = noisy(annotations)
    check_equal(evaluation_of(annotations, found, evaluator), by_hand(annotations, found))


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_by_hand(seed: int, evaluator: Evaluator) -> None:
    """Crowds, ids with gaps, below 0 and of more than 64 bits, areas that are not width times height, empty classes."""
    rng = np.random.default_rng(seed)
    ids = [0, 10, -7, 2**31, 2**63 + 5, 2**80]
    raw: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 300, "height": 200} for i in ids],
        "categories": [{"id": c, "name": f"c{c}"} for c in (2, -5, 2**40, 70)],
        "annotations": [],
    }
    for i in range(60):
        x, y, w, h = rng.uniform(0, 150), rng.uniform(0, 100), rng.uniform(5, 140), rng.uniform(5, 90)
        image, category = ids[int(rng.integers(5))], int(rng.choice([2, -5, 2**40]))
        entry = {"id": i, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": int(i % 9 == 0)}
        area = [w * h, w * h / 3, 5e6, -1, None, 0][int(rng.integers(6))]
        raw["annotations"].append({**entry, "area": area, "ignore": int(i % 7 == 0)})
    annotations = check_annotations(raw, "raw")
    found = noisy(annotations, seed)
    evaluation = evaluation_of(annotations, found, evaluator)
    check_equal(evaluation, by_hand(annotations, found))
    assert evaluation.per_class["c70"] == {"AP": None, "AP50": None, "AR": None}
    json.dumps(results_dict(evaluation), allow_nan=False)


def test_more_than_a_hundred_detections_in_an_image() -> None:
    """Only the hundred best of each class count."""
    raw = {
        "images": [{"id": 0, "file_name": "a.png", "width": 1000, "height": 1000}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [{"image_id": 0, "category_id": 0, "bbox": [9 * i, 9 * i, 8, 8]} for i in range(110)],
    }
    annotations = check_annotations(raw, "raw")
    found = truth_as_found(annotations)
    for evaluator in EVALUATORS:
        check_equal(evaluation_of(annotations, found, evaluator), by_hand(annotations, found))


def test_classes_that_are_taken_for_others() -> None:
    """Of four cats one is found, one is taken for a dog, two are missed, one by its score; a dog is invented."""
    raw = {
        "images": [{"id": 5, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": 5, "category_id": 1, "bbox": [25 * i, 0, 20, 20]} for i in range(4)],
    }
    annotations = check_annotations(raw, "raw")
    boxes = torch.tensor([[0, 0, 20, 20], [25, 0, 45, 20], [50, 0, 70, 20], [0, 70, 20, 90]]).float()
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.2, 0.7]), torch.tensor([0, 1, 0, 1]), [], [1, 2, 1, 2])
    confusion = evaluation_of(annotations, [(5, found)]).confusion
    assert confusion is not None
    assert set(map(repr, confusion)) == set(
        map(
            repr,
            (
                Confusion("cat", None, 2),
                Confusion("cat", "cat", 1),
                Confusion("cat", "dog", 1),
                Confusion(None, "dog", 1),
            ),
        )
    )
    assert evaluation_of(annotations, [(5, found)], "pycocotools").confusion is None


def test_detections_on_crowds_are_not_confused_with_anything() -> None:
    """As COCO's AP forgives them; of another class they are false."""
    raw = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (4, 5)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": 5, "category_id": 1, "bbox": [0, 0, 60, 60], "iscrowd": 1}],
    }
    annotations = check_annotations(raw, "raw")
    boxes = torch.tensor([[5.0, 5, 20, 20], [50, 50, 90, 90], [5, 5, 20, 20], [30, 0, 80, 20]])
    found = Detections(boxes, torch.full((4,), 0.9), torch.tensor([0, 0, 1, 0]), [], [1, 1, 2, 1])
    elsewhere = Detections(boxes[:1], torch.ones(1), torch.zeros(1, dtype=torch.int64), [], [1])
    confusion = evaluation_of(annotations, [(5, found), (4, elsewhere)]).confusion
    assert confusion == [Confusion(None, "cat", 2), Confusion(None, "dog", 1)]


def test_annotations_without_ids_areas_or_crowd_flags() -> None:
    """An annotation id of 0 would count as unmatched in pycocotools."""
    raw = {
        "images": [{"id": 0, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50]}],
    }
    annotations = check_annotations(raw, "raw")
    for evaluator in EVALUATORS:
        assert evaluation_of(annotations, truth_as_found(annotations), evaluator).metrics["AP"] == pytest.approx(1)


def test_dropped_boxes_are_not_asked_for() -> None:
    raw = {
        "images": [{"id": 0, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [
            {"image_id": 0, "category_id": 0, "bbox": box} for box in ([10, 10, 50, 50], [20, 20, 0, 9], [200, 5, 9, 9])
        ],
    }
    annotations = check_annotations(raw, "raw")
    assert sum(annotations.dropped.values()) == 2
    assert evaluation_of(annotations, truth_as_found(annotations)).metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detections_score_zero(evaluator: Evaluator) -> None:
    annotations = shapes.make_split("val", 3).annotations
    assert evaluation_of(annotations, [], evaluator).metrics["AP"] == 0.0


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_can_be_measured_without_objects(evaluator: Evaluator) -> None:
    raw = {
        "images": [{"id": 0, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [],
    }
    annotations = check_annotations(raw, "raw")
    found = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), [], [0])
    for each in ([], [(0, found)]):
        assert set(evaluation_of(annotations, each, evaluator).metrics.values()) == {None}


@pytest.mark.usefixtures("one_thread")  # torch's own threads are not there in a fork either
def test_a_fork_evaluates_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    """It has none of the threads of its parent, which hotcoco would wait for."""
    annotations = shapes.make_split("val", 3).annotations
    evaluation_of(annotations, truth_as_found(annotations))
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(evaluation_of(annotations, truth_as_found(annotations)).metrics["AP"] != pytest.approx(1))
    assert os.waitpid(child, 0)[1] == 0
    assert "warning: hotcoco cannot be used" in capfd.readouterr().err


def test_classes_that_the_data_does_not_have_are_not_measured() -> None:
    annotations = shapes.make_split("val", 3).annotations
    (image_id, found), *rest = truth_as_found(annotations)
    unknown = Detections(found.boxes, found.scores, found.labels, [], [-1] * len(found))
    assert evaluation_of(annotations, [(image_id, found), (image_id, unknown), *rest]).metrics["AP"] == pytest.approx(1)
