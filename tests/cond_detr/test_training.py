"""The training command: what it writes, that it can be stopped anywhere, that processes agree, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cond_detr import PRESETS, cli
from cond_detr.evaluate import __main__ as evaluate
from cond_detr.replay import __main__ as replay
from cond_detr.train import __main__ as train
from cond_detr.train.optim import lr_factor

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ["--preset", "shapes", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--fused-attn"]
LOSSES = ("train_loss", "train_loss_classification", "train_loss_l1", "train_loss_giou")


def run_train(*arguments: object) -> int:
    """The exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, [str(a) for a in arguments])
    return int(stop.value.code or 0)


def start_train(
    *arguments: object, processes: int = 0, launcher_options: Sequence[str] = (), start_new_session: bool = False
) -> "subprocess.Popen[str]":
    """The command in a process of its own, or several under torchrun."""
    launcher = ["-m"]
    if processes:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launcher = [*torchrun, *launcher_options, "-m"]
    return subprocess.Popen(
        [sys.executable, *launcher, "cond_detr.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=start_new_session,
    )


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's tensors, and their average's."""
    content = torch.load(path, weights_only=True)
    return {f"{part}.{name}": tensor for part in ("model", "average") for name, tensor in content.get(part, {}).items()}


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def wait_for_epoch(process: "subprocess.Popen[str]", folder: Path, epochs: int) -> None:
    """Waits until so many epochs are in the log, and a moment longer."""
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() or len(log(folder)) < epochs:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.05)


def test_a_run_writes_its_folder(dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    options = ["--dataset-dir", dataset_dir, "--epochs", 2, "--size-step", 32, "--output-dir", folder]
    assert run_train(*TINY, *options) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json", "log.jsonl", "last.pt", "best.pt", "results.json", "metrics.png", "predictions.png"
    }  # fmt: skip
    records = log(folder)
    assert [record["epoch"] for record in records] == [1, 2]
    wanted = {"epoch", "seconds", "waiting_seconds", "evaluation_seconds", "images_per_second", "lr", *LOSSES}
    wanted |= {name.replace("train_", "val_") for name in LOSSES}
    wanted |= {"AP", "AP50", "AP75", "APS", "APM", "APL", "AR"}
    assert set(records[0]) == wanted
    results = json.loads((folder / "results.json").read_text())
    assert set(results["per_class"]) == {"circle", "ring", "square", "triangle", "star", "cross"}
    printed = capsys.readouterr().out
    assert "attention   fused: PyTorch" in printed
    assert "batch       4 images a step = 4 x 1 accumulated x 1 processes, padded to multiples of 32 pixels" in printed
    assert json.loads((folder / "config.json").read_text())["model"]["fused_attn"] is True

    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main, ["--checkpoint", str(folder / "best.pt"), "--device", "cpu", "--workers", "0"])
    assert stop.value.code == 0
    again = json.loads((folder / "evaluation" / "results.json").read_text())
    assert again["AP"] == pytest.approx(results["AP"], abs=1e-6)
    assert "triangle" in capsys.readouterr().out


def test_curves_for_tensorboard(dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [*TINY, "--dataset-dir", dataset_dir, "--epochs", 2, "--tensorboard", "--output-dir"]
    assert run_train(*options, tmp_path / "run") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for tag, name in (("precision/AP50", "AP50"), ("loss/train_loss", "train_loss"), ("run/lr", "lr")):
        got = [(event.step, event.value) for event in events.Scalars(tag)]
        assert got == [(record["epoch"], pytest.approx(record[name])) for record in log(tmp_path / "run")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_train(*options, tmp_path / "other") == 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Any]]:
    """A data set, a finished run on it, and the options that both it and the disturbed runs have."""
    from tests.conftest import write_dataset

    root = tmp_path_factory.mktemp("undisturbed")
    dataset = write_dataset(root / "data", train=160, val=4)
    options = [*TINY, "--dataset-dir", dataset, "--epochs", 4, "--dropout", 0.1, "--ema", 0.9]
    process = start_train(*options, "--output-dir", root / "run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return dataset, root / "run", options


def test_killed_run_continues_bit_for_bit(undisturbed: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    """Resuming crashes or forgets: rf-detr#84, rf-detr#460, rf-detr#969."""
    _, reference, options = undisturbed
    folder = tmp_path / "killed"
    process = start_train(*options, "--output-dir", folder)
    wait_for_epoch(process, folder, 2)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    done = len(log(folder))
    assert 2 <= done < 4
    process = start_train("--resume", "--output-dir", folder, "--workers", 0, "--device", "cpu")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert output.count("images/s") == 4 - done  # only what was missing
    assert_same_weights(folder / "last.pt", reference / "last.pt")
    for ours, theirs in zip(log(folder), log(reference), strict=True):
        assert {k: ours[k] for k in (*LOSSES, "AP", "lr")} == {k: theirs[k] for k in (*LOSSES, "AP", "lr")}


def test_a_signal_to_the_whole_process_group_saves_the_state(
    undisturbed: tuple[Path, Path, list[Any]], tmp_path: Path
) -> None:
    """Launchers signal loader workers as well; those must not take the run down."""
    folder = tmp_path / "stopped"
    process = start_train(*undisturbed[2], "--workers", 2, "--output-dir", folder, start_new_session=True)
    wait_for_epoch(process, folder, 1)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "continue with cond-detr train --resume" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signals_save_the_state_between_steps(
    undisturbed: tuple[Path, Path, list[Any]], tmp_path: Path, number: signal.Signals
) -> None:
    _, reference, options = undisturbed
    folder = tmp_path / "stopped"
    process = start_train(*options, "--output-dir", folder)
    wait_for_epoch(process, folder, 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    stopped = re.search(r"stopped in epoch (\d) after step (\d+) of 40; continue with cond-detr train --resume", output)
    assert stopped, output
    assert run_train("--resume", folder / "last.pt", "--workers", 0, "--device", "cpu") == 0
    assert_same_weights(folder / "last.pt", reference / "last.pt")
    for ours, theirs in zip(log(folder), log(reference), strict=True):
        assert {k: ours[k] for k in (*LOSSES, "AP", "lr")} == {k: theirs[k] for k in (*LOSSES, "AP", "lr")}


def test_accumulating_equals_a_larger_batch(dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With frozen batch norm, as in the paper's models; trained batch norm sees one backward pass at a time.

    The batch size changes the result: ConditionalDETR#15, DN-DETR#16.
    """
    shapes = PRESETS["shapes"]
    tiny = replace(shapes, preset="tiny", model=replace(shapes.model, backbone="resnet18", d_model=32, ffn_dim=32))
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    options = ["--preset", "tiny", "--dataset-dir", dataset_dir, "--epochs", 1, "--workers", 0, "--device", "cpu"]
    assert run_train(*options, "--batch-size", 8, "--output-dir", tmp_path / "one") == 0
    assert run_train(*options, "--batch-size", 2, "--accumulate", 4, "--output-dir", tmp_path / "four") == 0
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "four"), strict=True):
        assert [a[name] for name in LOSSES] == pytest.approx([b[name] for name in LOSSES], rel=1e-5)


@pytest.mark.parametrize("empty", [False, True], ids=["objects everywhere", "a process without objects"])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, empty: bool) -> None:
    from tests.conftest import write_dataset

    dataset = write_dataset(tmp_path / "data", train=16, val=4)
    if empty:
        # with one object in all, one of the two processes never sees any
        path = dataset / "annotations" / "instances_train.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps({**raw, "annotations": raw["annotations"][:1]}))
    # a low rate: Adam turns rounding errors of gradients that are nearly zero into steps of the full rate
    options = ["--preset", "shapes", "--dataset-dir", dataset, "--epochs", 3, "--workers", 0, "--device", "cpu"]
    options += ["--lr", "1e-4", "--backbone-lr", "1e-4"]
    options += ["--query-groups", 2, "--queries", "boxes"] if empty else []
    both = start_train(*options, "--batch-size", 4, "--output-dir", tmp_path / "both", processes=2)
    output, _ = both.communicate(timeout=200)
    assert both.returncode == 0, output
    assert "8 images a step = 4 x 1 accumulated x 2 processes" in output
    assert run_train(*options, "--batch-size", 8, "--output-dir", tmp_path / "one") == 0
    for a, b in zip(log(tmp_path / "both"), log(tmp_path / "one"), strict=True):
        assert [a[name] for name in LOSSES] == pytest.approx([b[name] for name in LOSSES], rel=1e-5)
        assert a["AP"] == pytest.approx(b["AP"], abs=1e-3)


def test_processes_with_batches_of_different_sizes(tmp_path: Path) -> None:
    """Grouped by size, each process sees other shapes in other steps; none waits for another in vain."""
    from tests.conftest import write_dataset

    dataset = write_dataset(tmp_path / "data", train=24, val=4)
    spread_sizes(dataset)
    options = ["--preset", "shapes", "--dataset-dir", dataset, "--epochs", 2, "--workers", 0, "--device", "cpu"]
    options += ["--size-step", 32, "--batch-size", 2, "--accumulate", 2, "--output-dir", tmp_path / "run"]
    both = start_train(*options, processes=2)
    output, _ = both.communicate(timeout=200)
    assert both.returncode == 0, output
    assert [record["epoch"] for record in log(tmp_path / "run")] == [1, 2]


def spread_sizes(dataset: Path) -> None:
    """Gives the training images of a data set different sizes, with a margin at the right or at the bottom."""
    path = dataset / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for i, record in enumerate(content["images"]):
        width, height = record["width"], record["height"]
        size = (width * (2 + i % 4) // 2, height) if i % 2 else (width, height * (2 + i % 3) // 2)
        with Image.open(dataset / "train" / record["file_name"]) as image:
            larger = Image.new("RGB", size)
            larger.paste(image)
        larger.save(dataset / "train" / record["file_name"])
        record["width"], record["height"] = size
    path.write_text(json.dumps(content))


def test_torchrun_restarts_from_the_last_checkpoint(undisturbed: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*undisturbed[2], "--output-dir", folder]
    launcher = start_train(*options, processes=1, launcher_options=["--max-restarts=1"])
    wait_for_epoch(launcher, folder, 1)
    (worker,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output
    assert f"resumed from {folder / 'last.pt'}" in output
    assert_same_weights(folder / "last.pt", undisturbed[1] / "last.pt")


def test_bf16(dataset_dir: Path, tmp_path: Path) -> None:
    options = [*TINY, "--dataset-dir", dataset_dir, "--epochs", 1]
    assert run_train(*options, "--amp", "bf16", "--output-dir", tmp_path / "bf16") == 0
    assert run_train(*options, "--output-dir", tmp_path / "fp32") == 0
    a, b = log(tmp_path / "bf16")[0], log(tmp_path / "fp32")[0]
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)
    assert a["train_loss"] != b["train_loss"]


def test_deterministic(dataset_dir: Path, tmp_path: Path) -> None:
    """Runs that cannot be repeated: detr#313, rf-detr#742."""
    for name in ("a", "b"):
        arguments = [*TINY, "--dataset-dir", dataset_dir, "--epochs", 1, "--deterministic", "--seed", 5]
        assert run_train(*arguments, "--output-dir", tmp_path / name) == 0
    torch.use_deterministic_algorithms(False)
    assert_same_weights(tmp_path / "a" / "last.pt", tmp_path / "b" / "last.pt")


def test_fine_tuning_reports_what_was_loaded(
    dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heads of another size: Deformable-DETR#145, DINO#148."""
    options = [*TINY, "--dataset-dir", dataset_dir, "--epochs", 1]
    assert run_train(*options, "--output-dir", tmp_path / "first") == 0
    for split in ("train", "val"):
        path = dataset_dir / "annotations" / f"instances_{split}.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps({**raw, "categories": [*raw["categories"], {"id": 50, "name": "heart"}]}))
    arguments = ["--weights", tmp_path / "first" / "best.pt", "--output-dir", tmp_path / "second"]
    assert run_train(*options, *arguments) == 0
    printed = capsys.readouterr().out
    assert "2 of another shape or for other classes, left out (class_head.weight, class_head.bias)" in printed


@pytest.fixture
def finished(dataset_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "finished"
    assert run_train(*TINY, "--dataset-dir", dataset_dir, "--epochs", 1, "--output-dir", folder) == 0
    return folder


def edit(dataset: Path, **changes: Any) -> None:
    """Changes the first training annotation."""
    path = dataset / "annotations" / "instances_train.json"
    raw = json.loads(path.read_text())
    raw["annotations"][0].update(changes)
    path.write_text(json.dumps(raw))


BAD_DATA = {
    "no folder": (lambda d: d.rename(d.with_name("gone")), "dataset folder .* does not exist"),
    "no annotations": (
        lambda d: (d / "annotations/instances_train.json").unlink(),
        "annotation file .* does not exist",
    ),
    "broken JSON": (lambda d: (d / "annotations/instances_val.json").write_text("{"), "is not valid JSON"),
    "unknown image": (lambda d: edit(d, image_id=999), "is for image 999, which is not among the images"),
    "unknown category": (lambda d: edit(d, category_id=99), "has category 99, which is not among the categories"),
    "negative box": (lambda d: edit(d, bbox=[1, 1, -2, 3]), r"has bbox \[1, 1, -2, 3\]"),
    "NaN box": (lambda d: edit(d, bbox=[1, 1, float("nan"), 3]), "has bbox"),
    "unreadable image": (lambda d: (d / "train/train-00002.png").write_text("no"), "train-00002.png cannot be read"),
    "image of another size": (
        lambda d: Image.new("RGB", (4, 4)).save(d / "train/train-00002.png"),
        "is 4x4 pixels, but its annotations say 64x64",
    ),
    "narrow image": (lambda d: _narrow(d), "train-00002.png of 400x4 pixels is too narrow: the network gets"),
    "other classes in val": (lambda d: _rename_class(d), "and 'disc' is not among the model's"),
}


def _narrow(dataset: Path) -> None:
    Image.new("RGB", (400, 4)).save(dataset / "train/train-00002.png")
    path = dataset / "annotations" / "instances_train.json"
    raw = json.loads(path.read_text())
    raw["images"][2] |= {"width": 400, "height": 4}
    path.write_text(json.dumps(raw))


def _rename_class(dataset: Path) -> None:
    path = dataset / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"circle"', '"disc"'))


@pytest.mark.parametrize(("spoil", "sentence"), BAD_DATA.values(), ids=BAD_DATA)
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_gets_one_sentence(
    dataset_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], spoil: Any, sentence: str, workers: int
) -> None:
    spoil(dataset_dir)
    arguments = [*TINY, "--workers", workers, "--dataset-dir", dataset_dir, "--output-dir", tmp_path / "run"]
    assert run_train(*arguments) == 2
    assert_one_sentence(capfd.readouterr().err, sentence)


def assert_one_sentence(stderr: str, sentence: str) -> None:
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert re.search(sentence, lines[0]), lines[0]


BAD_OPTIONS = {
    "unknown preset": (["--preset", "r5000"], "unknown preset 'r5000'; there are shapes, dc5-shapes, small, r50"),
    "no CUDA": (["--device", "cuda"], "--device cuda: this torch .* sees no CUDA device"),
    "no such device": (["--device", "gpu"], "--device must be cpu, cuda or cuda:N, got 'gpu'"),
    "nothing to resume": (["--resume", "--output-dir", "nowhere"], "nothing to resume, nowhere/last.pt does not exist"),
    "batch size auto": (["--batch-size", "auto", "--device", "cpu"], "--batch-size auto: it fills a GPU's memory"),
    "no runs": (["--resume"], "nothing to resume, no unfinished run in any folder of runs"),
    "missing checkpoint": (["--resume", "none.pt"], "checkpoint none.pt does not exist"),
    "missing weights": (["--preset", "shapes", "--weights", "none.pt"], "checkpoint none.pt does not exist"),
    "batch too large": (["--preset", "shapes", "--batch-size", "5000"], "4 images, fewer than the 5000 of one step"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_get_one_sentence(
    arguments: list[str],
    sentence: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "no CUDA" in sentence and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cond_detr.data.shapes.COUNTS", {"train": 4, "val": 2})
    assert run_train(*arguments) == 2
    assert_one_sentence(capfd.readouterr().err, sentence)


def test_resume_refuses_what_it_cannot_continue(
    finished: Path, dataset_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last, best = finished / "last.pt", finished / "best.pt"
    text, half = (tmp_path / name / "last.pt" for name in ("text", "half"))
    for path, content in ((text, b"not a checkpoint"), (half, last.read_bytes()[:5000])):
        path.parent.mkdir()
        path.write_bytes(content)
    stateless = tmp_path / "stateless/last.pt"
    stateless.parent.mkdir()
    stateless.write_bytes(best.read_bytes())
    for arguments, sentence in (
        (
            ["--resume", last],
            "nothing to resume, .* has finished 1 epochs; more of them with --epochs",
        ),
        (["--resume", last, "--preset", "r50"], "is of preset 'shapes', not 'r50'"),
        (["--resume", last, "--lr", "5"], "--lr differs from what"),
        (["--resume", best], "best.pt is not a run's last.pt"),
        (["--resume", stateless, "--device", "cpu"], "holds a model but no training state"),
        (["--resume", last, "--weights", best], "exclude each other"),
        (["--resume", text], "checkpoint .*text/last.pt cannot be read"),
        (["--resume", half], "checkpoint .*half/last.pt cannot be read"),
        (
            [*TINY, "--dataset-dir", dataset_dir, "--output-dir", finished],
            "already holds a run; continue it with --resume",
        ),
    ):
        capfd.readouterr()
        assert run_train(*arguments) == 2, arguments
        assert_one_sentence(capfd.readouterr().err, sentence)


def test_resume_refuses_other_data(dataset_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    process = start_train(*TINY, "--dataset-dir", dataset_dir, "--epochs", 1000, "--output-dir", folder)
    wait_for_epoch(process, folder, 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    for split in ("train", "val"):
        path = dataset_dir / "annotations" / f"instances_{split}.json"
        path.write_text(path.read_text().replace('"circle"', '"disc"'))
    assert run_train("--resume", folder / "last.pt", "--device", "cpu") == 2
    assert_one_sentence(capfd.readouterr().err, "was trained with other classes")


@pytest.mark.parametrize(
    "arguments",
    [["--dropout", "5"], ["--lr", "-1"], ["--lr", "nan"], ["--epochs", "0"], ["--seed", "-1"], ["--batch-size", "x"]],
    ids=" ".join,
)
def test_options_out_of_range(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_train(*arguments) == 2
    assert f"argument {arguments[0]}: expected a" in capfd.readouterr().err


def test_learning_rate_schedules() -> None:
    """The paper drops at 40 of 50, 60 of 75 and 80 of 108 epochs."""
    for arguments, epochs, drop in (
        ([], 50, 40),
        (["--epochs", "75"], 75, 60),
        (["--epochs", "75", "--lr-drop", "0.4"], 75, 30),
    ):
        options = vars(train.parser().parse_args(["--preset", "r50", *arguments]))
        settings = train.new_config(options).train
        factors = [lr_factor(settings, epoch * 7, epochs * 7) for epoch in range(epochs)]
        assert factors == [1.0] * drop + [0.1] * (epochs - drop)
    options = vars(train.parser().parse_args(["--preset", "r50", "--epochs", "108", "--lr-drop", "80"]))
    settings = train.new_config(options).train
    assert [lr_factor(settings, epoch * 7, 108 * 7) for epoch in range(108)] == [1.0] * 80 + [0.1] * 28


def test_weights_of_another_architecture(dataset_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pt")
    arguments = [*TINY, "--dataset-dir", dataset_dir, "--weights", tmp_path / "other.pt"]
    assert run_train(*arguments, "--output-dir", tmp_path / "run") == 2
    assert_one_sentence(capfd.readouterr().err, "other.pt are of another architecture: no tensor fits this model")


def test_evaluation_refuses_a_changed_architecture(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = torch.load(finished / "best.pt", weights_only=True)
    content["config"]["model"]["d_model"] = 128
    torch.save(content, finished / "changed.pt")
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main, ["--checkpoint", str(finished / "changed.pt"), "--device", "cpu"])
    assert stop.value.code == 2
    assert_one_sentence(capfd.readouterr().err, "is of another architecture: .* tensors differ")


def test_loss_that_is_no_number_stops_the_run(
    dataset_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--dataset-dir", dataset_dir, "--epochs", 2, "--lr", "1e30", "--backbone-lr", "1e30"]
    assert run_train(*arguments, "--output-dir", tmp_path / "run") == 2
    warning, *error = capfd.readouterr().err.splitlines()
    assert re.match(r"warning: predictions that are not finite .* for train-\d+\.png", warning)
    assert_one_sentence("\n".join(error), "the loss is nan in epoch 1, by step 2; lower --lr .* says$")
    state = tmp_path / "run" / "not_finite.pt"
    assert state.exists()
    assert replay.main([str(state), "--device", "cpu"]) == 0
    found = capfd.readouterr().out.splitlines()
    assert found[0] == "epoch 1, step 2 of 6"
    assert found[1].startswith("images      train-")
    assert "loss                nan" in found
    assert re.fullmatch(r"first not finite: the output of backbone\S* \(\w+\), whose inputs are finite", found[-1])


def test_a_training_that_is_fine_is_repeated(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = torch.load(finished / "last.pt", weights_only=True)
    content["config"]["train"]["epochs"] += 1
    torch.save(content, finished / "earlier.pt")
    capfd.readouterr()
    assert replay.main([str(finished / "earlier.pt"), "--device", "cpu", "--steps", "2"]) == 1
    assert capfd.readouterr().out == "all losses and gradients of 2 steps are finite\n"
