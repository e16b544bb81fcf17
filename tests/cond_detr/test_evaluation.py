"""COCO metrics: perfect for the ground truth, and equal to what pycocotools says when called by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cond_detr.config import DataConfig
from cond_detr.data import open_split, shapes
from cond_detr.data.annotations import Annotations, check_annotations
from cond_detr.evaluate.coco_metrics import evaluate_results
from cond_detr.predict.detections import Detections


def truth_as_results(annotations: Annotations) -> list[dict[str, Any]]:
    """Every box of the ground truth as a detection, through the same path as a model's."""
    results = []
    for record in annotations.records:
        ids = [annotations.classes.category_ids[label] for label in record.labels]
        found = Detections(
            torch.from_numpy(record.boxes), torch.ones(len(record.labels)), torch.from_numpy(record.labels), [], ids
        )
        results += found.to_coco(record.image_id)
    return results


def test_ground_truth_scores_one_on_shapes() -> None:
    annotations = shapes.make_split("val").annotations
    evaluation = evaluate_results(annotations, truth_as_results(annotations))
    assert (evaluation.metrics["AP"], evaluation.metrics["AP50"]) == pytest.approx((1, 1))
    assert evaluation.metrics["APL"] is None  # no object is larger than 96 x 96
    assert [evaluation.per_class[name]["AP"] for name in shapes.NAMES] == pytest.approx([1.0] * len(shapes.NAMES))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["bccd", "everyday", "coco_subset"])
def test_ground_truth_scores_one_on_real_data(real_data: Path, name: str, split: str) -> None:
    annotations = open_split(DataConfig(dataset_dir=str(real_data / name)), split, 32).annotations
    evaluation = evaluate_results(annotations, truth_as_results(annotations))
    assert evaluation.metrics["AP"] == pytest.approx(1)


def test_equals_pycocotools_by_hand(tmp_path: Path) -> None:
    """Noisy detections of images with crowds, gaps in the ids, and classes without objects."""
    rng = np.random.default_rng(0)
    raw: dict[str, Any] = {
        "images": [{"id": i * 10, "file_name": f"{i}.png", "width": 300, "height": 200} for i in range(6)],
        "categories": [{"id": c, "name": f"c{c}"} for c in (2, 5, 9, 70)],
        "annotations": [],
    }
    results = []
    for i in range(40):
        x, y, w, h = rng.uniform(0, 150), rng.uniform(0, 100), rng.uniform(5, 140), rng.uniform(5, 90)
        image, category = int(rng.integers(5)) * 10, int(rng.choice([2, 5, 9]))
        entry = {"id": i + 1, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h}
        raw["annotations"].append({**entry, "iscrowd": int(i % 13 == 0)})
        box = [x + rng.normal(0, 4), y + rng.normal(0, 4), w, h]
        results.append({"image_id": image, "category_id": category, "bbox": box, "score": float(rng.random())})
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(raw))
    truth = COCO(str(path))
    by_hand = COCOeval(truth, truth.loadRes(results), "bbox")
    by_hand.evaluate()
    by_hand.accumulate()
    by_hand.summarize()
    evaluation = evaluate_results(check_annotations(raw, "raw"), results)
    got = [-1 if v is None else v for v in evaluation.metrics.values()]
    assert got == pytest.approx(by_hand.stats[:6].tolist())
    assert evaluation.per_class["c70"] == {"AP": None, "AP50": None}
    present = [v["AP"] for v in evaluation.per_class.values() if v["AP"] is not None]
    assert np.mean(present) == pytest.approx(by_hand.stats[0])


def test_annotations_without_ids_areas_or_crowd_flags() -> None:
    """An annotation id of 0 would count as unmatched in pycocotools."""
    raw = {
        "images": [{"id": 0, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50]}],
    }
    annotations = check_annotations(raw, "raw")
    assert evaluate_results(annotations, truth_as_results(annotations)).metrics["AP"] == pytest.approx(1)


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
    assert evaluate_results(annotations, truth_as_results(annotations)).metrics["AP"] == pytest.approx(1)


def test_no_detections_score_zero() -> None:
    annotations = shapes.make_split("val", 3).annotations
    assert evaluate_results(annotations, []).metrics["AP"] == 0.0
