"""The learning curves' benchmark, whole, with a data set of a few images."""

import json
import signal
import sys
import time
from functools import partial
from pathlib import Path

import convergence_bench
import pytest


@pytest.mark.usefixtures("one_thread")
def test_curves_of_both_models(tmp_path: Path, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call finds what the first has trained, and trains no more."""
    few = ["--dataset-dir", str(dataset_dir), "--batch-size", "4", "--workers", "0"]
    monkeypatch.setattr(convergence_bench, "PROTOCOL", [*convergence_bench.PROTOCOL, *few])
    monkeypatch.setattr(convergence_bench, "pretrain", partial(convergence_bench.pretrain, epochs=1, count=100))
    options = ["--epochs", "2", "--seeds", "1", "--output-dir", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["convergence_bench.py", *options, "--json", str(tmp_path / "curves.json")])
    assert convergence_bench.main() == 0
    rows = json.loads((tmp_path / "curves.json").read_text())["rows"]
    assert {row["model"]: [epoch for epoch, *_ in row["curve"]] for row in rows} == {
        "Conditional DETR": [1, 2],
        "DETR": [1, 2],
    }
    assert (tmp_path / "curves.png").exists()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(convergence_bench, "machine", lambda: "here")
    monkeypatch.setattr(convergence_bench, "write_json", lambda *_: None)
    assert convergence_bench.main() == 0


def test_minutes_to_levels() -> None:
    """Of three seeds, one of which does not reach the second level."""
    curves = ([0.2, 0.5, 0.8], [0.5, 0.6, 0.7], [0.1, 0.2, 0.6])
    rows = [
        {"model": "a", "curve": [[i + 1, ap, ap] for i, ap in enumerate(curve)], "cpu_seconds": 360.0}
        for curve in curves
    ]
    (row,) = convergence_bench.beyond_table(rows)
    assert row["epochs_to_0.5"] == 2.0
    assert row["epochs_between_0.5"] == pytest.approx((2 + 1 + 2.75) / 3)
    assert row["minutes_to_0.5"] == 4.0
    assert row["epochs_to_0.7"] is row["epochs_between_0.7"] is None
    assert row["minutes_to_0.7"] is None
    assert row["minutes_per_epoch"] == 2.0
    for each in rows:
        del each["cpu_seconds"]
    (row,) = convergence_bench.beyond_table(rows)
    assert row["epochs_to_0.5"] == 2.0
    assert row["minutes_to_0.5"] is None


LEARNS = """
import sys, time
for ap in (0.3, 0.6):
    with open(sys.argv[1], "a") as log:
        print('{"AP": %s}' % ap, file=log)
time.sleep(60)
"""


def test_a_run_ends_at_its_goal(tmp_path: Path) -> None:
    """Or after its epochs; what ends it is no failure. In the background too, where Ctrl-C's signal is ignored."""
    run = convergence_bench.Run("a", (), 0, epochs=5, goal=0.5)
    folder = run.folder(tmp_path)
    folder.mkdir()
    command = [sys.executable, "-c", LEARNS, str(folder / "log.jsonl")]
    assert not run.is_over(tmp_path)
    before, began = signal.signal(signal.SIGINT, signal.SIG_IGN), time.monotonic()
    try:
        code, seconds = convergence_bench.until_over(run, tmp_path, command, 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 50  # and not when the command ends by itself
    assert code == 0
    assert 0 < seconds < 10
    assert run.is_over(tmp_path)
    assert not run._replace(goal=0.7).is_over(tmp_path)
