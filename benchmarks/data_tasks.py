"""What data_bench.py measures, each in a process of its own: ``python benchmarks/data_tasks.py TASK FOLDER``.

Prints a row as JSON: CPU seconds, resident memory before and after, and what was found, for comparison.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Row = dict[str, Any]
# Loading processes of the memory measurement
PROCESSES = 4
DETECTIONS = 100


def resident(field: str = "Rss") -> float:
    """Memory of this process in MB: ``Rss``, or ``Private_Dirty`` for what it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def measured(call: Callable[[], Any]) -> tuple[Any, Row]:
    """The result of a call, and what it cost."""
    before, began = resident(), time.process_time()
    result = call()
    seconds = time.process_time() - began
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return result, {"cpu_s": seconds, "resident_mb": resident() - before, "peak_mb": peak}


def open_ours(folder: Path) -> Row:
    """Reads and checks the annotations."""
    from cond_detr.data.annotation_checks import read_annotations

    found, row = measured(lambda: read_annotations(folder / "big/train.json"))
    return {**row, "found": [len(found.images), len(found.objects)]}


def open_pycocotools(folder: Path) -> Row:
    """Reads the annotations, without checks."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        found, row = measured(lambda: COCO(str(folder / "big/train.json")))
    return {**row, "found": [len(found.imgs), len(found.anns)]}


class Indices(Dataset[float]):
    """Looks at the annotations of an image; gives the process's own memory."""

    def __init__(self, count: int, look: Callable[[int], object]) -> None:
        self.count, self.look = count, look

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> float:
        self.look(index)
        return resident("Private_Dirty") if index % 500 == 0 else 0.0


def grown(dataset: Indices) -> Row:
    """Memory that a loading process does not share, and how much of it came with an epoch of indices."""
    count = len(dataset)
    loader = DataLoader(dataset, 500, num_workers=PROCESSES, collate_fn=max)
    sizes = [size for size in loader if size]
    first = DataLoader(Indices(PROCESSES, dataset.look), 1, num_workers=PROCESSES, collate_fn=max)
    return {"growth_mb": max(sizes) - max(first), "found": [count]}


def loading_ours(folder: Path) -> Row:
    """Memory of loading processes with our annotations."""
    from cond_detr.data.annotation_checks import read_annotations

    annotations = read_annotations(folder / "big/train.json")
    return grown(Indices(len(annotations.images), lambda i: annotations.records[i]))


def loading_pycocotools(folder: Path) -> Row:
    """Memory of loading processes with pycocotools' dictionaries, as torchvision's CocoDetection has them."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "big/train.json"))
    ids = sorted(coco.imgs)

    def look(index: int) -> object:
        return [(a["bbox"], a["category_id"]) for a in coco.loadAnns(coco.getAnnIds(ids[index]))]

    return grown(Indices(len(ids), look))


def detected(folder: Path) -> tuple[Any, NDArray[np.float64]]:
    """Annotations of the validation images, and a table of a hundred detections in each, most of them wrong."""
    from cond_detr.data.annotation_checks import read_annotations

    annotations = read_annotations(folder / "big/val.json")
    rng = np.random.default_rng(0)
    count, classes = len(annotations.images), len(annotations.classes)
    objects = annotations.objects
    near = np.column_stack([objects.images, objects.boxes * rng.normal(1, 0.05, (len(objects), 4)), objects.labels])
    images = np.repeat(np.arange(count), DETECTIONS - len(objects) // count)
    anywhere = np.column_stack(
        [images, np.exp(rng.uniform(1, 5.1, (len(images), 4))), rng.integers(0, classes, len(images))]
    )
    rows = np.concatenate([near, anywhere])
    return annotations, np.insert(rows, 5, rng.random(len(rows)).astype(np.float32), axis=1)


def evaluate_ours(folder: Path) -> Row:
    """Evaluates detections."""
    from cond_detr.evaluate.coco_metrics import evaluate_table

    annotations, rows = detected(folder)
    found, row = measured(lambda: evaluate_table(annotations, rows))
    values = [found.metrics[name] for name in ("AP", "AP50", "AP75", "APS", "APM", "APL")]
    return {**row, "found": [-1 if value is None else value for value in values]}


def evaluate_pycocotools(folder: Path) -> Row:
    """Evaluates the same detections, given as the dictionaries that pycocotools takes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, rows = detected(folder)
    ids, categories = annotations.images.ids.tolist(), annotations.classes.category_ids
    results = [
        {"image_id": ids[int(image)], "category_id": categories[int(label)], "bbox": box, "score": score}
        for image, *box, score, label in rows.tolist()
    ]
    truth = COCO()
    truth.dataset = annotations.to_coco()

    def evaluate() -> Any:
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[:6].tolist()

    with contextlib.redirect_stdout(io.StringIO()):
        found, row = measured(evaluate)
    return {**row, "found": found}


def per_second(samples: Callable[[], Iterator[Tensor]]) -> Row:
    """Samples a CPU second."""
    next(samples())
    count, row = measured(lambda: sum(1 for _ in samples()))
    return {**row, "samples_per_cpu_s": count / row["cpu_s"], "found": [count]}


def sample_ours(folder: Path) -> Row:
    """The paper's augmentation, as training loads it."""
    from cond_detr.config import DataConfig
    from cond_detr.data import open_split
    from cond_detr.errors import InputError

    dataset = open_split(DataConfig(dataset_dir=folder / "photos"), "train", 32)

    def samples() -> Iterator[Tensor]:
        for i in range(len(dataset)):
            sample = dataset[i]
            assert not isinstance(sample, InputError)
            yield sample.pixels

    return per_second(samples)


def sample_detr(folder: Path) -> Row:
    """The paper's augmentation in the order of DETR's repository: Pillow's steps, floats, normalisation."""
    from cond_detr.config import DataConfig
    from cond_detr.data.augment import draw_augmentation
    from cond_detr.data.images import IMAGENET_MEAN, IMAGENET_STD

    paths = sorted((folder / "photos/train").iterdir())
    data, rng = DataConfig(), np.random.default_rng(0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def samples() -> Iterator[Tensor]:
        for path in paths:
            image = Image.open(path).convert("RGB")
            drawn = draw_augmentation(image.size, data, rng)
            if drawn.flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if drawn.first_size and drawn.crop:
                left, top, width, height = drawn.crop
                image = image.resize(drawn.first_size, Image.Resampling.BILINEAR)
                image = image.crop((left, top, left + width, top + height))
            image = image.resize(drawn.size, Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
            yield (pixels - mean) / std

    return per_second(samples)


def sample_transformers(folder: Path) -> Row:
    """What the transformers package's image processor does: resizing and normalising, no augmentation."""
    from transformers import ConditionalDetrImageProcessorPil

    processor = ConditionalDetrImageProcessorPil()
    paths = sorted((folder / "photos/train").iterdir())

    def samples() -> Iterator[Tensor]:
        for path in paths:
            yield processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]

    return per_second(samples)


TASKS: dict[str, Callable[[Path], Row]] = {
    "open ours": open_ours,
    "open pycocotools": open_pycocotools,
    "loading ours": loading_ours,
    "loading pycocotools": loading_pycocotools,
    "evaluate ours": evaluate_ours,
    "evaluate pycocotools": evaluate_pycocotools,
    "sample ours": sample_ours,
    "sample DETR's order": sample_detr,
    "sample transformers": sample_transformers,
}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](Path(sys.argv[2]))))
