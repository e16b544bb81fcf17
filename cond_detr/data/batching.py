"""Padding single images and their targets to batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.data.images import normalise
from cond_detr.errors import InputError


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the same number T of targets in each image.

    Attributes:
        labels: (B, T) int64 indices of the classes.
        boxes: (B, T, 4) fp32 cxcywh in fractions of the image size without padding.
        counts: (B,) int64 number of targets of each image, the first of the T.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Sample:
    """One image ready for the network.

    Attributes:
        pixels: (3, H, W) uint8 RGB.
        labels: (n,) int64 indices of the classes.
        boxes: (n, 4) fp32 cxcywh in fractions of the image size.
        image_id: id of the image in the data set.
        size: original (width, height) in pixels.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor
    image_id: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Images padded at the right and at the bottom to a common size.

    They travel as bytes, a quarter of the network's floating point numbers, to the device that normalises them.

    Attributes:
        pixels: (B, 3, H, W) uint8 RGB, zero where padded.
        padding: (B, H, W) bool, True where padded; None if nothing is padded.
        targets: ground truth.
        image_ids: ids of the images in the data set.
        sizes: original (width, height) of each image in pixels.
    """

    pixels: Tensor
    padding: Tensor | None
    targets: Targets
    image_ids: tuple[int, ...]
    sizes: list[tuple[int, int]]

    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """The network's inputs: normalised images, (B, 3, H, W) fp32 and zero where padded, and the padding."""
        images = normalise(self.pixels)
        if self.padding is not None:
            images.masked_fill_(self.padding[:, None], 0)
        return images, self.padding

    def to(self, device: torch.device) -> "Batch":
        """Copies the batch to a device, asynchronously if its memory is pinned."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copies the batch to pinned memory; the data loader calls this."""
        return self.map(Tensor.pin_memory)

    def clone(self) -> "Batch":
        """Copies all tensors."""
        return self.map(Tensor.clone)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Applies a function to every tensor of the batch."""
        padding = None if self.padding is None else function(self.padding)
        return replace(
            self, pixels=function(self.pixels), padding=padding, targets=Targets(*map(function, self.targets))
        )

    def tensors(self) -> list[Tensor]:
        """All tensors: pixels, padding unless it is None, and targets."""
        return [self.pixels, *([] if self.padding is None else [self.padding]), *self.targets]


def pad_images(images: list[Tensor], multiple: int = 1) -> tuple[Tensor, Tensor | None]:
    """Stacks images of different sizes, padded at the right and at the bottom.

    Args:
        images: (3, H, W) tensors.
        multiple: height and width of the result are multiples of it.

    Returns:
        Pixels and padding of a :class:`Batch`.
    """
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
    """Pads the targets of each image to 16, 64, 256 ... targets, so that few different shapes occur.

    Args:
        labels: (n,) int64 for each image.
        boxes: (n, 4) fp32 for each image.
    """
    counts = torch.tensor([len(label) for label in labels])
    slots = 16
    while slots < counts.max():
        slots *= 4
    padded = Targets(torch.zeros(len(labels), slots, dtype=torch.int64), torch.zeros(len(labels), slots, 4), counts)
    for i, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        padded.labels[i, : len(label)] = label
        padded.boxes[i, : len(label)] = box
    return padded


def collate(samples: list[Sample | InputError], multiple: int = 1) -> Batch | InputError:
    """Makes a batch of samples; if one of them is an error, returns it instead.

    Errors are passed on as values: raised in a worker process, they would arrive with that worker's traceback.

    Args:
        samples: samples, or the errors that occurred instead.
        multiple: height and width of the batch are multiples of it.
    """
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    pixels, padding = pad_images([s.pixels for s in good], multiple)
    targets = pad_targets([s.labels for s in good], [s.boxes for s in good])
    return Batch(pixels, padding, targets, tuple(s.image_id for s in good), [s.size for s in good])
