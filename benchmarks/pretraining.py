"""A backbone that has learnt to classify, for the convergence benchmark.

The paper's detectors begin with a ResNet from ImageNet, so that what is compared is how fast the transformers learn to
find objects. Here the backbone of preset ``shapes`` learns the classes of single objects cut out of the built-in data,
at random scales and places as one does on ImageNet.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cond_detr import preset
from cond_detr.data import shapes
from cond_detr.data.images import normalise, pixels_of
from cond_detr.models.resnet import LAYOUTS, ResNet

CROP = 32
BATCH = 64
# Of the square that is cut out, in longer sides of the object; and how far its middle lies from the object's, likewise
SCALES = (0.9, 2.0)
SHIFT = 0.25
LR = 2e-3


class CutOuts:
    """The training split's objects, each in a random square around it."""

    def __init__(self, count: int | None = None) -> None:
        annotations, load = shapes.make_split("train", count)
        self.objects: list[tuple[Image.Image, tuple[float, float, float, float], int]] = [
            (load(record.file_name, record.size), box, int(label))
            for record in annotations.records
            for box, label in zip(record.boxes.tolist(), record.labels, strict=True)
        ]

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(BATCH, 3, CROP, CROP) images and (BATCH,) labels, all objects once but for a remainder, in random order."""
        order = rng.permutation(len(self.objects))
        for chosen in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
            objects = [self.objects[i] for i in chosen]
            images = [normalise(pixels_of(cut_out(image, box, rng))) for image, box, _ in objects]
            yield torch.stack(images), torch.tensor([label for _, _, label in objects])


def cut_out(image: Image.Image, box: tuple[float, float, float, float], rng: np.random.Generator) -> Image.Image:
    """A square of random size and place that holds the object, scaled to CROP pixels, half of the time mirrored."""
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    half = longer * rng.uniform(*SCALES) / 2
    x, y = (
        (left + right) / 2 + longer * rng.uniform(-SHIFT, SHIFT),
        (top + bottom) / 2 + longer * rng.uniform(-SHIFT, SHIFT),
    )
    across = (x - half, x + half) if rng.random() < 0.5 else (x + half, x - half)
    square = (across[0], y - half, across[1], y + half)
    return image.transform((CROP, CROP), Image.Transform.EXTENT, square, Image.Resampling.BILINEAR)


def pretrain(path: Path, epochs: int = 15, count: int | None = None) -> float:
    """Trains the backbone and writes its tensors as ``--weights`` reads them; its accuracy in the last epoch."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = CutOuts(count)
    model = preset("shapes").model
    backbone = ResNet(LAYOUTS[model.backbone], model.dilation)
    head = nn.Linear(backbone.channels, len(shapes.NAMES))
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=LR, weight_decay=1e-2)
    steps = len(data.objects) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps * epochs)
    correct = 0
    for _ in range(epochs):
        correct = 0
        for images, labels in data.batches(rng):
            scores = head(backbone(images).mean((2, 3)))
            optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
            optimizer.step()
            schedule.step()
            correct += int((scores.argmax(1) == labels).sum())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}, path)
    return correct / (steps * BATCH)
