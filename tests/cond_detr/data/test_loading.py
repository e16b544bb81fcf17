"""Which images make a batch: complete, random, the same on any number of processes, and of like size if wanted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cond_detr import InputError, preset
from cond_detr.data import open_split
from cond_detr.data.loading import ShuffledBatches, train_loader


class Sizes:
    """As much of a data set as batches ask for."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.sizes = [(int(w), int(h)) for w, h in rng.integers(300, 1000, (count, 2))]

    def __len__(self) -> int:
        return len(self.sizes)

    def training_sizes(self) -> list[tuple[int, int]]:
        return self.sizes


def batches(count: int = 403, rank: int = 0, world: int = 1, accumulate: int = 1, **options: bool) -> ShuffledBatches:
    return ShuffledBatches(Sizes(count), 4, accumulate, 7, rank, world, **options)  # type: ignore[arg-type]


def waste(sizes: list[tuple[int, int]], groups: list[list[int]]) -> float:
    """Padding as a fraction of all pixels."""
    area = padded = 0
    for group in groups:
        members = np.array([sizes[i] for i in group])
        padded += len(group) * int(members.max(0).prod())
        area += int(members.prod(1).sum())
    return 1 - area / padded


@pytest.mark.parametrize("by_size", [False, True])
def test_an_epoch_has_every_image_once(by_size: bool) -> None:
    sampler = batches(by_size=by_size)
    first = list(sampler)
    images = [i for batch in first for i in batch]
    assert len(images) == len(set(images)) == 400
    assert first == list(sampler)
    sampler.start(1)
    assert first != list(sampler)


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_each_step(accumulate: int, by_size: bool) -> None:
    alone = list(batches(accumulate=2 * accumulate, by_size=by_size))
    ranks = [list(batches(rank=r, world=2, accumulate=accumulate, by_size=by_size)) for r in (0, 1)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert together == alone


def test_an_interrupted_epoch_goes_on_where_it_was() -> None:
    sampler = batches(by_size=True)
    whole = list(sampler)
    sampler.start(0, first_step=30)
    assert list(sampler) == whole[30:]
    assert len(sampler) == 70


def test_batches_by_size_pad_less() -> None:
    sizes = Sizes(403).sizes
    mixed, grouped = list(batches()), list(batches(by_size=True))
    assert waste(sizes, mixed) > 0.35
    assert waste(sizes, grouped) < 0.2


def test_steps_of_like_size_do_not_follow_each_other() -> None:
    sizes = np.array(Sizes(4000).sizes)
    areas = np.array([sizes[batch].prod(1).mean() for batch in batches(4000, by_size=True)])
    assert abs(np.corrcoef(areas[1:], areas[:-1])[0, 1]) < 0.15


def test_padded_to_a_multiple(dataset_dir: Path) -> None:
    data = replace(preset("small").data, dataset_dir=str(dataset_dir), image_size=96, size_step=32, augment="paper")
    dataset = open_split(data, "train", 16)
    sampler = ShuffledBatches(dataset, 3, 1, 0, 0, 1, by_size=True)
    shapes = set()
    for batch in train_loader(dataset, sampler, 0, False, 32):
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape[2] % 32 == batch.pixels.shape[3] % 32 == 0
        shapes.add(batch.pixels.shape[2:])
        if batch.padding is not None:
            assert (batch.inputs()[0].permute(0, 2, 3, 1)[batch.padding] == 0).all()
    assert len(shapes) <= 9


def test_fewer_images_than_a_step() -> None:
    with pytest.raises(InputError, match="3 images, fewer than the 4 of one step"):
        batches(3)
