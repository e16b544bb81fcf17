"""Weights of other implementations: read as detectors, and written back as they were."""

import json
import os
import pickle
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ConditionalDetrForObjectDetection, DetrForObjectDetection

from cond_detr import DETR, ConditionalDETR, Detector, InputError, cli, preset
from cond_detr.attention_maps import __main__ as attention_maps
from cond_detr.classes import UNUSED, Classes
from cond_detr.config import configure
from cond_detr.convert import __main__ as convert
from cond_detr.evaluate import __main__ as evaluate
from cond_detr.models.model import new_network
from cond_detr.predict import __main__ as predict
from cond_detr.presets import as_detr
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.foreign import open_checkpoint
from cond_detr.weights.naming import LAYOUTS, from_ours, to_ours
from tests.cond_detr.test_parity import padded_batch, transformers_detr, transformers_model

SMALL = preset("shapes")
R50 = preset("r50")


def run_convert(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(convert.main, [str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@torch.no_grad()
@pytest.mark.parametrize("name", ["r50", "r101", "dc5-r50"])
def test_a_file_of_the_transformers_package_and_back(name: str, tmp_path: Path) -> None:
    theirs = transformers_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    assert run_convert(file, tmp_path / "ours.safetensors", "--preset", name) == 0
    model = ConditionalDETR.from_checkpoint(tmp_path / "ours.safetensors")
    assert model.config.preset == name
    images, padding = padded_batch()
    want = theirs(pixel_values=images, pixel_mask=(~padding).long())
    torch.testing.assert_close(model.network(images, padding).logits[-1], want.logits, rtol=0, atol=1e-4)
    if name == "r101":  # the way back takes long, and is that of r50
        return
    if model.config.model.dilation:  # they dilate the backbones of timm only
        assert run_convert(tmp_path / "ours.safetensors", tmp_path / "back", "--to", "transformers") == 2
        assert run_convert(tmp_path / "ours.safetensors", tmp_path / "back", "--to", "transformers-timm") == 0
        written = json.loads((tmp_path / "back/config.json").read_text())
        assert (written["backbone"], written["use_timm_backbone"], written["dilation"]) == ("resnet50", True, True)
        return
    assert run_convert(tmp_path / "ours.safetensors", tmp_path / "back", "--to", "transformers") == 0
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == file.read_bytes()
    again = ConditionalDetrForObjectDetection.from_pretrained(tmp_path / "back").eval()
    got = again(pixel_values=images, pixel_mask=(~padding).long())
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.pred_boxes, want.pred_boxes, rtol=0, atol=1e-5)


def test_n10_presets_that_they_cannot_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ConditionalDETR.from_preset("shapes", 2).save(tmp_path / "ours.pt")
    for layout in ("transformers", "transformers-timm"):
        assert run_convert(tmp_path / "ours.pt", tmp_path / "theirs", "--to", layout) == 2
        assert "has no backbone resnet6, the presets' for training from scratch" in capsys.readouterr().err
        assert run_convert(tmp_path / "ours.pt", tmp_path / "theirs.pt", "--to", layout) == 2
        assert "should be a folder" in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def test_n10_class_names_and_sizes_go_along(tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("r50", 2, num_queries=7, image_size=320, decoder_layers=1, encoder_layers=1)
    model.classes = Classes(("cat", "猫"), (1, 2))
    model.save(tmp_path / "ours.pt")
    assert run_convert(tmp_path / "ours.pt", tmp_path / "theirs", "--to", "transformers") == 0
    theirs = ConditionalDetrForObjectDetection.from_pretrained(tmp_path / "theirs")
    assert theirs.config.id2label == {0: "cat", 1: "猫"}
    assert (theirs.config.num_queries, theirs.config.decoder_layers) == (7, 1)
    sizes = json.loads((tmp_path / "theirs/preprocessor_config.json").read_text())["size"]
    assert sizes == {"shortest_edge": 320, "longest_edge": 533}


def test_their_plain_detr_is_recognised(tmp_path: Path) -> None:
    theirs = transformers_detr()
    theirs.save_pretrained(tmp_path)
    model = Detector.from_checkpoint(tmp_path / "model.safetensors")
    assert isinstance(model, DETR)
    assert run_convert(tmp_path / "model.safetensors", tmp_path / "back", "--to", "transformers") == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    DetrForObjectDetection.from_pretrained(tmp_path / "back")


@pytest.mark.parametrize("kind", ["conditional-detr", "detr"])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS["detr"] if name != "torchvision"])
def test_every_layout_names_every_tensor(kind: str, layout: str) -> None:
    ours = new_network(as_detr(R50) if kind == "detr" else R50, 7).state_dict()
    theirs = from_ours(ours, kind, layout)
    assert not theirs.keys() & (ours.keys() - {"query_embed.weight", "input_proj.weight"}) - {"input_proj.bias"}
    again = to_ours(theirs)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("make", [lambda: R50, lambda: as_detr(R50)], ids=["conditional-detr", "detr"])
def test_a_file_of_the_authors_and_back(make: object, tmp_path: Path) -> None:
    """With the command line that theirs carry, and COCO's 91 numbers."""
    config = make()  # type: ignore[operator]
    network = new_network(config, len(Classes.coco()))
    state = from_ours(network.state_dict(), config.model.kind, "original")
    torch.save({"model": state, "epoch": 49, "args": Namespace(lr=1e-4)}, tmp_path / "theirs.pth")
    again = Detector.from_checkpoint(tmp_path / "theirs.pth")
    assert type(again.network) is type(network)
    assert type(again) is (DETR if config.model.kind == "detr" else ConditionalDETR)
    assert again.classes.names[18] == "dog"
    assert again.classes.names.count(UNUSED) == 11
    assert run_convert(tmp_path / "theirs.pth", tmp_path / "ours.pt") == 0
    assert run_convert(tmp_path / "ours.pt", tmp_path / "back.pth", "--to", "original") == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_folder_with_such_files_is_not_written_to(name: str, tmp_path: Path) -> None:
    """The source may be one of them, or a run's settings."""
    config = configure(preset("shapes"), {"backbone": "resnet18", "encoder_layers": 1, "decoder_layers": 1})
    model = ConditionalDETR.new(config, Classes(("a",), (1,)))
    source = tmp_path / "a.pt"
    Checkpoint(source, model.config, model.classes, model.network.state_dict()).save()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("somebody's")
    assert run_convert(source, tmp_path / "out", "--to", "transformers") == 2
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "somebody's")]


def test_class_names_beside_the_file(tmp_path: Path) -> None:
    config = replace(R50, model=replace(R50.model, num_queries=10))
    state = from_ours(new_network(config, 2).state_dict(), "conditional-detr", "transformers-timm")
    torch.save(state, tmp_path / "weights.pt")
    assert open_checkpoint(str(tmp_path / "weights.pt")).classes.names == ("class 0", "class 1")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    assert open_checkpoint(str(tmp_path / "weights.pt")).classes == Classes(("cat", "dog"), (0, 1))
    annotations = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
        "annotations": [],
        "categories": [{"id": 7, "name": "owl"}, {"id": 3, "name": "bat"}],
    }
    (tmp_path / "names.json").write_text(json.dumps(annotations))
    target = tmp_path / "ours.safetensors"
    assert run_convert(tmp_path / "weights.pt", target, "--classes", tmp_path / "names.json") == 0
    assert Checkpoint.load(target).classes == Classes(("bat", "owl"), (3, 7))


def test_a_safetensors_file_of_ours_detects_as_the_original(tmp_path: Path) -> None:
    model = ConditionalDETR.new(SMALL, Classes(("cat", "dog"), (7, 3)))
    state = model.network.state_dict()
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    Checkpoint(tmp_path / "x.pt", SMALL, model.classes, state, average=average).save()
    assert run_convert(tmp_path / "x.pt", tmp_path / "x.safetensors") == 0
    ours, theirs = (Detector.from_checkpoint(tmp_path / name) for name in ("x.pt", "x.safetensors"))
    assert theirs.config == SMALL
    assert theirs.classes == model.classes
    image = torch.ones(1, 3, 64, 64)
    for a, b in zip(ours.network(image), theirs.network(image), strict=True):
        assert torch.equal(a, b)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pt")
    Path("legacy.pt").write_bytes(pickle.dumps({"model": Evil()}))
    for name, why in (("evil.pt", "is no checkpoint of a detector"), ("legacy.pt", "cannot be read")):
        with pytest.raises(InputError, match=f"{name} {why}"):
            Detector.from_checkpoint(name)
    assert not Path("executed").exists()


def test_damaged_files(tmp_path: Path) -> None:
    model = ConditionalDETR.new(SMALL, Classes.numbered(2))
    for name in ("good.pt", "good.safetensors"):
        Checkpoint(tmp_path / name, SMALL, model.classes, model.network.state_dict()).save()
        content = (tmp_path / name).read_bytes()
        for what, part in (("half", content[: len(content) // 2]), ("empty", b""), ("text", b"no weights" * 99)):
            path = tmp_path / name.replace("good", what)
            path.write_bytes(part)
            with pytest.raises(InputError, match=f"checkpoint {path} cannot be read: .") as error:
                Detector.from_checkpoint(path)
            assert "\n" not in str(error.value)
    with zipfile.ZipFile(tmp_path / "good.pt") as stored:
        parts = {entry.filename: stored.read(entry) for entry in stored.infolist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for part, content in parts.items():
            bomb.writestr(part, content)
    with pytest.raises(InputError, match="is compressed, which torch never does"):
        Detector.from_checkpoint(tmp_path / "bomb.pt")


def test_what_is_no_detector(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"resnet\.pth is no checkpoint of a detector: it has no object queries"):
        Detector.from_checkpoint(tmp_path / "resnet.pth")
    small = new_network(SMALL, 2)
    torch.save(from_ours(small.state_dict(), "conditional-detr", "original"), tmp_path / "small.pth")
    with pytest.raises(InputError, match=r"the architecture of none of r50, r101: \d+ tensors differ"):
        Detector.from_checkpoint(tmp_path / "small.pth")
    model = Detector.from_checkpoint(tmp_path / "small.pth", preset_name="shapes")
    assert model.config == SMALL
    assert run_convert(tmp_path / "small.pth", tmp_path / "x.onnx") == 2


def test_an_ablation_is_not_cut_to_fit(tmp_path: Path) -> None:
    config = replace(R50, model=replace(R50.model, reference_point="learned"))
    state = new_network(config, 2).state_dict()
    assert "backbone.conv1.weight" in state
    assert "conv1.weight" in from_ours(state, "conditional-detr", "torchvision")
    with pytest.raises(InputError, match=r"format original has no name for reference_point\.points"):
        from_ours(state, "conditional-detr", "original")


def test_urls_reach_the_download(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are: as a path one of the slashes would be lost."""
    asked = []

    def download(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("cond_detr.weights.cache.fetch", download)
    url = "https://example.org/model.safetensors"
    for command, rest in ((predict, ["x.png", "--output-dir", "out"]), (evaluate, []), (attention_maps, [])):
        rest = rest or ["--output-dir", "out"]
        with pytest.raises(SystemExit):
            cli.run(command.main, ["--checkpoint", url, "--device", "cpu", *rest])
        assert f"weights {url} cannot be downloaded: no network" in capsys.readouterr().err
    assert asked == [url] * 3
