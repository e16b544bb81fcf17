"""Where the numbers of log.jsonl can go besides: TensorBoard, W&B, MLflow, a table in CSV."""

import csv
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cond_detr.config import RunConfig
from cond_detr.errors import need
from cond_detr.files import write_text

Record = dict[str, Any]


class Logger(Protocol):
    """Takes the numbers and pictures of a run, epoch by epoch."""

    def begin(self, folder: Path, settings: dict[str, Any], history: list[Record]) -> None:
        """Called before the first step.

        Args:
            folder: the run's folder.
            settings: the content of config.json.
            history: the records of the epochs that are done, if the run is resumed.
        """

    def write(self, record: Record) -> None:
        """Called after each epoch with its record of log.jsonl; values can be None."""

    def picture(self, name: str, path: Path, epoch: int) -> None:
        """Called with a picture of the run's folder that has been written, and its epoch, counted from 1."""

    def end(self) -> None:
        """Called after the last epoch, or when the run stops."""


def grouped(record: Record) -> dict[str, float]:
    """The numbers of a record that there are, by names with their group."""
    numbers = {name: value for name, value in record.items() if name != "epoch" and value is not None}
    return {f"{group_of(name)}/{name}": value for name, value in numbers.items()}


def group_of(name: str) -> str:
    """The group of a number: precision, loss, or run."""
    return "precision" if name.startswith("A") else "loss" if "loss" in name else "run"


class TensorBoard:
    """Writes event files to ``tensorboard/`` in the run's folder."""

    def begin(self, folder: Path, settings: dict[str, Any], history: list[Record]) -> None:  # noqa: ARG002, D102
        from torch.utils.tensorboard import SummaryWriter

        # events of an interrupted run from there on are dropped
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=len(history) + 1)

    def write(self, record: Record) -> None:  # noqa: D102
        for name, value in grouped(record).items():
            self.writer.add_scalar(name, value, record["epoch"])
        self.writer.flush()

    def picture(self, name: str, path: Path, epoch: int) -> None:  # noqa: D102
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")

    def end(self) -> None:  # noqa: D102
        self.writer.close()


class Csv:
    """Writes ``log.csv`` to the run's folder, a row for each epoch."""

    def begin(self, folder: Path, settings: dict[str, Any], history: list[Record]) -> None:  # noqa: ARG002, D102
        self.path, self.rows = folder / "log.csv", [*history]

    def write(self, record: Record) -> None:  # noqa: D102
        self.rows.append(record)
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        table = csv.DictWriter(text, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def picture(self, name: str, path: Path, epoch: int) -> None:
        """A table has no pictures."""

    def end(self) -> None:
        """Each row is written when it comes."""


class WandB:
    """Sends to Weights & Biases, as its own settings and environment variables say."""

    def begin(self, folder: Path, settings: dict[str, Any], history: list[Record]) -> None:  # noqa: D102
        wandb = importlib.import_module("wandb")
        # the same run again, if it is resumed in its folder
        self.run = wandb.init(
            dir=str(folder), name=folder.name, id=folder.name, config=settings, resume="allow" if history else None
        )
        self.as_image = wandb.Image

    def write(self, record: Record) -> None:  # noqa: D102
        self.run.log(grouped(record), step=record["epoch"])

    def picture(self, name: str, path: Path, epoch: int) -> None:  # noqa: D102
        self.run.log({name: self.as_image(str(path))}, step=epoch)

    def end(self) -> None:  # noqa: D102
        self.run.finish()


class MLflow:
    """Sends to MLflow, as its own settings and environment variables say."""

    def begin(self, folder: Path, settings: dict[str, Any], history: list[Record]) -> None:  # noqa: ARG002, D102
        self.mlflow = importlib.import_module("mlflow")
        self.mlflow.start_run(run_name=folder.name)
        for section, values in settings.items():
            entries = values if isinstance(values, dict) else {"": values}
            self.mlflow.log_params({f"{section}.{name}".strip("."): value for name, value in entries.items()})

    def write(self, record: Record) -> None:  # noqa: D102
        self.mlflow.log_metrics(grouped(record), step=record["epoch"])

    def picture(self, name: str, path: Path, epoch: int) -> None:  # noqa: ARG002, D102
        self.mlflow.log_artifact(str(path))

    def end(self) -> None:  # noqa: D102
        self.mlflow.end_run()


# By the settings that ask for them, with the packages that they need
LOGGERS: dict[str, tuple[Callable[[], Logger], tuple[str, ...]]] = {
    "tensorboard": (TensorBoard, ("tensorboard",)),
    "csv": (Csv, ()),
    "wandb": (WandB, ("wandb",)),
    "mlflow": (MLflow, ("mlflow",)),
}


def loggers_of(config: RunConfig) -> list[Logger]:
    """The loggers that settings ask for.

    Raises:
        InputError: if a package is missing.
    """
    wanted = [name for name in LOGGERS if getattr(config, name)]
    for name in wanted:
        need(name, *LOGGERS[name][1])
    return [LOGGERS[name][0]() for name in wanted]
