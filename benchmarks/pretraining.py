"""A backbone that has learnt to classify, for the convergence benchmark.

The paper's detectors begin with a ResNet from ImageNet, so that what is compared is how fast the transformers learn to
find objects. Here the backbone of preset ``shapes`` learns the classes of single objects cut out of the built-in data.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cond_detr import preset
from cond_detr.data import shapes
from cond_detr.data.transforms import normalise
from cond_detr.models.resnet import LAYOUTS, ResNet

CROP = 32
BATCH = 64


def cut_outs(count: int | None = None) -> tuple[Tensor, Tensor]:
    """(N, 3, CROP, CROP) images of the training split's objects, each in the middle of a square, and (N,) labels."""
    annotations, load = shapes.make_split("train", count)
    images, labels = [], []
    for record in annotations.records:
        image = load(record.file_name, record.size)
        for (left, top, right, bottom), label in zip(record.boxes, record.labels, strict=True):
            half = 0.6 * max(right - left, bottom - top)
            x, y = (left + right) / 2, (top + bottom) / 2
            square = (x - half, y - half, x + half, y + half)
            cut = image.transform((CROP, CROP), Image.Transform.EXTENT, square, Image.Resampling.BILINEAR)
            images.append(normalise(cut))
            labels.append(int(label))
    return torch.stack(images), torch.tensor(labels)


def pretrain(path: Path, epochs: int = 15, count: int | None = None) -> float:
    """Trains the backbone and writes its tensors as ``--weights`` reads them; its accuracy in the last epoch."""
    torch.manual_seed(0)
    images, labels = cut_outs(count)
    model = preset("shapes").model
    backbone = ResNet(LAYOUTS[model.backbone], model.dilation)
    head = nn.Linear(backbone.channels, len(shapes.NAMES))
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-2)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps * epochs)
    correct = 0
    for _ in range(epochs):
        correct = 0
        for chosen in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            batch = images[chosen]
            if torch.rand(()) < 0.5:
                batch = batch.flip(-1)
            scores = head(backbone(batch).mean((2, 3)))
            loss = F.cross_entropy(scores, labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            correct += int((scores.argmax(1) == labels[chosen]).sum())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}, path)
    return correct / (steps * BATCH)
