"""The files of a training run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cond_detr.config import Config, to_dict
from cond_detr.drawing import draw_metrics
from cond_detr.errors import InputError
from cond_detr.evaluation import Evaluation
from cond_detr.files import replacing

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """A folder with config.json, log.jsonl, last.pt, best.pt, results.json, metrics.png and predictions.png."""

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.png"

    @classmethod
    def plan(cls, wanted: Path | None, preset: str) -> "RunFolder":
        """The folder of a new run, not made yet: the wanted one, or the next free one under ``runs``.

        Raises:
            InputError: the wanted one already holds a run.
        """
        if wanted is None:
            candidates = (RUNS / (preset if i == 1 else f"{preset}-{i}") for i in range(1, 10**6))
            wanted = next(path for path in candidates if not path.exists())
        folder = cls(wanted)
        if folder.last.exists():
            raise InputError(
                f"--output-dir {wanted} already holds a run; continue it with --resume, or choose another folder"
            )
        return folder

    @staticmethod
    def latest() -> Path:
        """The most recent checkpoint of an unfinished run under ``runs``.

        Raises:
            InputError: there is none.
        """
        found = [path for path in RUNS.glob("*/last.pt") if not RunFolder(path.parent).finished()]
        if not found:
            raise InputError(f"--resume: nothing to resume, no unfinished run in any folder of {RUNS}/")
        return max(found, key=lambda path: path.stat().st_mtime)

    def finished(self) -> bool:
        """Whether the log holds as many epochs as the settings ask for."""
        try:
            epochs: int = json.loads((self.path / "config.json").read_text())["train"]["epochs"]
            return len((self.path / "log.jsonl").read_text().splitlines()) >= epochs
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write_config(self, config: Config) -> None:
        write_json(self.path / "config.json", to_dict(config))

    def write_log(self, history: Sequence[dict[str, Any]]) -> None:
        """log.jsonl and metrics.png of the epochs so far."""
        write_text(self.path / "log.jsonl", "".join(json.dumps(record) + "\n" for record in history))
        draw_metrics(history, self.path / "metrics.png")

    def write_results(self, evaluation: Evaluation, **more: Any) -> None:
        write_json(self.path / "results.json", results_dict(evaluation, **more))


def results_dict(evaluation: Evaluation, **more: Any) -> dict[str, Any]:
    """What results.json holds."""
    return {**more, **evaluation.metrics, "per_class": evaluation.per_class}


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or leaves what was there."""
    with replacing(path) as file:
        # file names may have bytes that are no characters; JSON has an escape for them
        file.write(text.encode("utf-8", errors="backslashreplace"))
