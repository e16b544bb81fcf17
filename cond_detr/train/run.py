"""Setup of a training run, for the command and for Python."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cond_detr import distributed
from cond_detr.config import Config, RunConfig, configure
from cond_detr.data import open_split
from cond_detr.devices import device_named, use_threads
from cond_detr.errors import InputError, shown, tell
from cond_detr.models.model import Model
from cond_detr.models.normalization import SyncedBatchNorm2d
from cond_detr.models.resnet import LAYOUTS
from cond_detr.precision import fp32_products
from cond_detr.settings import change
from cond_detr.train.criterion import Criterion
from cond_detr.train.describe import describe, pretraining_warning
from cond_detr.train.host_memory import keep_freed_memory
from cond_detr.train.loggers import Logger, loggers_of
from cond_detr.train.loop import Data, Trainer
from cond_detr.train.memory import largest_batch_size
from cond_detr.train.preparing import prepared
from cond_detr.train.recorder import Recorder
from cond_detr.train.run_folder import RunFolder
from cond_detr.train.training_queries import for_training
from cond_detr.weights.buildable import check_buildable
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.transfer import load_weights


@dataclass(frozen=True)
class Running:
    """The settings of :class:`cond_detr.config.RunConfig`, with the device that they name.

    Attributes:
        device: device of this process.
        config: the settings.
    """

    device: torch.device
    config: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def of(cls, values: Mapping[str, Any], default_device: str | None = None) -> "Running":
        """Checks settings of :class:`~cond_detr.config.RunConfig`, and selects the device.

        Args:
            values: settings by name.
            default_device: value of ``device`` if it is not among them.

        Raises:
            InputError: if a setting cannot have its value, there is no such device, or a logger's package is missing.
        """
        config = change(RunConfig(), {"device": default_device, **values})
        loggers_of(config)
        return cls(distributed.local_device(device_named(config.device)), config)


def new_run(config: Config, running: Running, weights: str | None = None) -> RunFolder:
    """Trains a new model.

    Args:
        config: settings of the run.
        running: device and other settings of running.
        weights: path or URL of pretrained weights, which are loaded as far as they fit.

    Returns:
        The folder of the run.

    Raises:
        Interrupted: on a signal, after the state has been saved in ``last.pt``.
        InputError: if settings, data or weights cannot be used, the loss is not finite, or a batch does not fit into
            memory.
    """
    check_auto(config, running.device)
    if config.train.freeze != "nothing" and weights is None:
        raise InputError(f"`freeze` {config.train.freeze} would keep random weights; give `weights` to start from")
    data = prepare(config, running.config.threads)
    model = Model.new(config, data.train.annotations.classes)
    model.network.to(running.device)
    loaded = None if weights is None else load_weights(model, weights)
    start = "random weights" if loaded is None else f"weights of {weights}: {loaded}"
    return launch(model, data, running, start + pretraining_warning(model.network))


def resumed_run(checkpoint: Checkpoint, config: Config, running: Running) -> RunFolder:
    """Resumes an interrupted run, in its folder.

    Args:
        checkpoint: the ``last.pt`` of the run.
        config: settings of the run; the data set may be in another folder.
        running: device and other settings of running.

    Returns:
        The folder of the run.

    Raises:
        Interrupted: as :func:`new_run`.
        InputError: as :func:`new_run`.
    """
    check_buildable(checkpoint)
    check_auto(config, running.device)
    data = prepare(config, running.config.threads)
    model = Model.new(config, data.train.annotations.classes)
    model.network.to(running.device)
    return launch(model, data, running, f"resumed from {checkpoint.path}", checkpoint)


def train_model(model: Model, config: Config, running: Running) -> Model:
    """Trains a copy of a model; the model itself is left unchanged.

    Args:
        model: the model.
        config: its settings, with changes to those of training.
        running: device and other settings of running.

    Returns:
        The trained model of the best epoch, on the device of the training and in evaluation mode.

    Raises:
        Interrupted: as :func:`new_run`.
        InputError: as :func:`new_run`.
    """
    check_auto(config, running.device)
    with distributed.processes(running.device, running.config.timeout), as_it_was(running.device):
        data = prepare(config, running.config.threads)
        trained = replace(model.copy(), config=config)
        fits = trained.adopt(data.train.annotations.classes)
        distributed.make_equal(trained.network.to(running.device))
        start = "the model as it is" + ("" if fits else f", and a new head for {len(trained.classes)} classes")
        folder = launch(trained, data, running, start + pretraining_warning(trained.network))
        best = distributed.from_rank_zero(lambda: Checkpoint.load(folder.best))
        best.load_into(trained.network)
        trained.trained = best.trained or {}
    trained.network.eval()
    return trained


def prepare(config: Config, threads: int | None = None) -> Data:
    """Seeds torch's random generators, and opens the data sets.

    Raises:
        InputError: if the data set or the backbone of the settings cannot be used, or there is nothing to learn.
    """
    train, m = config.train, config.model
    use_threads(threads)
    if train.deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    # identical on every process, and the same whatever was drawn before
    torch.manual_seed(train.seed)
    if m.backbone not in LAYOUTS:
        raise InputError(f"unknown backbone {shown(m.backbone)}; there are {', '.join(LAYOUTS)}")
    stride = LAYOUTS[m.backbone].stride(m.dilation)
    data = Data(open_split(config.data, "train", stride, seed=train.seed), open_split(config.data, "val", stride))
    if not data.train.annotations.counts.any():
        raise InputError(f"{data.train.annotations.name}: expected objects to learn from, found none")
    return data


def launch(model: Model, data: Data, running: Running, start: str, checkpoint: Checkpoint | None = None) -> RunFolder:
    """Prints a summary of the run, and trains.

    Args:
        model: the model, on the device, with the settings of the run.
        data: the data sets.
        running: device and other settings of running.
        start: where the initial weights come from, for the summary.
        checkpoint: checkpoint to resume from; None for a new run.

    Returns:
        The folder of the run.

    Raises:
        Interrupted: as :func:`new_run`.
        InputError: as :func:`new_run`.
    """
    if model.config.train.batch_size == "auto":
        model.config = with_largest_batch(model, data)
    config, how = model.config, running.config
    if checkpoint:
        folder = RunFolder(checkpoint.path.parent)
    else:
        folder = distributed.from_rank_zero(lambda: RunFolder.plan(how.output_dir, config.preset))
    if running.device.type == "cpu":
        keep_freed_memory()
    recorder = Recorder(folder, config, data.val)
    with contextlib.ExitStack() as held:
        held.enter_context(prepared(model.network, config.train))
        trainer = Trainer(model, data, recorder, how)
        distributed.from_rank_zero(lambda: held.enter_context(folder.locked(new=checkpoint is None)))
        if checkpoint:  # read again: whoever held the folder until now may have gone on
            trainer.restore(Checkpoint.load(checkpoint.path))
        loggers = loggers_of(how) if distributed.rank() == 0 else []
        _say_and_train(trainer, data, start, loggers)
    return folder


def _say_and_train(trainer: Trainer, data: Data, start: str, loggers: list[Logger]) -> None:
    """Prints what a run is about to do, does it, and says what came of it."""
    recorder, folder = trainer.recorder, trainer.recorder.folder
    if distributed.rank() == 0:
        tell(*describe(trainer.model, data.train, data.val).split("\n"))
        tell(f"start       {start}")
        tell(f"run folder  {folder.path}")
        recorder.begin_logging(loggers, trainer.progress.history)
    try:
        with fp32_products(trainer.config.train.matmul_precision, trainer.device):
            trainer.run()
    finally:
        recorder.end_logging()
    if distributed.rank() == 0:
        best = f"best AP {trainer.progress.best_ap * 100:.1f}"
        if trainer.progress.best_ap < 0:
            best = (
                f"AP cannot be measured, for {data.val.annotations.name} has no objects; best.pt is of the last epoch"
            )
        progress, train = trainer.progress, trainer.config.train
        if progress.epoch < train.epochs:
            print(f"stopped     no better AP for {train.patience} epochs")
        tell(f"{best}; see {folder.path}/metrics.png and {folder.predictions}")


def check_auto(config: Config, device: torch.device) -> None:
    """Checks that the device supports ``batch_size`` "auto", if that is set.

    Raises:
        InputError: if the device is not a CUDA device.
    """
    if config.train.batch_size == "auto" and device.type != "cuda":
        raise InputError(f"`batch_size` auto: it fills a GPU's memory, and {device} is none; give a number")


def with_largest_batch(model: Model, data: Data) -> Config:
    """Returns the model's settings with the largest batch size that fits into memory on every process.

    Raises:
        InputError: if not even one image fits, or synchronised batch norm makes the search impossible.
    """
    config = model.config
    if distributed.world_size() > 1 and any(isinstance(each, SyncedBatchNorm2d) for each in model.network.modules()):
        raise InputError(
            "`batch_size` auto: processes share batch norm here, and cannot search on their own; give a number"
        )
    most = max(1, len(data.train) // (config.train.accumulate * distributed.world_size()))
    criterion = Criterion(config.loss, config.train.query_groups, config.train.denoising)
    # the run draws its own
    with torch.random.fork_rng([model.device]), prepared(model.network, config.train):
        trained = for_training(model.network, config.train).to(model.device)
        found = largest_batch_size(model, trained, criterion, data.train, most)
    found = distributed.least_over_ranks(found, model.device)
    return configure(config, {"batch_size": found})


@contextlib.contextmanager
def as_it_was(device: torch.device) -> Iterator[None]:
    """Restores torch's random generators and its deterministic mode after a block."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
