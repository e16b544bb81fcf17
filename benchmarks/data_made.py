"""A made data set of COCO's size: annotations of all its images, and the pixels of some of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Images, boxes and categories of COCO's train2017 and val2017
TRAIN, VAL = (118_287, 860_001), (5_000, 36_335)
CATEGORIES = 80
SIZE = (640, 480)
# Corners of a polygon, of COCO's average
CORNERS = 21


def annotations(images: int, boxes: int, seed: int) -> dict[str, list[Any]]:
    """The content of an annotation file with all the fields that COCO's have; ids have gaps, and are not in order."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(6 * images, images, replace=False).tolist()
    categories = np.sort(rng.choice(90, CATEGORIES, replace=False) + 1).tolist()
    width, height = SIZE
    corner, extent = rng.uniform(0, 300, (boxes, 2)).round(2), np.exp(rng.uniform(1, 5.1, (boxes, 2))).round(2)
    polygons = rng.uniform(0, 400, (boxes, 2 * CORNERS)).round(2).tolist()
    of_image, of_category = rng.integers(0, images, boxes).tolist(), rng.choice(categories, boxes).tolist()
    return {
        "images": [
            {
                "license": 3,
                "file_name": f"{i:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
                "height": height,
                "width": width,
                "date_captured": "2013-11-14 11:18:45",
                "id": i,
            }
            for i in ids
        ],
        "annotations": [
            {
                "segmentation": [polygon],
                "area": 0.6 * w * h,
                "iscrowd": int(number % 90 == 0),
                "image_id": ids[image],
                "bbox": [left, top, w, h],
                "category_id": category,
                "id": number,
            }
            for number, (polygon, image, category, (left, top), (w, h)) in enumerate(
                zip(polygons, of_image, of_category, corner.tolist(), extent.tolist(), strict=True), start=1
            )
        ],
        "categories": [{"supercategory": "thing", "id": i, "name": f"category {i}"} for i in categories],
    }


def photo(rng: np.random.Generator) -> Image.Image:
    """Soft colours with some noise; as a JPEG it has the size of COCO's, and takes as long to decode."""
    width, height = SIZE
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((soft + rng.normal(0, 10, soft.shape)).clip(0, 255).astype(np.uint8))


def make(folder: Path, scale: float, photos: int) -> None:
    """Writes ``big/`` with annotations alone, and ``photos/``, a data set that can be loaded.

    Args:
        folder: where to.
        scale: size of ``big/`` as a fraction of COCO's.
        photos: number of images of ``photos/``.
    """
    (folder / "big").mkdir(parents=True)
    for name, (images, boxes) in (("train", TRAIN), ("val", VAL)):
        content = annotations(round(scale * images), round(scale * boxes), seed=len(name))
        (folder / "big" / f"{name}.json").write_text(json.dumps(content))
    rng = np.random.default_rng(0)
    content = annotations(photos, 7 * photos, seed=0)
    (folder / "photos/annotations").mkdir(parents=True)
    (folder / "photos/train").mkdir()
    (folder / "photos/annotations/instances_train.json").write_text(json.dumps(content))
    for entry in content["images"]:
        photo(rng).save(folder / "photos/train" / entry["file_name"], quality=90)
