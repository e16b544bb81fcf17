"""Bounds of masks are pycocotools', and what is no mask is refused before it can do harm."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from cond_detr import InputError
from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.masks import mask_bounds


def runs(pixels: np.ndarray) -> list[int]:
    """Lengths of runs, counted one by one."""
    counts, inside = [0], False
    for value in pixels.ravel(order="F"):
        if bool(value) != inside:
            counts.append(0)
            inside = not inside
        counts[-1] += 1
    return counts


@pytest.mark.parametrize("density", [0, 0.003, 0.05, 0.5, 1])
def test_bounds_are_those_of_pycocotools(density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        pixels = (rng.random((height, width)) < density).astype(np.uint8)
        encoded = mask.encode(np.asfortranarray(pixels))
        wanted = mask.toBbox(encoded).tolist()
        for counts in (encoded["counts"], encoded["counts"].decode(), runs(pixels)):
            assert mask_bounds({"size": [height, width], "counts": counts}) == wanted


@pytest.mark.parametrize(
    "shape",
    [
        {"size": [0, 5], "counts": [1, 2]},
        {"size": [0, 5], "counts": "11"},
        {"size": [4, 2**31], "counts": [1, 2]},
        {"size": [4, 5.0], "counts": [1, 2]},
        {"size": [4], "counts": [1, 2]},
        {"size": [4, 5], "counts": [1, -2]},
        {"size": [4, 5], "counts": [1, True]},
        {"size": [4, 5], "counts": [19, 2]},
        {"size": [4, 5], "counts": [10**400]},
        {"size": [4, 5], "counts": "1P"},
        {"size": [4, 5], "counts": "P" * 1000},
        {"size": [4, 5], "counts": "1\0"},
        {"size": [4, 5], "counts": "\u20ac"},
        {"size": [4, 5], "counts": None},
        {"size": [4, 5]},
        {},
    ],
)
def test_what_is_no_mask(shape: dict[str, Any]) -> None:
    """pycocotools divides by a height of 0, and writes beyond the memory of text that ends within a number."""
    with pytest.raises(InputError, match="a mask must have"):
        mask_bounds(shape)
    raw = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": shape or {"size": []}}],
    }
    with pytest.raises(
        InputError,
        match=r"f\.json: annotation 1 \(a\.png\) has no box: bbox is None, and its segmentation is damaged",
    ):
        check_annotations(raw, "f.json")
