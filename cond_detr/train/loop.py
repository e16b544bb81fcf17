"""The training loop: epochs and steps.

All randomness is a function of the seed and of the progress: the order of the images depends on (seed, epoch), the
augmentation of an image on (seed, epoch, index), dropout on (seed, step, rank). So a resumed run computes the same as
an uninterrupted one, without saved states of random generators.
"""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cond_detr import distributed
from cond_detr.config import RunConfig
from cond_detr.data.batching import Batch
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.loading import ShuffledBatches, checked, groups_of, loading_processes, train_loader
from cond_detr.data.prefetch import on_device
from cond_detr.errors import InputError
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import classes_in
from cond_detr.models.model import Model
from cond_detr.train.criterion import Criterion
from cond_detr.train.cuda_graphs import CudaRecorder, GraphedStep, why_not
from cond_detr.train.ema import WeightAverage
from cond_detr.train.freezing import train_unfrozen
from cond_detr.train.interruption import StopSignals
from cond_detr.train.memory import rehearse
from cond_detr.train.not_finite import Guard, not_finite
from cond_detr.train.optim import lr_factor, make_optimizer, restore, set_lr
from cond_detr.train.pace import Pace, progress_bar
from cond_detr.train.recorder import Recorder
from cond_detr.train.sanitised import Sanitised
from cond_detr.train.step import TrainStep
from cond_detr.train.training_queries import for_training, own_state, restore_queries
from cond_detr.train.validation import evaluate_epoch
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.progress import LOSS_NAMES, Progress, is_over

# Steps between host-device synchronisations, at which the losses are read
STEPS_PER_LOOK = 10


class Data(NamedTuple):
    """The data sets of a run.

    Attributes:
        train: training images, augmented.
        val: validation images.
    """

    train: CocoDataset
    val: CocoDataset


class Trainer:
    """Trains a model; can be stopped and resumed at any step.

    Args:
        model: the model, on the device to train on, with the settings of the run.
        data: the data sets.
        recorder: writes the files of the run.
        how: processes that load images, patience with them, and evaluator.

    Raises:
        InputError: if the classes of the validation set are not the model's, or the training set is smaller than a
            step.
    """

    def __init__(self, model: Model, data: Data, recorder: Recorder, how: RunConfig) -> None:
        train = model.config.train
        self.model = model
        self.config = model.config
        self.data = data
        self.recorder = recorder
        self.how = how
        self.device = model.device
        self.workers = loading_processes(model.config.data, how.workers, self.device)
        self.eval_classes = classes_in(data.val, model.classes)
        self.trained = for_training(model.network, train).to(model.device)
        self.criterion = Criterion(model.config.loss, train.query_groups, train.denoising)
        self.graphs = train.cuda_graphs and why_not(model.config, model.network, self.device) is None
        self.optimizer = make_optimizer(self.trained, train, capturable=self.graphs)
        self.average = WeightAverage(model, train.ema) if train.ema else None
        self.batches = ShuffledBatches(
            data.train,
            train.images_per_pass,
            train.accumulate,
            train.seed,
            distributed.rank(),
            distributed.world_size(),
            by_size=model.config.data.size_step > 0,
        )
        self.total_steps = train.epochs * self.batches.steps
        self.progress = Progress(len(data.train), self.batches.images_per_step)
        self.pace = Pace(self.batches.steps, train.epochs)
        self.looks = 0
        self.resumed = False
        self.sanitised = Sanitised(data.train.annotations)
        multiple = max(1, model.config.data.size_step)
        pin = self.device.type == "cuda"
        self.loader = train_loader(data.train, self.batches, self.workers, pin, multiple, how.timeout)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores the state of a checkpoint, to continue from there.

        Raises:
            InputError: if it has no training state, or that of a run with other data or settings.
        """
        path, progress = checkpoint.path, checkpoint.progress
        if progress is None or checkpoint.optimizer is None:
            raise InputError(f"`resume`: {path} holds a model but no training state; use it with `weights`")
        for what, before, now in (
            ("classes", checkpoint.classes, self.model.classes),
            ("training images", progress.num_images, self.progress.num_images),
            ("images a step", progress.images_per_step, self.progress.images_per_step),
        ):
            if before != now:
                raise InputError(
                    f"`resume`: {path} was trained with other {what}: {before}, not {now}; start a new run with "
                    f"`weights` {path}, which goes on from what it has learnt"
                )
        if progress.step > self.batches.steps:
            raise InputError(f"`resume`: {path} is at step {progress.step} of an epoch that has {self.batches.steps}")
        if (checkpoint.average is None) == (self.average is not None):
            raise InputError(f"`resume`: {path} must hold averaged weights if `ema` is set, and only then")
        checkpoint.load_into(self.model.network)
        restore_queries(self.trained, checkpoint)
        try:
            done = progress.epoch * self.batches.steps + progress.step
            restore(self.optimizer, checkpoint.optimizer, done, self.config.train.clip_norm)
        except InputError as error:
            raise InputError(f"`resume`: {path} cannot be used: {error}") from None
        if self.average and checkpoint.average:
            self.average.model.network.load_state_dict(checkpoint.average)
        self.progress = progress
        self.resumed = True

    def run(self) -> None:
        """Trains to the last epoch.

        Raises:
            Interrupted: on a signal, after the state has been saved in ``last.pt``.
            InputError: if an image cannot be read, the loss is not finite, or a batch does not fit into memory.
        """
        if not self.resumed:  # a state that has not yet led to a step replaces none that has
            self.recorder.save_last(self.state())
        if self.device.type == "cuda":
            rehearse(self.model, self.trained, self.criterion, self.data.train)
        step = make_step(self)
        with StopSignals() as stop:
            while not self._is_done():
                self._train_epoch(step, stop)
                self._finish_epoch()
                if not self._is_done():
                    stop.raise_if_stopped(self.device, self._where())

    def _is_done(self) -> bool:
        """Whether the last epoch is over, or ``patience`` is."""
        return is_over(self.progress.history, self.config.train.epochs, self.config.train.patience)

    def state(self) -> Checkpoint:
        """The current state as a checkpoint to resume from; the recorder sets its path."""
        return Checkpoint(
            Path(),
            self.config,
            self.model.classes,
            self.model.network.state_dict(),
            average=self.average.model.network.state_dict() if self.average else None,
            progress=self.progress,
            optimizer=self.optimizer.state_dict(),
            queries=own_state(self.trained),
        )

    def _train_epoch(self, step: TrainStep | GraphedStep, stop: StopSignals) -> None:
        progress = self.progress
        sums = torch.tensor(progress.loss_sums, dtype=torch.float64, device=self.device)
        self.sanitised.forget()
        started = time.perf_counter() - progress.seconds
        bar = progress_bar(progress.epoch, self.config.train.epochs, progress.step, self.batches.steps)
        self.pace.begin_epoch()
        guard = Guard(self.trained, active=self.device.type == "cpu" and distributed.world_size() == 1)
        for batches in self.groups():
            guard.before_step()
            sums += self.backward(step, batches)
            if guard.is_broken(sums):
                self._keep(sums)
            step.update()
            self.after_update()
            progress.seconds = time.perf_counter() - started
            bar.update()
            looking = progress.step % STEPS_PER_LOOK == 0 or progress.step == self.batches.steps
            if looking:
                self._look(sums, bar)
            if (looking or distributed.world_size() == 1) and stop.on_any_rank(self.device):
                break
        bar.close()
        # the processes' mean, so that each of them can go on from it; the state is safe before the evaluation begins
        progress.loss_sums = self._finite(distributed.mean_over_ranks(sums).tolist())
        self.pace.count_waiting()
        self.pace.report_waiting(self.workers)
        self.recorder.save_last(self.state())
        stop.raise_if_stopped(self.device, self._where())

    def groups(self) -> Iterator[list[Batch]]:
        """The batches of each step, from the present position to the end of the epoch, with the network prepared."""
        train_unfrozen(self.trained, self.model.network, self.config.train.freeze)
        self.data.train.set_epoch(self.progress.epoch)
        self.batches.start(self.progress.epoch, self.progress.step)
        loaded = self.pace.waited_for(on_device(checked(self.loader), self.device), self.device)
        return groups_of(loaded, self.config.train.accumulate)

    def backward(self, step: TrainStep | GraphedStep, batches: list[Batch]) -> Tensor:
        """A step up to its update; the (4,) losses of this process, summed over the batches."""
        number = self._number()
        seed = self.config.train.seed
        torch.manual_seed(int(np.random.SeedSequence((seed, number, distributed.rank())).generate_state(1)[0]))
        set_lr(self.optimizer, lr_factor(self.config.train, number, self.total_steps))
        # Processes average their gradients, so each divides by its share of all boxes of the step
        counts = torch.stack([batch.targets.counts.sum() for batch in batches]).sum()
        num_boxes = distributed.sum_over_ranks(counts).clamp(min=1) / distributed.world_size()
        losses = torch.zeros(len(LOSS_NAMES), dtype=torch.float64, device=self.device)
        for batch in batches:
            outcome = step.backward(batch, num_boxes, last=batch is batches[-1])
            losses += outcome.losses
            self.sanitised.add(batch.image_ids, outcome.sanitised)
        return losses

    def after_update(self) -> None:
        """What follows the update of a step."""
        if self.average:
            self.average.update(self.model.network, self._number())
        self.progress.step += 1

    def _number(self) -> int:
        """Number of the step at hand, counted from the beginning."""
        return self.progress.epoch * self.batches.steps + self.progress.step

    def _keep(self, sums: Tensor) -> None:
        """Saves the state before a step whose loss is not finite, and says so."""
        self.sanitised.report()
        self.optimizer.zero_grad(set_to_none=True)
        self.recorder.save_not_finite(self.state())
        raise not_finite(float(sums[0]), self.progress.epoch, self.progress.step + 1, self.recorder.folder)

    def lr(self) -> float:
        """Learning rate of the transformer in the last finished step."""
        return self.config.train.lr * lr_factor(self.config.train, self._number() - 1, self.total_steps)

    def _look(self, sums: Tensor, bar: Any) -> None:
        """Reads the loss sums, a host-device synchronisation, and shows loss and time left in the progress bar.

        The second time it says so in a line as well: a file has no bar.
        """
        progress = self.progress
        self.sanitised.report()
        progress.loss_sums = self._finite(sums.tolist())
        self.pace.count_waiting()
        left = self.pace.left(progress.epoch, progress.step, progress.seconds)
        bar.set_postfix_str(f"loss {progress.loss_sums[0] / progress.step:.3f}, {left} left")
        self.looks += 1
        if self.looks == 2 and distributed.rank() == 0:
            evaluation = "" if self.pace.evaluation else ", without evaluation"
            tqdm.write(f"time left   about {left}{evaluation}", file=sys.stdout)
            sys.stdout.flush()

    def _finite(self, losses: list[float]) -> list[float]:
        if distributed.any_rank(not all(map(math.isfinite, losses)), self.device):
            raise not_finite(losses[0], self.progress.epoch, self.progress.step, self.recorder.folder)
        return losses

    def _where(self) -> str:
        return (
            f"stopped in epoch {self.progress.epoch + 1} after step {self.progress.step} of {self.batches.steps}; "
            f"continue with cond-detr train --resume {self.recorder.folder.last}"
        )

    def _finish_epoch(self) -> None:
        """Evaluates the model and records the epoch."""
        evaluated = self.average.model if self.average else self.model
        evaluated.network.eval()
        self.pace.begin_evaluation()
        result, losses = evaluate_epoch(evaluated, self.data.val, self.eval_classes, self.how, self.workers)
        self.pace.end_evaluation()
        ap = result.metrics["AP"]
        # on a tie, or if nothing can be measured, the latest is the best
        improved = ap is None or ap >= self.progress.best_ap
        self.progress = Progress(
            self.progress.num_images,
            self.progress.images_per_step,
            epoch=self.progress.epoch + 1,
            best_ap=self.progress.best_ap if ap is None else max(ap, self.progress.best_ap),
            history=[*self.progress.history, record_of(self, result, losses)],
        )
        self.recorder.write_epoch(evaluated, result, self.state(), improved=improved)


def record_of(trainer: Trainer, result: Evaluation, val_losses: dict[str, float | None]) -> dict[str, Any]:
    """The record of an epoch for log.jsonl."""
    progress, pace = trainer.progress, trainer.pace
    mean = [total / progress.step for total in progress.loss_sums]
    return {
        "epoch": progress.epoch + 1,
        "seconds": round(progress.seconds, 2),
        "waiting_seconds": round(pace.waiting, 2),
        "evaluation_seconds": round(pace.evaluation, 2),
        "images_per_second": round(progress.step * progress.images_per_step / progress.seconds, 2),
        **dict(zip(LOSS_NAMES, mean, strict=True)),
        **val_losses,
        "lr": trainer.lr(),
        **result.metrics,
    }


def make_step(trainer: Trainer) -> TrainStep | GraphedStep:
    """Makes the step of a training: compiled, distributed and captured as its settings ask for."""
    train, device = trainer.config.train, trainer.device
    network = trainer.trained
    if train.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    if distributed.world_size() > 1 and not trainer.graphs:
        ids = [device.index] if device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=ids)
    step = TrainStep(trainer.trained, network, trainer.criterion, trainer.optimizer, train)
    return GraphedStep(step, CudaRecorder(device)) if trainer.graphs else step
