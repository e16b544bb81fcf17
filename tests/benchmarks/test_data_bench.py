"""The benchmark of data at COCO's size, and the prediction from its parts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import data_bench
import pytest
import scale

ROOT = Path(__file__).parents[2]


def test_everything_runs_and_agrees(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/data_bench.py", "--tiny", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text())
    assert not record["notes"]
    assert [f"{row['task']} {row['impl']}" for row in record["rows"]] == list(data_bench.TASKS)
    assert path.with_suffix(".png").exists()


def test_what_differs_is_noticed() -> None:
    assert not data_bench.differ([0.5, 0.25], [0.5, 0.25 + 1e-9])
    assert data_bench.differ([0.5, 0.25], [0.5, 0.2501])
    assert data_bench.differ([0.5], [0.5, 0.25])


def test_predictions_follow_the_parts() -> None:
    """Without exchange and evaluation, twice the GPUs take half the time; the slowest part decides."""
    parts = replace(scale.DEFAULTS, parameters=0.0, val_images=0.0, metrics=0.0, start=0.0)
    one, two = scale.predict(parts, 1), scale.predict(parts, 2)
    assert one.hours == pytest.approx(parts.epochs * parts.images / parts.step_rate / 3600)
    assert (two.hours, two.cost) == pytest.approx((one.hours / 2, one.cost))
    assert (one.limit, one.exchange) == ("computing", 0.0)
    few_cores = scale.predict(replace(parts, cores=2), 1)
    assert few_cores.limit == "preparing images"
    assert few_cores.epoch == pytest.approx(parts.images / parts.core_rate)
    assert scale.predict(replace(parts, storage=1e6), 1).limit == "storage"
    slow = scale.predict(replace(parts, parameters=1e9, network=1e9), 16)
    assert slow.limit == "exchange of gradients"
    # 2 * 15 / 16 * 4 GB at 1 GB/s
    assert slow.epoch == pytest.approx(parts.images / 16 / parts.batch * (7.5 + parts.batch / parts.step_rate))


def test_the_page_has_the_scripts_numbers() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    assert scale.table(scale.DEFAULTS, [1, 8, 64]) in page.replace("\n    ", "\n")
    larger = replace(scale.DEFAULTS, images=100 * scale.DEFAULTS.images)
    assert scale.table(larger, [1, 8, 64]) in page.replace("\n    ", "\n")
