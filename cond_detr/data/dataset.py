"""Samples of a data set for training and evaluation."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cond_detr.boxes import xyxy_to_cxcywh
from cond_detr.config import DataConfig
from cond_detr.data.annotations import Annotations, ImageRecord
from cond_detr.data.augment import Annotated, Augmentation, augment, draw_augmentation, finish, scale
from cond_detr.data.batching import Sample
from cond_detr.data.images import ImageLoader, InputSize, Size, pixels_of
from cond_detr.data.mosaic import IMAGES, mosaic
from cond_detr.errors import InputError


class CocoDataset(Dataset[Sample | InputError]):
    """Samples of a data set: augmented for training, resized for evaluation.

    An item is the error that occurred instead of a sample if its image cannot be used.

    Args:
        annotations: checked annotations.
        load: loads an image by file name.
        data: image sizes and augmentation.
        stride: stride of the network, in pixels; images that are narrower for it are refused.
        train: whether to augment; the randomness depends on (seed, epoch, index) only.
        seed: seed of the augmentation.
    """

    def __init__(
        self, annotations: Annotations, load: ImageLoader, data: DataConfig, stride: int, *, train: bool, seed: int = 0
    ) -> None:
        self.annotations = annotations
        self.load = load
        self.data = data
        self.input_size = InputSize(data.image_size, data.max_size, stride)
        self.train = train
        self.seed = seed
        # shared memory: worker processes that outlive an epoch see the next one's number
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0, that the augmentation depends on, in all worker processes as well."""
        self._epoch.fill_(epoch)

    def training_sizes(self) -> list[Size]:
        """The (width, height) in pixels of each image after this epoch's augmentation."""
        sizes = self.annotations.images.sizes.tolist()
        return [self._augmentation(i, (width, height)).size for i, (width, height) in enumerate(sizes)]

    def _augmentation(self, index: int, size: Size) -> Augmentation:
        return draw_augmentation(size, self.data, np.random.default_rng((self.seed, int(self._epoch), index)))

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, index: int) -> Sample | InputError:
        record = self.annotations.records[index]
        try:
            sample = self._training_sample(index) if self.train else self._open(index, None)
        except InputError as error:
            return error
        if not self.train:
            sample = scale(sample, self.input_size.of(record.size))
        return Sample(
            sample.pixels,
            torch.from_numpy(sample.labels),
            _relative(torch.from_numpy(sample.boxes), sample.size),
            record.image_id,
            record.size,
        )

    def _open(self, index: int, wanted: Size | None) -> Annotated:
        """Opens an image: for training at about a size or larger, for evaluation as a whole.

        Evaluation decodes images as a whole so that its numbers are those of other programs.

        Raises:
            InputError: if it cannot be used.
        """
        record = self.annotations.records[index]
        image = self.load(record.file_name, record.size, wanted)
        self.input_size.check(record.size, f"image {record.file_name}")
        return decoded(pixels_of(image), record)

    def _training_sample(self, index: int) -> Annotated:
        """The augmented image, or a mosaic of it and others.

        Raises:
            InputError: if an image cannot be used.
        """
        drawn = self._augmentation(index, self.annotations.records[index].size)
        # a stream of its own, so that the other choices are the same with and without mosaics
        seed = self.seed, int(self._epoch), index, 1
        rng = np.random.default_rng(seed)
        if rng.random() >= self.data.mosaic:
            return augment(self._open(index, drawn.first), drawn)
        chosen = [index, *rng.integers(0, len(self), IMAGES - 1).tolist()]
        sizes = [self.annotations.records[each].size for each in chosen]
        mirrored = self.data.augment != "none"
        open_part = lambda i, wanted: self._open(chosen[i], wanted)  # noqa: E731 - of two arguments
        return finish(mosaic(drawn.size, sizes, open_part, (*seed, 2), mirrored=mirrored), drawn)


def decoded(pixels: Tensor, record: ImageRecord) -> Annotated:
    """An image that may have been decoded at a fraction of its size, with its boxes at the same scale."""
    sample = Annotated(pixels, record.boxes, record.labels)
    ratio = [own / annotated for own, annotated in zip(sample.size, record.size, strict=True)]
    return sample if ratio == [1, 1] else replace(sample, boxes=sample.boxes * np.array(ratio * 2, np.float32))


def _relative(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return xyxy_to_cxcywh(boxes) / torch.tensor([*size, *size], dtype=torch.float32)
