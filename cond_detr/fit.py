"""Sets a training up: what the command and :meth:`Detector.train` have in common."""

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch

from cond_detr import distributed
from cond_detr.checkpoints import Checkpoint
from cond_detr.cli import default_workers, device_argument, make_folder
from cond_detr.config import Config, check_value
from cond_detr.criterion import Criterion
from cond_detr.data import open_split
from cond_detr.data.coco import CocoDataset
from cond_detr.describe import describe, pretraining_warning
from cond_detr.errors import InputError
from cond_detr.host_memory import keep_freed_memory
from cond_detr.models.detector import Detector
from cond_detr.models.normalization import SyncedBatchNorm2d
from cond_detr.models.resnet import LAYOUTS
from cond_detr.precision import fp32_products
from cond_detr.rehearsal import largest_batch_size
from cond_detr.run_folder import RunFolder
from cond_detr.settings import DERIVED, SETTINGS, configure, known
from cond_detr.trainer import Trainer


class Data(NamedTuple):
    """What to learn from, and what to measure on."""

    train: CocoDataset
    val: CocoDataset


@dataclass(frozen=True)
class Running:
    """How a run is run: nothing here changes what is learnt.

    Attributes:
        device: where to run.
        output_dir: of its files; by default a new folder under ``runs``.
        workers: processes that load images; by default as many as there are cores to spare for them.
        tensorboard: also write the curves for TensorBoard.
    """

    device: torch.device
    output_dir: Path | None = None
    workers: int | None = None
    tensorboard: bool = False


def prepare(config: Config) -> Data:
    """Seeds everything, and opens the data.

    Raises:
        InputError: something is missing or wrong in the folder.
    """
    train = config.train
    if train.deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    # identical on every process, and the same whatever was drawn before
    torch.manual_seed(train.seed)
    stride = LAYOUTS[config.model.backbone].stride(config.model.dilation)
    return Data(open_split(config.data, "train", stride, seed=train.seed), open_split(config.data, "val", stride))


def without_auto(options: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], bool]:
    """The options without a batch size that is to be found out, and whether one is."""
    if options.get("batch_size") != "auto":
        return options, False
    if device.type != "cuda":
        raise InputError(f"--batch-size auto: it fills a GPU's memory, and {device} is none; give a number")
    return {name: value for name, value in options.items() if name != "batch_size"}, True


def with_largest_batch(config: Config, model: Detector, data: Data, device: torch.device) -> Config:
    """The settings with the batch size that fits on every process."""
    if distributed.world_size() > 1 and any(isinstance(module, SyncedBatchNorm2d) for module in model.modules()):
        raise InputError(
            "--batch-size auto: processes share batch norm here, and cannot search on their own; give a number"
        )
    most = max(1, len(data.train) // (config.train.accumulate * distributed.world_size()))
    found = largest_batch_size(model, Criterion(config.loss), config, data.train, device, most)
    found = distributed.least_over_ranks(found, device)
    return replace(config, train=replace(config.train, batch_size=found))


def launch(
    model: Detector, config: Config, data: Data, running: Running, start: str, checkpoint: Checkpoint | None = None
) -> RunFolder:
    """Trains, and says before what and on what.

    Args:
        model: on the device.
        config: the run's settings.
        data: opened.
        running: where.
        start: where the initial weights come from, in words.
        checkpoint: of an interrupted run, which then goes on.

    Raises:
        Interrupted: a signal came; ``last.pt`` holds the state.
        InputError: an image cannot be read, the loss is not a number, or a batch does not fit into memory.
    """
    if checkpoint:
        folder = RunFolder(checkpoint.path.parent)
    else:
        folder = distributed.from_rank_zero(lambda: RunFolder.plan(running.output_dir, config.preset))
    workers = running.workers
    if workers is None:
        workers = 0 if config.data.dataset_dir is None else default_workers()
    if running.device.type == "cpu":
        keep_freed_memory()
    trainer = Trainer(
        model,
        config,
        data.train,
        data.val,
        folder=folder,
        device=running.device,
        workers=workers,
        tensorboard=running.tensorboard,
    )
    if checkpoint:
        trainer.restore(checkpoint)
    if distributed.rank() == 0:
        make_folder(folder.path)
        folder.write_config(config)
        print(describe(config, model, data.train, data.val, running.device))
        print(f"start       {start}")
        print(f"run folder  {folder.path}", flush=True)
    with fp32_products(config.train.matmul_precision, running.device):
        trainer.run()
    if distributed.rank() == 0:
        print(f"best AP {trainer.progress.best_ap * 100:.1f}; see {folder.path}/metrics.png and {folder.predictions}")
    return folder


# What Detector.train takes beside the settings that a model still has when it is built
RUNNING = {"device", "output_dir", "workers", "tensorboard"}
TRAINABLE = {name for name, (section, _) in SETTINGS.items() if section != "model" and name != "classification"}


def fit(model: Detector, options: dict[str, Any]) -> None:
    """Trains a model that is there, and leaves it at its best epoch; see :meth:`Detector.train`."""
    known(options, RUNNING | TRAINABLE | set(DERIVED))
    running = where(model, options)
    options, auto = without_auto(options, running.device)
    config = configure(options, model.config)
    with distributed.processes(running.device), as_it_was(running.device):
        data = prepare(config)
        # whatever goes wrong, the model itself is still what it was
        trained = copy.deepcopy(model)
        fits = trained.adopt(data.train.annotations.classes)
        trained.config = config
        distributed.make_equal(trained.to(running.device))
        if auto:
            config = trained.config = with_largest_batch(config, trained, data, running.device)
        start = "the model as it is" + ("" if fits else f", and a new head for {len(trained.classes)} classes")
        run = launch(trained, config, data, running, start + pretraining_warning(trained))
        distributed.from_rank_zero(lambda: Checkpoint.load(run.best)).load_into(trained)
    model.take_over(trained)


def where(model: Detector, options: dict[str, Any]) -> Running:
    """How a run of a model is to be run."""
    own = model.query_embed.weight.device
    # torchrun gives each process its own
    stays = own.type == "cuda" and "LOCAL_RANK" not in os.environ
    name = options.get("device") or (str(own) if stays else "auto")
    workers, tensorboard = options.get("workers"), options.get("tensorboard", False)
    if workers is not None:
        check_value("workers", workers, int)
    check_value("tensorboard", tensorboard, bool)
    folder = options.get("output_dir")
    if not isinstance(folder, (str, Path, NoneType)):
        raise InputError(f"output_dir must be a path, got {folder!r}")
    device = distributed.local_device(device_argument(str(name)))
    return Running(device, None if folder is None else Path(folder), workers, tensorboard)


@contextlib.contextmanager
def as_it_was(device: torch.device) -> Iterator[None]:
    """Gives torch's generators and its choice of algorithms back as they were before."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
