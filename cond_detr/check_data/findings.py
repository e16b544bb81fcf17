"""Statistics of a data set, problems in it, and contact sheets of its images with their boxes."""

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cond_detr import progress
from cond_detr.data.annotations import Annotations, ImageRecord
from cond_detr.data.formats import find_split
from cond_detr.data.formats.split import files_below
from cond_detr.data.images import IMAGE_SUFFIXES, InputSize
from cond_detr.data.layouts import FolderLoader, with_loader
from cond_detr.errors import InputError, shown
from cond_detr.models.resnet import LAYOUTS
from cond_detr.predict.detections import ground_truth
from cond_detr.predict.drawing import draw_detections, sheet
from cond_detr.presets import PRESETS

# In pixels: narrower boxes are easily lost in the network's stride
SMALL = 8
# Of the preset for people's own images, which has the fewest queries and the smallest images
OWN = PRESETS["small"]
FEWEST_QUERIES = OWN.model.num_queries
SIZE = InputSize(OWN.data.image_size, OWN.data.max_size, LAYOUTS[OWN.model.backbone].stride(OWN.model.dilation))


@dataclass
class Findings:
    """A checked split.

    Attributes:
        split: "train" or "val".
        annotations: the annotations that can be used.
        folder: the image folder.
        load: loads its images by the data set's convention.
        problems: a message for each problem.
        digests: of the content of each image file that can be read, by name.
    """

    split: str
    annotations: Annotations
    folder: Path
    load: FolderLoader
    problems: list[str] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)


def check_split(dataset_dir: Path, split: str) -> Findings:
    """Checks the annotations and every image of a split.

    Args:
        dataset_dir: folder of the data set.
        split: "train" or "val".

    Raises:
        InputError: if there are no annotations that can be used.
    """
    there = find_split(dataset_dir, split, OWN.data.val_fraction)
    problems: list[str] = []
    annotations, load = with_loader(there.annotations(problems.append), there.folder, "auto")
    found = Findings(split, annotations, there.folder, load, problems)
    records = annotations.records
    for record in progress.bar(records, f"check {split}", unit="image", leave=False):
        try:
            load(record.file_name, record.size)
            found.digests[record.file_name] = sha256(load.bytes_of(record.file_name)).digest()
            SIZE.check(record.size, f"for preset small, image {record.file_name}")
        except InputError as error:
            found.problems.append(str(error))
    found.problems += [f"{count} boxes are {why}" for why, count in found.annotations.dropped.items()]
    found.problems += [*found.annotations.notes, *odd_boxes(found.annotations)]
    if not len(annotations.objects):
        found.problems.append("no image has an object")
    most = annotations.counts.max()
    if most > FEWEST_QUERIES:
        found.problems.append(
            f"an image has {most} objects, and preset small has {FEWEST_QUERIES} object queries: train with "
            f"--num-queries {most} or more"
        )
    found.problems += [*boxes_of_two_classes(annotations), *copies(found.digests)]
    twice = [name for name, count in Counter(record.file_name for record in records).items() if count > 1]
    found.problems += [f"image {name} is listed more than once" for name in twice]
    unlisted = images_without_annotations(found) if there.alone else 0
    if unlisted:
        found.problems.append(f"{unlisted} images in {there.folder} are not in the annotations, and will not be used")
    return found


def images_without_annotations(found: Findings) -> int:
    """The number of images in a split's folder that its annotations do not list."""
    names = found.annotations.images.names
    if found.load.shards:
        return found.load.shards.without({Path(name).as_posix() for name in names})
    listed = set()
    for name in names:
        with contextlib.suppress(InputError):  # of a name that leads elsewhere, loading it has said so
            listed.add(found.load.path_of(name))
    return sum(path not in listed for path in files_below(found.folder, IMAGE_SUFFIXES))


def boxes_of_two_classes(annotations: Annotations) -> list[str]:
    """A message if boxes of different classes lie on each other: the second label would be unlearnable."""
    count, example = 0, ""
    for record in annotations.records:
        classes_at: dict[tuple[float, ...], set[int]] = defaultdict(set)
        for box, label in zip(record.boxes.round().tolist(), record.labels.tolist(), strict=True):
            classes_at[tuple(box)].add(label)
        several = [sorted(labels) for labels in classes_at.values() if len(labels) > 1]
        if several and not example:
            names = (shown(annotations.classes.names[label]) for label in several[0])
            example = f"{' and '.join(names)} in {record.file_name}"
        count += len(several)
    return [f"{count} boxes have more than one class, such as {example}"] * bool(count)


def copies(digests: Mapping[str, bytes]) -> list[str]:
    """A message if images of a split have the same content."""
    names: dict[bytes, list[str]] = defaultdict(list)
    for name, digest in digests.items():
        names[digest].append(name)
    several = [same for same in names.values() if len(same) > 1]
    if not several:
        return []
    return [f"{len(several)} images are there more than once, such as {' and '.join(several[0][:2])}"]


def odd_boxes(annotations: Annotations) -> list[str]:
    """Messages about boxes that are used, but are suspicious: clipped by the image, or very thin."""
    objects = annotations.objects
    first, extent, size = objects.boxes[:, :2], objects.boxes[:, 2:], annotations.images.sizes[objects.images]
    out = int(((first < -1) | (first + extent > size + 1)).any(1).sum())
    thin = int((extent.min(1) < 1).sum()) if len(objects) else 0
    problems = [f"{out} boxes reach more than a pixel out of their image, and are clipped"] * bool(out)
    return problems + [f"{thin} boxes are narrower than a pixel"] * bool(thin)


def compare(splits: Sequence[Findings]) -> list[str]:
    """Messages about train and val: different classes, classes without objects in train, images that are in both."""
    problems = []
    in_train = {digest: name for name, digest in splits[0].digests.items()}
    both = [(in_train[digest], name) for name, digest in splits[1].digests.items() if digest in in_train]
    if both:
        problems.append(
            f"{len(both)} images are in train and in val, such as {both[0][0]} and {both[0][1]}: validation measures "
            "what was learnt by heart"
        )
    train, val = (found.annotations for found in splits)
    for name in sorted(set(train.classes.names) ^ set(val.classes.names)):
        problems.append(f"class {shown(name)} is only in {'train' if name in train.classes.names else 'val'}")
    counts = objects_of(train)
    problems += [
        f"class {shown(name)} has objects in val and none in train"
        for name, count in objects_of(val).items()
        if count and not counts.get(name)
    ]
    return problems


def objects_of(annotations: Annotations) -> dict[str, int]:
    """Number of boxes of each class, by name."""
    labels = annotations.objects.labels[~annotations.objects.crowds]
    counts = np.bincount(labels, minlength=len(annotations.classes)).tolist()
    return dict(zip(annotations.classes.names, counts, strict=True))


def table(splits: Sequence[Findings]) -> str:
    """Formats the statistics of the splits as a text table."""
    rows: dict[str, list[object]] = {"": [found.split for found in splits]}
    annotations = [found.annotations for found in splits]
    rows["images"] = [len(a.records) for a in annotations]
    rows["  without objects"] = [int((a.counts == 0).sum()) for a in annotations]
    rows["  most common size"] = [most_common_size(a) for a in annotations]
    rows["boxes"] = [sum(objects_of(a).values()) for a in annotations]
    rows["  most in an image"] = [a.counts.max() for a in annotations]
    rows[f"  narrower than {SMALL} pixels"] = [sum(map(small_boxes, a.records)) for a in annotations]
    rows["  crowds"] = [int(a.objects.crowds.sum()) for a in annotations]
    for name in dict.fromkeys(name for a in annotations for name in a.classes.names):
        rows[f"  {name}"] = [objects_of(a).get(name, "-") for a in annotations]
    width = max(map(len, rows))
    columns = [max(len(str(row[i])) for row in rows.values()) for i in range(len(splits))]
    return "\n".join(
        f"{name:{width}}  " + "  ".join(f"{value!s:>{column}}" for value, column in zip(row, columns, strict=True))
        for name, row in rows.items()
    )


def most_common_size(annotations: Annotations) -> str:
    """The most common image size, as "widthxheight" in pixels."""
    ((width, height), _), *_ = Counter(map(tuple, annotations.images.sizes.tolist())).most_common(1)
    return f"{width}x{height}"


def small_boxes(record: ImageRecord) -> int:
    """Number of boxes with a side of less than :data:`SMALL` pixels."""
    return int(((record.boxes[:, 2:] - record.boxes[:, :2]).min(1) < SMALL).sum()) if len(record.boxes) else 0


def contact_sheet(found: Findings, count: int) -> Image.Image:
    """Draws random images of a split, always the same ones, with their boxes and class names; crowds in white.

    Args:
        found: the split.
        count: number of images.
    """
    annotations = found.annotations
    records = annotations.records
    pictures, captions = [], []
    for number in sorted(random.Random(0).sample(range(len(records)), min(count, len(records)))):
        record = records[number]
        try:
            image = found.load(record.file_name, record.size)
        except InputError:
            continue
        objects = ground_truth(record, annotations.classes)
        pictures.append(draw_detections(image, objects, crowds_in(annotations, number), scores=False))
        captions.append(record.file_name)
    return sheet(pictures, captions)


@dataclass(frozen=True)
class Crowds:
    """The crowds of an image, which training leaves out and evaluation forgives.

    Attributes:
        boxes: (n, 4) xyxy in pixels.
        names: what is written at them.
    """

    boxes: Tensor
    names: list[str]


def crowds_in(annotations: Annotations, number: int) -> Crowds:
    """Collects the crowds of an image, of a number in the order of the ids."""
    objects = annotations.objects
    found = objects[(objects.images == number) & objects.crowds]
    boxes = torch.tensor(found.boxes, dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    return Crowds(boxes, [f"crowd: {annotations.classes.names[label]}" for label in found.labels])
