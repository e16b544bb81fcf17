"""The training loop.

Everything random is a function of the seed and of where training stands: the order of the images of (seed, epoch), the
augmentation of an image of (seed, epoch, index), dropout of (seed, step, rank). So a run that was interrupted and
resumed computes what an undisturbed one does, with no generator states to carry along.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cond_detr import distributed
from cond_detr.checkpoints import Checkpoint
from cond_detr.config import Config
from cond_detr.criterion import Criterion
from cond_detr.cuda_graphs import CudaRecorder, GraphedStep, why_not
from cond_detr.data.batching import Batch
from cond_detr.data.coco import CocoDataset
from cond_detr.data.loading import ShuffledBatches, checked, train_loader
from cond_detr.data.prefetch import on_device
from cond_detr.drawing import draw_detections, sheet
from cond_detr.ema import WeightAverage
from cond_detr.errors import InputError
from cond_detr.evaluate import classes_in, measure, run_over
from cond_detr.evaluation import Evaluation
from cond_detr.events import Events
from cond_detr.models.detector import Detector
from cond_detr.optim import lr_factor, make_optimizer, restore, set_lr
from cond_detr.progress import LOSS_NAMES, Progress
from cond_detr.rehearsal import rehearse
from cond_detr.run_folder import RunFolder
from cond_detr.step import TrainStep

# Steps between looks at device values; each look makes the host wait
STEPS_PER_LOOK = 10
PREVIEW_IMAGES = 16
PREVIEW_THRESHOLD = 0.3


class Interrupted(Exception):  # noqa: N818 - not an error
    """SIGINT or SIGTERM came; the state is saved."""

    def __init__(self, signal_number: int, where: str) -> None:
        super().__init__(where)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Notes SIGINT and SIGTERM while active; a second one acts as usual. Only the main thread gets signals."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if main else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])


class Trainer:
    """Trains a model, writes its run folder, and can be stopped and continued anywhere.

    Args:
        model: on ``device``.
        config: the run's settings.
        train_set, val_set: opened data sets.
        folder: where the run's files go; the same on every process.
        device: where to run.
        workers: processes that load images.
        tensorboard: also write the curves for TensorBoard, to ``tensorboard/`` in the folder.
    """

    def __init__(
        self,
        model: Detector,
        config: Config,
        train_set: CocoDataset,
        val_set: CocoDataset,
        *,
        folder: RunFolder,
        device: torch.device,
        workers: int,
        tensorboard: bool = False,
    ) -> None:
        self.model = model
        self.config = config
        self.train_set = train_set
        self.val_set = val_set
        self.folder = folder
        self.device = device
        self.workers = workers
        self.tensorboard = tensorboard
        self.events: Events | None = None
        self.eval_classes = classes_in(val_set, model.classes)
        self.criterion = Criterion(config.loss)
        self.graphs = config.train.cuda_graphs and why_not(config, model, device) is None
        self.optimizer = make_optimizer(model, config.train, capturable=self.graphs)
        self.average = WeightAverage(model, config.train.ema) if config.train.ema else None
        self.batches = ShuffledBatches(
            train_set,
            config.train.batch_size,
            config.train.accumulate,
            config.train.seed,
            distributed.rank(),
            distributed.world_size(),
            by_size=config.data.size_step > 0,
        )
        self.progress = Progress(len(train_set), self.batches.images_per_step)
        self.resumed = False
        # Matching results that nobody has looked at yet, and whether a bad one has been reported
        self.unseen: list[tuple[tuple[int, ...], Tensor]] = []
        self.reported = False
        multiple = max(1, config.data.size_step)
        self.loader = train_loader(train_set, self.batches, workers, device.type == "cuda", multiple)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues where a checkpoint was written."""
        if checkpoint.progress is None or checkpoint.optimizer is None:
            raise InputError(f"--resume: {checkpoint.path} holds a model but no training state; use it with --weights")
        progress = checkpoint.progress
        for what, before, now in (
            ("classes", checkpoint.classes, self.model.classes),
            ("training images", progress.num_images, self.progress.num_images),
            ("images a step", progress.images_per_step, self.progress.images_per_step),
        ):
            if before != now:
                raise InputError(f"--resume: {checkpoint.path} was trained with other {what}: {before}, not {now}")
        if progress.step > self.batches.steps:
            raise InputError(
                f"--resume: {checkpoint.path} is at step {progress.step} of an epoch that has {self.batches.steps}"
            )
        if (checkpoint.average is None) == (self.average is not None):
            raise InputError(f"--resume: {checkpoint.path} must hold averaged weights if --ema is set, and only then")
        checkpoint.load_into(self.model)
        try:
            restore(self.optimizer, checkpoint.optimizer, progress.epoch * self.batches.steps + progress.step)
        except InputError as error:
            raise InputError(f"--resume: {checkpoint.path} cannot be used: {error}") from None
        if self.average and checkpoint.average:
            self.average.model.load_state_dict(checkpoint.average)
        self.progress = progress
        self.resumed = True

    def run(self) -> None:
        """Trains to the last epoch.

        Raises:
            Interrupted: a signal came; ``last.pt`` holds the state.
            InputError: an image cannot be read, the loss is not a number, or a batch does not fit into memory.
        """
        if self.tensorboard and distributed.rank() == 0:
            self.events = Events(self.folder.path / "tensorboard", self.progress.epoch + 1)
        self._write_log()
        if not self.resumed:  # a state that has not yet led to a step replaces none that has
            self._save_last()
        if self.device.type == "cuda":
            rehearse(self.model, self.criterion, self.config, self.train_set, self.device)
        step = self._make_step()
        with StopSignals() as stop:
            while self.progress.epoch < self.config.train.epochs:
                self._train_epoch(step, stop)
                self._finish_epoch(stop)

    def _make_step(self) -> TrainStep | GraphedStep:
        train = self.config.train
        network: nn.Module = torch.compile(self.model) if train.compile else self.model  # type: ignore[assignment]
        if distributed.world_size() > 1 and not self.graphs:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        step = TrainStep(self.model, network, self.criterion, self.optimizer, train)
        return GraphedStep(step, CudaRecorder(self.device)) if self.graphs else step

    def _train_epoch(self, step: TrainStep | GraphedStep, stop: StopSignals) -> None:
        progress, train = self.progress, self.config.train
        self.model.train()
        self.train_set.set_epoch(progress.epoch)
        self.batches.start(progress.epoch, progress.step)
        sums = torch.tensor(progress.loss_sums, dtype=torch.float64, device=self.device)
        self.unseen.clear()
        started = time.perf_counter() - progress.seconds
        bar = tqdm(
            total=self.batches.steps,
            initial=progress.step,
            desc=f"epoch {progress.epoch + 1}/{train.epochs}",
            unit="step",
            leave=False,
            disable=True if distributed.rank() else None,
        )
        for batches in _groups(on_device(checked(self.loader), self.device), train.accumulate):
            sums += self._step(step, batches)
            progress.step += 1
            progress.seconds = time.perf_counter() - started
            bar.update()
            looking = progress.step % STEPS_PER_LOOK == 0 or progress.step == self.batches.steps
            if looking:
                progress.loss_sums = self._look(sums, bar)
            if (looking or distributed.world_size() == 1) and distributed.any_rank(bool(stop.received), self.device):
                break
        bar.close()
        # the processes' mean, so that each of them can go on from it; the state is safe before the evaluation begins
        progress.loss_sums = self._finite(distributed.mean_over_ranks(sums).tolist())
        self._save_last()
        self._raise_if_stopped(stop)

    def _raise_if_stopped(self, stop: StopSignals) -> None:
        if distributed.any_rank(bool(stop.received), self.device):
            raise Interrupted(
                stop.received or signal.SIGTERM,
                f"stopped in epoch {self.progress.epoch + 1} after step {self.progress.step} of {self.batches.steps}; "
                f"continue with --resume {self.folder.last}",
            )

    def _step(self, step: TrainStep | GraphedStep, batches: list[Batch]) -> Tensor:
        """One optimiser step; returns this process's (4,) losses."""
        train = self.config.train
        number = self.progress.epoch * self.batches.steps + self.progress.step
        torch.manual_seed(int(np.random.SeedSequence((train.seed, number, distributed.rank())).generate_state(1)[0]))
        set_lr(self.optimizer, self._lr_factor(number))
        # Processes average their gradients, so each divides by its share of all boxes of the step
        counts = torch.stack([batch.targets.counts.sum() for batch in batches]).sum()
        num_boxes = distributed.sum_over_ranks(counts).clamp(min=1) / distributed.world_size()
        losses = torch.zeros(len(LOSS_NAMES), dtype=torch.float64, device=self.device)
        for batch in batches:
            outcome = step.backward(batch, num_boxes, last=batch is batches[-1])
            losses += outcome.losses
            if not self.reported:
                self.unseen.append((batch.image_ids, outcome.sanitised))
        step.update()
        if self.average:
            self.average.update(self.model, number)
        return losses

    def _lr_factor(self, step: int) -> float:
        return lr_factor(self.config.train, step, self.config.train.epochs * self.batches.steps)

    def _lr(self) -> float:
        """The transformer's learning rate in the last step that was done."""
        last = self.progress.epoch * self.batches.steps + self.progress.step - 1
        return self.config.train.lr * self._lr_factor(last)

    def _look(self, sums: Tensor, bar: Any) -> list[float]:
        """Reads the loss sums and shows them."""
        self._report_sanitised()
        values = self._finite(sums.tolist())
        mean = [value / self.progress.step for value in values]
        shown = zip(("loss", "class", "l1", "giou"), mean, strict=True)
        bar.set_postfix({k: f"{v:.3f}" for k, v in shown} | {"lr": f"{self._lr():.1e}"})
        return values

    def _report_sanitised(self) -> None:
        """Names, once, the images that could not be matched as they were."""
        ids = [i for image_ids, bad in self.unseen for i, is_bad in zip(image_ids, bad.tolist(), strict=True) if is_bad]
        self.unseen.clear()
        if ids:
            self.reported = True
            names = {record.image_id: record.file_name for record in self.train_set.annotations.records}
            files = ", ".join(names[i] for i in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
            tqdm.write(
                f"warning: predictions that are not finite were matched as if far from every object, for {files}; "
                "further ones are not reported",
                file=sys.stderr,
            )

    def _finite(self, losses: list[float]) -> list[float]:
        if not all(map(math.isfinite, losses)):
            raise InputError(
                f"the loss is {losses[0]} in epoch {self.progress.epoch + 1}, by step {self.progress.step}; "
                f"lower --lr or use --amp off. The last good state is {self.folder.last}"
            )
        return losses

    def _finish_epoch(self, stop: StopSignals) -> None:
        """Evaluates, records and saves."""
        progress, train = self.progress, self.config.train
        found = run_over(
            self.detector,
            self.val_set,
            self.eval_classes,
            batch_size=train.eval_batch_size,
            device=self.device,
            workers=self.workers,
            amp=train.amp,
        )
        result = measure(self.val_set, found)
        mean = [total / progress.step for total in progress.loss_sums]
        record = {
            "epoch": progress.epoch + 1,
            "seconds": round(progress.seconds, 2),
            "images_per_second": round(progress.step * self.batches.images_per_step / progress.seconds, 2),
            **dict(zip(LOSS_NAMES, mean, strict=True)),
            "lr": self._lr(),
            **result.metrics,
        }
        ap = result.metrics["AP"] or 0.0
        improved = ap > progress.best_ap
        self.progress = Progress(
            progress.num_images,
            progress.images_per_step,
            epoch=progress.epoch + 1,
            best_ap=max(ap, progress.best_ap),
            history=[*progress.history, record],
        )
        if distributed.rank() == 0:
            self._write_epoch(result, record, improved)
        if self.progress.epoch < train.epochs:
            self._raise_if_stopped(stop)

    def _write_epoch(self, result: Evaluation, record: dict[str, Any], improved: bool) -> None:
        if improved:
            Checkpoint(self.folder.best, self.config, self.model.classes, self.detector.state_dict()).save()
            self.folder.write_results(result, epoch=record["epoch"], images=len(self.val_set))
            self._preview().save(self.folder.predictions)
        self._save_last()
        self._write_log()
        if self.events:
            self.events.write(record)
        print(_line(record, self.config.train.epochs, improved), flush=True)

    @property
    def detector(self) -> Detector:
        """What is evaluated, in evaluation mode: the model, or the average of its weights."""
        return (self.average.model if self.average else self.model).eval()

    def _save_last(self) -> None:
        if distributed.rank() == 0:
            Checkpoint(
                self.folder.last,
                self.config,
                self.model.classes,
                self.model.state_dict(),
                average=self.average.model.state_dict() if self.average else None,
                progress=self.progress,
                optimizer=self.optimizer.state_dict(),
            ).save()

    def _write_log(self) -> None:
        if distributed.rank() == 0:
            self.folder.write_log(self.progress.history)

    def _preview(self) -> Image.Image:
        """Detections on held-out images, the ground truth in white."""
        pictures = []
        for record in self.val_set.annotations.records[:PREVIEW_IMAGES]:
            image = self.val_set.load(record.file_name, record.size)
            found = self.detector.predict([image], PREVIEW_THRESHOLD)[0]
            pictures.append(draw_detections(image, found, torch.from_numpy(record.boxes)))
        return sheet(pictures)


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def _line(record: dict[str, Any], epochs: int, improved: bool) -> str:
    def percent(name: str) -> str:
        return "  - " if record[name] is None else f"{record[name] * 100:4.1f}"

    return (
        f"epoch {record['epoch']:3}/{epochs}  loss {record['train_loss']:7.3f}  AP {percent('AP')}  "
        f"AP50 {percent('AP50')}  AP75 {percent('AP75')}  {record['images_per_second']:6.1f} images/s"
        f"{'  best' if improved else ''}"
    )
