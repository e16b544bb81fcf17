"""The threshold of the best F1, against trying every score."""

import numpy as np
import pytest

from cond_detr.data.annotation_checks import check_annotations
from cond_detr.evaluate.best_f1 import best_of_all, best_of_each
from cond_detr.evaluate.coco_metrics import evaluate_table
from cond_detr.evaluate.over_dataset import results_dict

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def scene() -> tuple[dict[str, list[dict[str, object]]], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Objects far apart in 40 images, each found or not, and detections where nothing is."""
    rng = np.random.default_rng(3)
    annotations, rows = [], []
    for image in range(40):
        for label in range(2):
            box = [100.0 * label, 10.0, 50.0, 40.0]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image + 1, "category_id": label + 1, "bbox": box}
            )
            if rng.random() < 0.8:
                rows.append([image, *box, rng.beta(4, 2), label])
            if rng.random() < 0.7:
                rows.append([image, 100.0 * label, 200.0, 50.0, 40.0, rng.beta(2, 4) * (0.6 if label else 1), label])
    raw = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": 300, "height": 300} for i in range(40)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
    }
    return raw, np.array(rows)


def f1_at(rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]], label: int, threshold: float) -> float:
    """By counting: a detection is right if it is at the top of its image."""
    kept = rows[(rows[:, 6] == label) & (rows[:, 5] >= threshold)]
    right = (kept[:, 2] == 10).sum()
    return float(2 * right / (len(kept) + 40))


def test_against_every_score(scene: tuple[dict[str, list[dict[str, object]]], np.ndarray]) -> None:  # type: ignore[type-arg]
    raw, rows = scene
    found = evaluate_table(check_annotations(raw, "raw"), rows)
    each = best_of_each(found.precision, found.scores)
    assert each["owl"] is None
    for label, name in enumerate(NAMES[:2]):
        best = max(f1_at(rows, label, score) for score in rows[:, 5])
        mine = each[name]
        assert mine
        assert mine.f1 == pytest.approx(best, abs=0.012)  # recalls are a hundredth apart
        assert f1_at(rows, label, mine.threshold) == pytest.approx(best, abs=0.012)
    best = max(np.mean([f1_at(rows, label, score) for label in range(2)]) for score in rows[:, 5])
    together = found.best_f1
    assert together
    assert together.f1 == pytest.approx(best, abs=0.015)
    assert np.mean([f1_at(rows, label, together.threshold) for label in range(2)]) == pytest.approx(best, abs=0.015)
    assert results_dict(found)["best_f1"]["threshold"] == together.threshold


def test_without_objects_or_detections() -> None:
    nothing = [0.0] * 101
    assert best_of_all({"cat": None}, {"cat": None}) is None
    assert best_of_all({"cat": nothing}, {"cat": nothing}) is None
    assert best_of_each({"cat": nothing, "dog": None}, {"cat": nothing, "dog": None}) == {"cat": None, "dog": None}
