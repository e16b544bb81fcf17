"""A detector in Python: built, trained, used and exported by its methods."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import DETR, ConditionalDETR, Detector, InputError, draw_detections, preset
from cond_detr.classes import Classes
from cond_detr.export import Exported
from cond_detr.models.inference import inference
from cond_detr.train import __main__ as train
from cond_detr.weights.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINED = Path(__file__).resolve().parents[2] / "benchmarks/results/cpu/dc5_shapes.safetensors"
FAST = {"epochs": 1, "batch_size": 8, "device": "cpu"}
SMALL = {"decoder_layers": 1, "num_queries": 10}


@contextmanager
def unchanged(model: Detector) -> Iterator[None]:
    """Sees that nothing of a model changes."""
    before = copy.deepcopy(model)
    yield
    after = (model.config, model.classes, model.network.training)
    assert after == (before.config, before.classes, before.network.training)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.network.state_dict().items())


def log(run: Path) -> list[dict[str, float]]:
    """Without what depends on the machine."""
    of_the_machine = {"seconds", "waiting_seconds", "evaluation_seconds", "images_per_second"}
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in of_the_machine} for record in records]


def test_training_is_that_of_the_command(dataset_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # as the command does before it builds the model
    model = ConditionalDETR.from_preset("shapes", 6, fused_attn=True, **SMALL)
    returned = model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "a", lr=2e-3, **(FAST | {"epochs": 2}))
    options = ["--fused-attn", "--decoder-layers", "1", "--num-queries", "10", "--lr", "2e-3", "--preset", "shapes"]
    options += ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--workers", "0"]
    code = train.main([*options, "--dataset-dir", str(dataset_dir), "--output-dir", str(tmp_path / "b")])
    assert code == 0
    assert log(tmp_path / "a") == log(tmp_path / "b")
    assert len(log(tmp_path / "a")) == 2
    assert (tmp_path / "a/config.json").read_text() == (tmp_path / "b/config.json").read_text()
    assert returned is model
    assert not model.network.training
    best = Checkpoint.load(tmp_path / "b/best.pt").model
    assert all(torch.equal(best[name], tensor) for name, tensor in model.network.state_dict().items())


def test_fine_tuning_adopts_the_classes(dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ConditionalDETR.from_preset("shapes", **SMALL)
    assert len(model.classes) == 91
    model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "a", **FAST)
    assert "a new head for 6 classes" in capsys.readouterr().out
    names = model.classes.names
    assert set(names) == {
        c["name"] for c in json.loads((dataset_dir / "annotations/instances_val.json").read_text())["categories"]
    }
    head = model.network.class_head
    again = ConditionalDETR.from_checkpoint(tmp_path / "a/best.pt")
    again.train(epochs=1, lr=0.0, backbone_lr=0.0, image_size=96, output_dir=tmp_path / "b", device="cpu")
    assert "new head" not in capsys.readouterr().out
    assert again.config.data.image_size == 96
    assert again.config.data.dataset_dir == str(dataset_dir)
    assert torch.allclose(again.network.class_head.weight, head.weight, rtol=1e-2)  # but for the decay


def test_a_head_is_kept_for_the_same_names_only() -> None:
    names = ("cat", "dog", "bird")
    model = ConditionalDETR.new(preset("shapes"), Classes(names, (1, 2, 3)))
    head = model.network.class_head
    assert model.adopt(Classes(names, (7, 8, 9)))
    assert model.network.class_head is head
    assert model.classes.category_ids == (7, 8, 9)
    assert not model.adopt(Classes(("dog", "cat", "bird"), (1, 2, 3)))
    assert model.network.class_head is not head


def test_weights_for_other_classes(tmp_path: Path) -> None:
    trained = ConditionalDETR.new(preset("shapes"), Classes(("a", "b"), (1, 2)))
    average = {name: tensor + 1 for name, tensor in trained.network.state_dict().items()}
    path = tmp_path / "last.pt"
    Checkpoint(path, trained.config, trained.classes, trained.network.state_dict(), average=average).save()
    same = ConditionalDETR.new(preset("shapes"), Classes(("a", "b"), (5, 6)))
    assert same.load_weights(path).missing == []
    assert torch.equal(same.network.class_head.weight, average["class_head.weight"])
    other = ConditionalDETR.new(preset("shapes"), Classes(("b", "a"), (5, 6)))
    report = other.load_weights(path)
    assert report.reshaped == report.missing == ["class_head.weight", "class_head.bias"]
    assert ConditionalDETR.from_preset("shapes", 2).load_weights(path).missing == []


def test_a_failed_training_changes_nothing(dataset_dir: Path, tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", **SMALL)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/last.pt").touch()
    with unchanged(model), pytest.raises(InputError, match="already holds a run"):
        model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "taken", **FAST)
    with unchanged(model), pytest.raises(InputError, match="fewer than the 1000 of one step"):
        model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "new", **(FAST | {"batch_size": 1000}))
    next((dataset_dir / "train").iterdir()).unlink()
    with unchanged(model), pytest.raises(InputError, match="does not exist"):
        model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "newer", **FAST)


ON_EACH_PROCESS = """
import os, sys
import torch
from cond_detr import ConditionalDETR, InputError, distributed
from cond_detr.train import run

def launch(model, *rest):
    total = sum(float(t.double().abs().sum()) for t in model.network.state_dict().values())
    # as many rows as the rank says
    rows = torch.full((distributed.rank() + 1, 2), total, dtype=torch.float64)
    sums = distributed.gather_rows(rows, torch.device("cpu"))
    if distributed.rank() == 0:  # what both print may be mixed
        print("processes", sums[:, 0].tolist(), flush=True)
    raise InputError("enough")

run.launch = launch
torch.manual_seed(int(os.environ["RANK"]))
try:
    ConditionalDETR.from_preset("shapes", 6).train(dataset_dir=sys.argv[1], device="cpu", epochs=1)
except InputError as error:
    assert str(error) == "enough"
"""


def test_threads_wait_for_each_other(dataset_dir: Path) -> None:
    """Whoever came second would end with the network in training mode while the first is still at it."""
    model = ConditionalDETR.from_checkpoint(TRAINED)
    model.network.train()
    alone = model.evaluate(dataset_dir, workers=0).metrics
    second = threading.Thread(target=lambda: model.predict(np.zeros((64, 64, 3), np.uint8)))
    seen: list[tuple[bool, bool]] = []

    def busy(network: torch.nn.Module, _: object) -> None:
        if threading.current_thread() is not second and not seen:
            second.start()
            second.join(timeout=1)
            seen.append((second.is_alive(), network.training))

    hook = model.network.register_forward_pre_hook(busy)
    assert model.evaluate(dataset_dir, workers=0).metrics == alone
    second.join()
    hook.remove()
    assert seen == [(True, False)]
    assert model.network.training
    assert model.network.decoder.layers[0].training


def test_a_fork_does_not_wait_for_a_thread_that_it_lacks() -> None:
    model = ConditionalDETR.from_checkpoint(TRAINED)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with inference(model):
            inside.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        with inference(model):
            os._exit(0)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    leave.set()
    holder.join()
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_processes_begin_with_the_same_model(dataset_dir: Path, tmp_path: Path) -> None:
    """Each has built its own, from another seed."""
    (tmp_path / "each.py").write_text(ON_EACH_PROCESS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(tmp_path / "each.py"), str(dataset_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    [a, b, c] = json.loads(run.stdout.splitlines()[-1].removeprefix("processes "))
    assert a == b == c


def test_what_is_torchs_stays(dataset_dir: Path, tmp_path: Path) -> None:
    """Generators, choice of algorithms, and threads that get no signals."""
    model = ConditionalDETR.from_preset("shapes", 6, **SMALL)
    generator = torch.get_rng_state()

    def train_in_thread() -> None:
        model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "run", deterministic=True, **FAST)

    thread = threading.Thread(target=train_in_thread)
    thread.start()
    thread.join()
    assert (tmp_path / "run/best.pt").exists()
    assert len(log(tmp_path / "run")) == 1
    assert torch.equal(torch.get_rng_state(), generator)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_mode_is_the_networks() -> None:
    """As of every module; the detector's ``train`` is a training, and takes no mode."""
    model = DETR.from_preset("shapes", 3)
    assert model.network.train().training
    assert not model.network.train(False).training
    assert not model.network.eval().decoder.training
    assert model.network.train(mode=True).backbone.training
    for mode in (False, "DIR"):
        with unchanged(model), pytest.raises(InputError, match=f"train takes settings by name, .* got {mode!r}"):
            model.train(mode)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epoch": 3}, "unknown setting 'epoch' for train; did you mean epochs"),
        ({"num_queries": 3}, "unknown setting 'num_queries'"),
        ({"classification": "softmax"}, "`classification` belongs to the model"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "`epochs` must be a whole number of at least 1, got 1.5"),
        ({"lr": "fast"}, "`lr` must be a number of at least 0, got 'fast'"),
        ({"lr": float("nan")}, "`lr` must be a number of at least 0, got nan"),
        ({"ema": 1}, "`ema` must be a number of at least 0 and below 1, got 1"),
        ({"amp": "fp16"}, "`amp` must be one of off, bf16, got 'fp16'"),
        ({"compile": 1}, "`compile` must be True or False, got 1"),
        ({"image_size": "large"}, "`image_size` must be a whole number of at least 1 and below 8192, got 'large'"),
        ({"lr_drop": "late"}, "`lr_drop` must be a number of at least 0, got 'late'"),
        ({"batch_size": "auto", "device": "cpu"}, "`batch_size` auto: it fills a GPU's memory"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
        ({"device": "tpu"}, "`device` must be cpu, cuda or cuda:N, got 'tpu'"),
        ({"epochs": 1, "mode": False}, "unknown setting 'mode'"),
        ({"epochs": 1, "mode": "DIR"}, "unknown setting 'mode'"),
        ({"mode": "DIR"}, "unknown setting 'mode'"),
        ({"workers": -1}, "`workers` must be a whole number of at least 0 and below 1024, got -1"),
        ({"output_dir": 3}, "`output_dir` must be a path or text, got 3"),
        ({"tensorboard": "yes"}, "`tensorboard` must be True or False, got 'yes'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], sentence: str) -> None:
    model = ConditionalDETR.from_preset("shapes", 3)
    with unchanged(model), pytest.raises(InputError, match=sentence):
        model.train(**settings)


def test_settings_of_a_preset() -> None:
    assert ConditionalDETR.from_preset("shapes", 3, projection="block").config.model.projection == "block"
    for settings, sentence in (
        ({"projection": "blok"}, "`projection` must be one of identity, scalar"),
        ({"dropout": 1.0}, "`dropout` must be a number of at least 0 and below 1, got 1"),
        ({"model": "detr"}, "unknown setting 'model'"),
        ({"kind": "detr"}, "is of a DETR, not of a ConditionalDETR"),
    ):
        with pytest.raises(InputError, match=sentence):
            ConditionalDETR.from_preset("shapes", 3, **settings)
    for num_classes in (0, -1, "3"):
        with pytest.raises(InputError, match="num_classes must be a whole number of at least 1"):
            ConditionalDETR.from_preset("shapes", num_classes)  # type: ignore[arg-type]


def test_prediction() -> None:
    """Modes stay, the result can be worked with, and what is no image or no score is refused."""
    model = ConditionalDETR.from_preset("shapes", 3, **SMALL)
    network = model.network.train()
    network.backbone.eval()
    image = np.zeros((80, 70, 3), np.uint8)
    found = model.predict(image, threshold=0)
    found.boxes.clamp_(min=0)
    assert network.training
    assert network.decoder.training
    assert not network.backbone.training
    model.trained = {"threshold": 0.9}
    assert [len(model.predict(image)), len(model.predict(image, 0.0))] == [0, len(found)]
    for unusable in (2.0, "0.9", True):
        model.trained = {"threshold": unusable}
        assert model.threshold == 0.3
    for threshold in (50, -1, float("nan"), "0.5"):
        with pytest.raises(InputError, match=r"threshold must be a score in \[0, 1\]"):
            model.predict(image, threshold)  # type: ignore[arg-type]
    for no_image, what in (([None], "NoneType"), ([3], "int")):
        with pytest.raises(InputError, match=f"an image must be a path, an https address, .*, got {what}"):
            model.predict(no_image)  # type: ignore[arg-type]
    network.bfloat16()
    with pytest.raises(InputError, match=r"weights \(autocast makes it faster\), got torch.bfloat16"):
        model.predict(image)


def test_pil_images_are_turned_as_files_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=tag)
    model = ConditionalDETR.from_preset("shapes", 3, **SMALL)
    from_file, opened = model.predict([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")], threshold=0)
    assert torch.equal(from_file.boxes, opened.boxes)
    upright = model.predict(np.rot90(pixels, -1).copy(), threshold=0)
    assert torch.equal(from_file.boxes, upright.boxes)


def test_export_and_drawing(tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", 3, **SMALL)
    model.network.eval()
    model.export(tmp_path / "model.pt2")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    exported = Exported(tmp_path / "model.pt2", trust_code=True).predict(tmp_path / "image.png", threshold=0)
    found = model.predict(tmp_path / "image.png", threshold=0)
    assert torch.allclose(exported.scores, found.scores, atol=1e-5)
    drawn = draw_detections(tmp_path / "image.png", found)
    assert np.array_equal(drawn, draw_detections(image, found))
    assert drawn.size == (320, 366)
