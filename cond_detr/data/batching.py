"""From single images to padded batches."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.errors import InputError


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the most targets that an image has.

    Attributes:
        labels: (B, T) int64 classes.
        boxes: (B, T, 4) fp32 cxcywh in fractions of the image size without padding.
        counts: (B,) int64 targets of each image.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class Sample:
    """One image ready for the network.

    Attributes:
        image: (3, H, W) fp32, normalised.
        labels: (n,) int64.
        boxes: (n, 4) fp32 cxcywh, relative.
        image_id: the data set's id of the image.
        size: original (width, height).
    """

    image: Tensor
    labels: Tensor
    boxes: Tensor
    image_id: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Images padded at the right and at the bottom to a common size.

    Attributes:
        images: (B, 3, H, W) fp32, zero where padded.
        padding: (B, H, W) bool, True where padded; None if all images have the same size.
        targets: ground truth.
        image_ids: ids in the data set.
        sizes: original (width, height) of each image.
    """

    images: Tensor
    padding: Tensor | None
    targets: Targets
    image_ids: tuple[int, ...]
    sizes: list[tuple[int, int]]

    def to(self, device: torch.device) -> "Batch":
        padding = None if self.padding is None else self.padding.to(device, non_blocking=True)
        images = self.images.to(device, non_blocking=True)
        return Batch(images, padding, self.targets.to(device), self.image_ids, self.sizes)

    def pin_memory(self) -> "Batch":
        """Called by the data loader."""
        padding = None if self.padding is None else self.padding.pin_memory()
        targets = Targets(*(tensor.pin_memory() for tensor in self.targets))
        return Batch(self.images.pin_memory(), padding, targets, self.image_ids, self.sizes)


def pad_images(images: list[Tensor], multiple: int = 1) -> tuple[Tensor, Tensor | None]:
    """Stacks (3, H, W) images of any sizes: images and padding of a :class:`Batch`, sides multiples of ``multiple``."""
    height = -(-max(image.shape[1] for image in images) // multiple) * multiple
    width = -(-max(image.shape[2] for image in images) // multiple) * multiple
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(images), None
    stacked = images[0].new_zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        _, h, w = image.shape
        stacked[i, :, :h, :w] = image
        padding[i, :h, :w] = False
    return stacked, padding


def pad_targets(labels: list[Tensor], boxes: list[Tensor]) -> Targets:
    """Pads (n,) labels and (n, 4) boxes of each image to the largest n, which is at least 1."""
    counts = torch.tensor([len(label) for label in labels])
    longest = max(1, int(counts.max()))
    padded = Targets(torch.zeros(len(labels), longest, dtype=torch.int64), torch.zeros(len(labels), longest, 4), counts)
    for i, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        padded.labels[i, : len(label)] = label
        padded.boxes[i, : len(label)] = box
    return padded


def collate(samples: list[Sample | InputError], multiple: int = 1) -> Batch | InputError:
    """Makes a batch of samples, its sides multiples of ``multiple``.

    An error travels as a value: raised in a worker process it would arrive wrapped in that worker's traceback.
    """
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    images, padding = pad_images([s.image for s in good], multiple)
    targets = pad_targets([s.labels for s in good], [s.boxes for s in good])
    return Batch(images, padding, targets, tuple(s.image_id for s in good), [s.size for s in good])
