"""fp32 products on CUDA: TF32 unless it is said otherwise, and torch's own settings as before afterwards."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from cond_detr import ConditionalDETR, cli
from cond_detr.classes import Classes
from cond_detr.data import shapes
from cond_detr.evaluate import __main__ as evaluate
from cond_detr.precision import fp32_products
from cond_detr.predict import __main__ as predict
from cond_detr.presets import preset
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr_kernels.conditional_attention.launch import dot_precision

CUDA = torch.device("cuda")


def settings() -> tuple[str, bool, str]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, dot_precision(torch.float32)


@pytest.mark.parametrize(("name", "kernels"), [("high", "tf32"), ("highest", "ieee")])
def test_sets_everything_and_takes_it_back(name: str, kernels: str) -> None:
    before = settings()
    with contextlib.suppress(RuntimeError), fp32_products(name, CUDA):
        inside = settings()
        raise RuntimeError
    assert inside == (name, name == "high", kernels)
    assert settings() == before
    with fp32_products(name, torch.device("cpu")):
        assert settings() == before


def test_training_uses_it_by_default() -> None:
    assert all(preset(name).train.matmul_precision == "high" for name in ("shapes", "small", "r50", "dc5-r101"))
    model = ConditionalDETR.from_preset("shapes", matmul_precision="highest")
    assert model.config.train.matmul_precision == "highest"


@pytest.mark.parametrize(("options", "wanted"), [([], "high"), (["--matmul-precision", "highest"], "highest")])
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_commands_take_the_checkpoints_or_the_option(
    command: str, options: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(shapes.make_split("val", 1)[0].classes.names)
    config = ConditionalDETR.from_preset("shapes", decoder_layers=1, num_queries=5).config
    model = ConditionalDETR.new(config, Classes(names, tuple(range(len(names)))))
    Checkpoint(tmp_path / "a.pt", model.config, model.classes, model.network.state_dict()).save()
    asked: list[Any] = []

    def seen(name: str, device: torch.device) -> Any:
        asked.append(name)
        raise InterruptedError

    monkeypatch.setattr("cond_detr.models.inference.fp32_products", seen)
    arguments = {
        "predict": ["examples/shapes.jpg", "--output-dir", str(tmp_path / "out")],
        "evaluate": ["--output-dir", str(tmp_path / "out")],
    }[command]
    main = {"predict": predict.main, "evaluate": evaluate.main}[command]
    with pytest.raises(InterruptedError):
        main([*arguments, "--checkpoint", str(tmp_path / "a.pt"), "--device", "cpu", *options])
    assert asked == [wanted]


def test_unknown_values_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(predict.main, ["x.jpg", "--checkpoint", "x", "--output-dir", "x", "--matmul-precision", "tf32"])
    assert stop.value.code == 2
    assert "invalid choice: 'tf32'" in capsys.readouterr().err


@torch.no_grad()
def test_a_network_on_the_meta_device_has_shapes() -> None:
    """Counters of parameters and of multiply-adds ask for that; autocast refuses that device."""
    network = ConditionalDETR.from_preset("shapes", 3).network.to("meta").eval()
    logits, boxes = network(torch.empty(2, 3, 64, 96, device="meta"))
    assert (logits.shape, boxes.shape) == ((3, 2, 25, 3), (3, 2, 25, 4))
