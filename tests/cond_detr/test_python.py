"""A detector in Python: built, trained, used and exported by its methods."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import DETR, ConditionalDETR, InputError, draw_detections, train
from cond_detr.checkpoints import Checkpoint
from cond_detr.export import Exported

pytestmark = pytest.mark.usefixtures("one_thread")
FAST = {"epochs": 1, "batch_size": 8, "device": "cpu"}
SMALL = {"decoder_layers": 1, "num_queries": 10}


def log(run: Path) -> list[dict[str, float]]:
    """Without what depends on the machine."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in {"seconds", "images_per_second"}} for record in records]


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
    assert not model.training
    best = Checkpoint.load(tmp_path / "b/best.pt").model
    assert all(torch.equal(best[name], tensor) for name, tensor in model.state_dict().items())


def test_fine_tuning_adopts_the_classes(dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ConditionalDETR.from_preset("shapes", **SMALL)
    assert len(model.classes) == 91
    model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "a", **FAST)
    assert "a new head for 6 classes" in capsys.readouterr().out
    names = model.classes.names
    assert set(names) == {
        c["name"] for c in json.loads((dataset_dir / "annotations/instances_val.json").read_text())["categories"]
    }
    head = model.class_head
    again = ConditionalDETR.from_checkpoint(tmp_path / "a/best.pt")
    again.train(epochs=1, lr=0.0, backbone_lr=0.0, image_size=96, output_dir=tmp_path / "b", device="cpu")
    assert "new head" not in capsys.readouterr().out
    assert again.config.data.image_size == 96
    assert again.config.data.dataset_dir == str(dataset_dir)
    assert torch.allclose(again.class_head.weight, head.weight, rtol=1e-2)  # but for the decay


def test_without_a_data_set_it_is_the_mode() -> None:
    model = DETR.from_preset("shapes", 3)
    assert model.train().training
    assert not model.train(False).training
    assert not model.eval().decoder.training
    assert model.train(mode=True).backbone.training


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; there are accumulate, amp"),
        ({"num_queries": 3}, "unknown setting 'num_queries'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
        ({"lr": "fast"}, "lr must be a number of at least 0, got 'fast'"),
        ({"lr": float("nan")}, "lr must be a number of at least 0, got nan"),
        ({"ema": 1}, "ema must be a number of at least 0 and below 1, got 1"),
        ({"amp": "fp16"}, "amp must be one of off, bf16, got 'fp16'"),
        ({"compile": 1}, "compile must be True or False, got 1"),
        ({"image_size": "large"}, "image_size must be a whole number of at least 1, got 'large'"),
        ({"lr_drop": "late"}, "lr_drop must be a whole number of at least 0, got 'late'"),
        ({"batch_size": "auto", "device": "cpu"}, "--batch-size auto: it fills a GPU's memory"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
        ({"device": "tpu"}, "must be cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], sentence: str) -> None:
    model = ConditionalDETR.from_preset("shapes", 3)
    before = model.config
    with pytest.raises(InputError, match=sentence):
        model.train(**settings)
    assert model.config == before


def test_settings_of_a_preset() -> None:
    assert ConditionalDETR.from_preset("shapes", 3, projection="block").config.model.projection == "block"
    for settings, sentence in (
        ({"projection": "blok"}, "projection must be one of identity, scalar"),
        ({"dropout": 1.0}, "dropout must be a number of at least 0 and below 1, got 1"),
        ({"model": "detr"}, "unknown setting 'model'"),
    ):
        with pytest.raises(InputError, match=sentence):
            ConditionalDETR.from_preset("shapes", 3, **settings)


def test_export_and_drawing(tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", 3, **SMALL).eval()
    model.export(tmp_path / "model.pt2")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    [exported] = Exported(tmp_path / "model.pt2").predict([tmp_path / "image.png"], threshold=0)
    found = model.predict(tmp_path / "image.png", threshold=0)
    assert torch.allclose(exported.scores, found.scores, atol=1e-5)
    drawn = draw_detections(tmp_path / "image.png", found)
    assert np.array_equal(drawn, draw_detections(image, found))
    assert drawn.size == (320, 366)
