"""The built-in data: deterministic, varied, and labelled right."""

import numpy as np
import pytest

from cond_detr.data import shapes


def test_images_are_reproducible_and_splits_differ() -> None:
    first, again = shapes.make_split("train", 5), shapes.make_split("train", 5)
    held_out = shapes.make_split("val", 5)
    for i in range(5):
        name = f"train-{i:05d}.png"
        assert np.array_equal(
            first.load(name, (shapes.SIZE, shapes.SIZE)), again.load(name, (shapes.SIZE, shapes.SIZE))
        )
        assert not np.array_equal(
            first.load(name, (shapes.SIZE, shapes.SIZE)), held_out.load(f"val-{i:05d}.png", (shapes.SIZE, shapes.SIZE))
        )
    assert first.annotations.to_coco() == again.annotations.to_coco()


def test_the_data_is_varied() -> None:
    annotations = shapes.make_split("val").annotations
    assert len(annotations.records) >= 300
    boxes = np.concatenate([record.boxes for record in annotations.records])
    labels = np.concatenate([record.labels for record in annotations.records])
    assert len(annotations.classes) >= 5
    assert np.bincount(labels).min() > 0.1 * len(labels)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1) / shapes.SIZE
    assert sides.min() < 0.2
    assert sides.max() > 0.6
    assert (boxes >= 0).all()
    assert (boxes <= shapes.SIZE).all()
    counts = {len(record.labels) for record in annotations.records}
    assert counts == {1, 2, 3, 4}
    assert annotations.dropped == {}


@pytest.mark.parametrize("name", shapes.NAMES)
def test_masks_are_inside_the_image_and_fill_their_boxes(name: str) -> None:
    for seed in range(20):
        mask = shapes.shape_mask(name, np.random.default_rng(seed))
        assert mask.min() == 0
        assert mask.max() == 1
        x0, y0, x1, y1 = shapes.extent(mask)
        filled = (mask[y0:y1, x0:x1] >= 0.5).mean()
        # a square tilted to a diamond fills half of its box; a star the least of all
        assert 0.2 < filled <= 1
        assert (mask >= 0.5).sum() == (mask[y0:y1, x0:x1] >= 0.5).sum()


def test_overlaps_leave_most_of_an_object_visible() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, labels, boxes = shapes.draw_image(rng)
        assert len(labels) == len(boxes) >= 1
