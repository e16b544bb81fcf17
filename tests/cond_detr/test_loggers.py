"""What loggers are given; services that need an account are replaced by records of their calls."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cond_detr import InputError
from cond_detr.config import RunConfig
from cond_detr.train import __main__ as train
from cond_detr.train.loggers import LOGGERS, loggers_of
from cond_detr.train.run_folder import FIRST, LATER

pytestmark = pytest.mark.usefixtures("one_thread")
Calls = list[tuple[str, Any]]


def recorded(calls: Calls, name: str) -> Any:
    """A function that notes how it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append((name, (*args, *kwargs.values())))
        return SimpleNamespace(log=recorded(calls, "log"), finish=recorded(calls, "finish"))

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is asked of the packages wandb and mlflow."""
    calls: Calls = []
    of_mlflow = ("start_run", "log_params", "log_metrics", "log_artifact", "end_run")
    names = {"wandb": ("init", "Image"), "mlflow": of_mlflow}
    for module, functions in names.items():
        content = SimpleNamespace(**{name: recorded(calls, name) for name in functions})
        monkeypatch.setitem(sys.modules, module, content)  # type: ignore[arg-type]
    monkeypatch.setattr("cond_detr.train.loggers.need", lambda *_: None)
    return calls


def test_a_run(dataset_dir: Path, tmp_path: Path, calls: Calls) -> None:
    folder = tmp_path / "run"
    arguments = ["--preset", "shapes", "--dataset-dir", str(dataset_dir), "--epochs", "2", "--output-dir", str(folder)]
    loggers = [f"--{name}" for name in LOGGERS]
    assert train.main([*arguments, *loggers, "--device", "cpu", "--workers", "0"]) == 0
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [record["train_loss"] for record in log]
    assert list(rows[0]) == list(log[0])
    assert list((folder / "tensorboard").iterdir())
    # of these a new run sees that it would replace them
    assert {path.name for path in folder.iterdir()} == {*FIRST, *LATER, "last.pt", "tensorboard"} - {"not_finite.pt"}
    names = [name for name, _ in calls]
    assert names.count("log_metrics") == 2
    assert names.count("log") >= 3  # numbers of two epochs, and a picture of the first
    assert {"init", "start_run", "log_params", "log_artifact", "finish", "end_run"} <= set(names)
    assert names.index("start_run") < names.index("log_metrics") < names.index("end_run")
    metrics, step = next(given for name, given in calls if name == "log_metrics")
    assert (metrics["loss/train_loss"], step) == (log[0]["train_loss"], 1)
    assert None not in metrics.values()
    params = {key: value for name, given in calls if name == "log_params" for key, value in given[0].items()}
    assert (params["preset"], params["train.epochs"]) == ("shapes", 2)


def test_loggers_end_with_a_run_that_fails(dataset_dir: Path, tmp_path: Path, calls: Calls) -> None:
    arguments = ["--preset", "shapes", "--dataset-dir", str(dataset_dir), "--output-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="not finite"):
        train.main([*arguments, "--mlflow", "--lr", "1e30", "--backbone-lr", "1e30", "--device", "cpu"])
    assert calls[-1][0] == "end_run"


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cond_detr.errors.importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"this needs wandb: pip install 'cond-detr\[wandb\]'"):
        loggers_of(RunConfig(wandb=True))
    assert len(loggers_of(RunConfig(csv=True))) == 1
