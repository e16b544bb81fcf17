"""How far a run is, and how long it will take."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from cond_detr import distributed, progress

T = TypeVar("T")

# Share of an epoch
WORTH_SAYING = 0.1


class Pace:
    """Estimates the time that is left, from the steps since it was last asked and from the last evaluation.

    The first steps of a run take longer: memory is allocated, and code may be compiled.

    Args:
        steps: steps in an epoch.
        epochs: epochs of the run.

    Attributes:
        waiting: seconds for which steps of the present epoch have waited for images.
    """

    def __init__(self, steps: int, epochs: int) -> None:
        self.steps = steps
        self.epochs = epochs
        self.evaluation = 0.0
        self.waiting = 0.0
        self._began = self._epoch_began = 0.0
        self._said_so = False
        self._waits: list[tuple[float, torch.cuda.Event | None, torch.cuda.Event | None]] = []
        self._asked = (0, 0, 0.0)

    def begin_epoch(self) -> None:
        """Call before an epoch."""
        self.waiting, self._epoch_began = 0.0, time.perf_counter()
        self._waits.clear()

    def waited_for(self, items: Iterable[T], device: torch.device) -> Iterator[T]:
        """Yields items, and notes for how long the device has nothing to do until each is there, but for the first.

        A GPU is still busy with what the host has asked of it before. Then what counts is the time between the last
        that it did for one item and the first for the next, as far as the host was waiting.
        """
        iterator, first = iter(items), True
        while True:
            ended, began = _mark(device), time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            if not first:
                self._waits.append((time.perf_counter() - began, ended, _mark(device)))
            first = False
            yield item

    def count_waiting(self) -> None:
        """Adds up in ``waiting`` what was noted. Call after a host-device synchronisation."""
        for seconds, ended, begun in self._waits:
            idle = ended.elapsed_time(begun) / 1000 if ended and begun else seconds
            self.waiting += min(seconds, idle)
        self._waits.clear()

    def report_waiting(self, workers: int) -> None:
        """Says once in a run if the training waits for images for a good part of an epoch."""
        share = self.waiting / max(time.perf_counter() - self._epoch_began, 1e-9)
        if share < WORTH_SAYING or self._said_so or distributed.rank():
            return
        self._said_so = True
        with_them = f"with {workers} loading processes (--workers)"
        tqdm.write(f"waiting     for images {share:.0%} of the time, {with_them}", file=sys.stdout)

    def begin_evaluation(self) -> None:
        """Call before an evaluation."""
        self._began = time.perf_counter()

    def end_evaluation(self) -> None:
        """Call after it."""
        self.evaluation = time.perf_counter() - self._began

    def left(self, epoch: int, step: int, seconds: float) -> str:
        """The time that is left, such as "6 min".

        Args:
            epoch: finished epochs.
            step: finished steps of the present one, at least 1.
            seconds: time spent on them.
        """
        last_epoch, last_step, last_seconds = self._asked
        if last_epoch != epoch or last_step >= step:
            last_step, last_seconds = 0, 0.0
        self._asked = (epoch, step, seconds)
        steps = (self.epochs - epoch) * self.steps - step
        each = (seconds - last_seconds) / (step - last_step)
        return duration(steps * each + (self.epochs - epoch) * self.evaluation)


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """A moment in the work of a GPU; None on the CPU, which does what it is asked at once."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def duration(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def progress_bar(epoch: int, epochs: int, step: int, steps: int) -> Any:
    """A progress bar of an epoch that fits 80 columns; on a terminal, and of the first process only."""
    return progress.bar(
        total=steps,
        initial=step,
        desc=f"epoch {epoch + 1}/{epochs}",
        unit=" steps",
        leave=False,
        shown=distributed.rank() == 0,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_fmt}{postfix}",
    )
