"""Sets a training up: what the command and :meth:`Detector.train` have in common."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cond_detr import distributed
from cond_detr.checkpoints import Checkpoint
from cond_detr.cli import default_workers, device_argument, make_folder
from cond_detr.config import Config
from cond_detr.criterion import Criterion
from cond_detr.data import open_split
from cond_detr.data.coco import CocoDataset
from cond_detr.describe import describe
from cond_detr.errors import InputError
from cond_detr.host_memory import keep_freed_memory
from cond_detr.models.detector import Detector
from cond_detr.models.normalization import SyncedBatchNorm2d
from cond_detr.models.resnet import LAYOUTS
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
    torch.use_deterministic_algorithms(train.deterministic)
    if train.deterministic:
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
    trainer.run()
    if distributed.rank() == 0:
        print(f"best AP {trainer.progress.best_ap * 100:.1f}; see {folder.path}/metrics.png and {folder.predictions}")
    return folder


# What Detector.train takes beside the settings that a model still has when it is built
RUNNING = {"device", "output_dir", "workers", "tensorboard"}
TRAINABLE = {name for name, (section, _) in SETTINGS.items() if section != "model" and name != "classification"}


def fit(model: Detector, options: dict[str, Any]) -> None:
    """Trains a model that is there, in place, and leaves it at its best epoch; see :meth:`Detector.train`."""
    known(options, RUNNING | TRAINABLE | set(DERIVED))
    device = distributed.local_device(device_argument(str(options.get("device", "auto"))))
    options, auto = without_auto(options, device)
    if "dataset_dir" in options:
        options = {**options, "dataset_dir": str(options["dataset_dir"])}
    config = configure(options, model.config)
    folder = Path(options["output_dir"]) if "output_dir" in options else None
    running = Running(device, folder, options.get("workers"), options.get("tensorboard", False))
    with distributed.processes(device):
        data = prepare(config)
        kept = model.adopt(data.train.annotations.classes)
        model.config = config
        model.to(device)
        if auto:
            config = model.config = with_largest_batch(config, model, data, device)
        start = "the model as it is" + ("" if kept else f", and a new head for {len(model.classes)} classes")
        run = launch(model, config, data, running, start)
        distributed.from_rank_zero(lambda: Checkpoint.load(run.best)).load_into(model)
