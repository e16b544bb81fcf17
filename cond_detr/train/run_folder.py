"""The files of a training run."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cond_detr.config import Config, read_dict, to_dict
from cond_detr.errors import InputError
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import results_dict
from cond_detr.files import check_free, json_text, locked, make_folder, read_json, read_text, write_json, write_text
from cond_detr.paths import exists
from cond_detr.pictures import write_picture
from cond_detr.train.curves import metrics_figure
from cond_detr.weights.progress import is_over

RUNS = Path("runs")
# What a run writes before its first checkpoint, and after that
FIRST = ("config.json", "log.jsonl")
LATER = ("README.md", "best.pt", "results.json", "predictions.png", "metrics.png", "log.csv", "not_finite.pt")


@dataclass(frozen=True)
class RunFolder:
    """A folder with config.json, log.jsonl, last.pt, best.pt, README.md, results.json and pictures.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def last(self) -> Path:
        """Checkpoint of the current state, to resume from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch, for prediction."""
        return self.path / "best.pt"

    @property
    def not_finite(self) -> Path:
        """The state before a step whose loss was not finite, for cond-detr replay."""
        return self.path / "not_finite.pt"

    @property
    def predictions(self) -> Path:
        """Picture of detections in validation images, of the best epoch."""
        return self.path / "predictions.png"

    @classmethod
    def plan(cls, wanted: Path | str | None, preset: str) -> "RunFolder":
        """Chooses the folder of a new run, without creating it.

        Args:
            wanted: the folder; by default the next free one under ``runs``.
            preset: name of the preset, which default folders are named after.

        Raises:
            InputError: if the wanted folder already holds a run, or other files that a run would replace.
        """
        if wanted is None:
            candidates = (RUNS / (preset if i == 1 else f"{preset}-{i}") for i in range(1, 10**6))
            wanted = next(path for path in candidates if not exists(path))
        folder = cls(Path(wanted))
        folder.check_new()
        return folder

    @staticmethod
    def unfinished() -> list[Path]:
        """Each ``last.pt`` of a run under ``runs`` that is not finished, the most recent first."""
        found = [path for path in RUNS.glob("*/last.pt") if not RunFolder(path.parent).finished()]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    @contextlib.contextmanager
    def locked(self, *, new: bool) -> Iterator[None]:
        """Creates the folder and keeps other processes from running in it.

        Args:
            new: whether it is for a new run.

        Raises:
            InputError: if another process runs in it, it cannot be created, or it is for a new run and not fit for one,
                as in :meth:`check_new`.
        """
        make_folder(self.path)
        with locked(self.path / "run.lock"):
            if new:
                self.check_new()
            yield

    def check_new(self) -> None:
        """Checks that the folder holds no run, and nothing that a run would replace.

        Raises:
            InputError: if it does.
        """
        if exists(self.last):
            raise InputError(
                f"`output_dir` {self.path} already holds a run; continue it with --resume, or choose another folder"
            )
        # a run that was killed before its first checkpoint may begin again
        check_free(self.path, LATER if self._has_only_begun() else FIRST + LATER, "`output_dir`")

    def _has_only_begun(self) -> bool:
        """Whether config.json is as a run writes it, to the letter, and no epoch has ended."""
        path, log = self.path / "config.json", self.path / "log.jsonl"
        try:
            complete = json_text(to_dict(read_dict(read_json(path, "settings file"))))
            return complete == read_text(path, "settings file") and not (os.path.lexists(log) and read_text(log, "log"))
        except InputError:
            return False

    def finished(self) -> bool:
        """Whether the log holds as many epochs as the settings ask for, or their patience is over."""
        try:
            train = read_json(self.path / "config.json", "settings file")["train"]
            history = [json.loads(line) for line in read_text(self.path / "log.jsonl", "log").splitlines()]
            return is_over(history, train["epochs"], train.get("patience", 0))
        except (InputError, KeyError, TypeError, ValueError):
            return False

    def write_config(self, config: Config) -> None:
        """Writes config.json."""
        write_json(self.path / "config.json", to_dict(config))

    def write_log(self, history: Sequence[dict[str, Any]]) -> None:
        """Writes log.jsonl, the records of the finished epochs."""
        write_text(self.path / "log.jsonl", "".join(json.dumps(record) + "\n" for record in history))

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Writes metrics.png, the log as a picture."""
        write_picture(self.path / "metrics.png", metrics_figure(history), "train", dpi=110)

    def write_card(self, text: str) -> None:
        """Writes README.md, about best.pt."""
        write_text(self.path / "README.md", text)

    def write_predictions(self, picture: Image.Image) -> None:
        """Writes predictions.png."""
        write_picture(self.predictions, picture, "train")

    def write_results(self, evaluation: Evaluation, **more: Any) -> None:
        """Writes results.json: metrics, and further entries."""
        write_json(self.path / "results.json", results_dict(evaluation, **more))
