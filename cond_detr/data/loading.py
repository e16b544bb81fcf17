"""Batch sampling over processes, and the data loaders."""

import os
from collections.abc import Iterator
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from cond_detr.config import DataConfig
from cond_detr.data.batching import Batch, collate
from cond_detr.data.dataset import CocoDataset
from cond_detr.errors import InputError

# Steps whose images are sorted by size together. More would pad less, and make batches less random
STEPS_SORTED_TOGETHER = 32
# Seconds without a batch after which worker processes are given up
PATIENCE = 30
# Worker processes by default
MOST_FOR_GPU, MOST_FOR_CPU = 16, 4
# Pixels that do not count in sorting. Of batches of 4 with sizes like COCO's, 8 % are then padding, 35 % unsorted
ABOUT = 128


class ShuffledBatches(Sampler[list[int]]):
    """Samples the batches of a shuffled epoch for one process; the incomplete last step is left out.

    The order depends on (seed, epoch), and with ``by_size`` on the image sizes. A step takes
    ``batch_size * accumulate * world_size`` consecutive images, so that it has the same images whether they are spread
    over processes or accumulated by a single one.

    Args:
        dataset: the training set.
        batch_size: images per process and backward pass.
        accumulate: backward passes per step.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes.
        by_size: whether to batch images of similar size.

    Raises:
        InputError: if the training set has fewer images than a step.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int,
        world_size: int,
        *,
        by_size: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.by_size = by_size
        self.epoch = 0
        self.first_step = 0
        self.images_per_step = batch_size * accumulate * world_size
        self.steps = len(dataset) // self.images_per_step
        if self.steps == 0:
            raise InputError(
                f"the training set has {len(dataset)} images, fewer than the {self.images_per_step} of one step; "
                "lower `batch_size`"
            )

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Sets the epoch of the next iteration, and the step of the epoch at which it starts, both counted from 0."""
        self.epoch = epoch
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.dataset))[: self.steps * self.images_per_step]
        if self.by_size:
            order = self._sorted_in_parts(order, rng)
        for step in range(self.first_step, self.steps):
            for i in range(self.accumulate):
                begin = step * self.images_per_step + (i * self.world_size + self.rank) * self.batch_size
                yield order[begin : begin + self.batch_size].tolist()

    def _sorted_in_parts(self, order: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Reorders the images so that those of a step have similar sizes; the steps stay in random order."""
        width, height = np.array(self.dataset.training_sizes()).T
        parts = []
        for begin in range(0, len(order), STEPS_SORTED_TOGETHER * self.images_per_step):
            part = order[begin : begin + STEPS_SORTED_TOGETHER * self.images_per_step]
            # tall images apart from wide ones, each by their longer side, where that is alike by the other
            wide = width[part] >= height[part]
            longer, shorter = np.maximum(width, height)[part], np.minimum(width, height)[part]
            steps = part[np.lexsort((shorter, longer // ABOUT, wide))].reshape(-1, self.images_per_step)
            parts.append(rng.permutation(steps).reshape(-1))
        return np.concatenate(parts)

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate


def train_loader(
    dataset: CocoDataset,
    batches: ShuffledBatches,
    workers: int,
    pin: bool,
    multiple: int = 1,
    timeout: int | None = None,
) -> DataLoader[Batch]:
    """Makes the loader of the training set; its worker processes live as long as it does.

    Args:
        dataset: the training set.
        batches: sampler of the batches.
        workers: number of worker processes.
        pin: whether to load into pinned memory.
        multiple: height and width of the batches are multiples of it.
        timeout: seconds of silence after which a worker process is lost; by default :data:`PATIENCE`.
    """
    return _loader(dataset, batches, workers, pin, multiple, timeout, persistent=True)


def eval_loader(
    dataset: CocoDataset,
    batch_size: int,
    workers: int,
    pin: bool,
    rank: int,
    world_size: int,
    timeout: int | None = None,
) -> DataLoader[Batch]:
    """Makes the loader of this process's share of a data set; over all processes each image is loaded once.

    Args:
        dataset: the data set, opened for evaluation.
        batch_size: images per batch.
        workers: number of worker processes.
        pin: whether to load into pinned memory.
        rank: rank of this process.
        world_size: number of processes.
        timeout: seconds of silence after which a worker process is lost; by default :data:`PATIENCE`.
    """
    mine = range(rank, len(dataset), world_size)
    batches = [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
    return _loader(dataset, batches, workers, pin, 1, timeout, persistent=False)


def _loader(
    dataset: CocoDataset,
    batches: ShuffledBatches | list[list[int]],
    workers: int,
    pin: bool,
    multiple: int,
    timeout: int | None,
    *,
    persistent: bool,
) -> DataLoader[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate, multiple=multiple),
        pin_memory=pin,
        worker_init_fn=_leave_process_group,
        persistent_workers=persistent and workers > 0,
        timeout=(timeout or PATIENCE) if workers else 0,
        # they share the arrays of the annotations, which other ways of starting processes would copy
        multiprocessing_context="fork" if workers else None,
    )
    return cast("DataLoader[Batch]", loader)


def _leave_process_group(_: int) -> None:
    """Keeps signals to the process group from a worker: the training loop handles them, and stops its workers."""
    os.setpgid(0, 0)


def checked(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yields the batches of a loader.

    Raises:
        InputError: if one of the images could not be used, or a worker process is gone or silent.
    """
    try:
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        gone = "killed" in str(error) or "exited" in str(error)
        lost = "is gone" if gone else f"gave nothing for {loader.timeout:g} seconds"
        raise InputError(
            f"a process that loads images {lost}: memory may be short, or shared memory, which containers limit "
            "(--shm-size); try fewer `workers`"
        ) from None


def loading_processes(data: DataConfig, wanted: int | None, device: torch.device) -> int:
    """Number of worker processes of a process that computes: ``wanted``, or by default what its share of cores allows.

    A GPU takes more images than a core prepares, so all cores but one work for it. On the CPU the step needs the cores
    itself and takes few images a second: a quarter of the cores is plenty, and with fewer than 4 cores workers would
    slow it down. There are none for the built-in shapes, which are in memory.
    """
    if wanted is not None:
        return wanted
    if data.dataset_dir is None:
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(MOST_FOR_GPU, max(1, cores - 1)) if device.type == "cuda" else min(MOST_FOR_CPU, cores // 4)


def groups_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches in lists of ``size``; what is left over at the end is left out."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
