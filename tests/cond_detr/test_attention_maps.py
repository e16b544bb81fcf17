"""The attention maps are those that the model uses, and are measured as they should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cond_detr import DETR, ConditionalDETR, Detector, InputError, cli
from cond_detr.attention_maps import __main__ as attention_maps
from cond_detr.attention_maps.maps import detection_maps, side_shares
from cond_detr.models.attention import split_heads
from cond_detr.weights.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(width: int = 80, height: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
@pytest.mark.parametrize("kind", [ConditionalDETR, DETR])
@pytest.mark.parametrize("layer", [0, 1])
def test_combined_weights_are_those_in_use(kind: type[Detector], layer: int) -> None:
    """Weighing the values with them gives what the layer's attention gives."""
    network = kind.from_preset("shapes", 3).network.eval()
    for parameter in network.decoder.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    cross_attn = network.decoder.layers[layer].cross_attn  # type: ignore[union-attr, index]
    kept = []
    cross_attn.register_forward_hook(lambda _, arguments, output: kept.append((arguments, output)))
    padding = torch.zeros(2, 56, 80, dtype=torch.bool)
    padding[1, :, 40:] = True
    network(torch.randn(2, 3, 56, 80), padding)
    arguments, output = kept[0]
    maps = cross_attn.maps(*arguments)
    memory = arguments[-3]
    value = split_heads(cross_attn.v_proj(memory), cross_attn.num_heads)
    want = cross_attn.out_proj((maps.combined @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(want, output, rtol=1e-4, atol=1e-5)
    for part in maps:
        torch.testing.assert_close(part.sum(-1), torch.ones(part.shape[:-1]))
        assert (part[1, ..., F.interpolate(padding[:, None].float(), size=(7, 10))[1, 0].flatten().bool()] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("silent", "other"), [("content", "spatial"), ("spatial", "content")])
def test_without_one_part_the_weights_are_those_of_the_other(layer: int, silent: str, other: str) -> None:
    network = ConditionalDETR.from_preset("shapes", 3).network.eval()
    cross_attn = network.decoder.layers[layer].cross_attn  # type: ignore[union-attr, index]
    names = [f"q_{silent}_proj", *(["q_pos_proj"] if layer == 0 and silent == "content" else [])]
    for name in names:
        for parameter in getattr(cross_attn, name).parameters():
            parameter.zero_()
    kept = []
    cross_attn.register_forward_pre_hook(lambda _, arguments: kept.append(arguments))
    network(torch.randn(2, 3, 56, 80))
    maps = cross_attn.maps(*kept[0])
    assert (maps.combined - 1 / 70).abs().max() > 1e-3  # not all positions alike
    torch.testing.assert_close(getattr(maps, silent), torch.full_like(maps.combined, 1 / 70))
    if layer > 0 or silent == "content":  # the first layer's content query also meets the spatial key
        torch.testing.assert_close(getattr(maps, other), maps.combined)


@pytest.mark.parametrize("kind", [ConditionalDETR, DETR])
def test_maps_of_detections(kind: type[Detector]) -> None:
    """No way to see where heads look: ConditionalDETR#4, #18, #20, detr#127."""
    model = kind.from_preset("shapes", 3)
    model.network.eval()
    found = detection_maps(model, picture(), count=4)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    (best,) = model.predict([picture()], threshold=0.0)
    assert found[0].name == best.names[0]
    torch.testing.assert_close(found[0].box * torch.tensor([80, 56, 80, 56]), best.boxes[0])
    assert found[0].spatial.shape == (model.config.model.num_heads, 6, 8)
    with pytest.raises(InputError, match=r"`layer` must be one of .* 0 to 2, got 7"):
        detection_maps(model, picture(), layer=7)


def test_shares_of_a_map_that_is_known() -> None:
    maps = torch.zeros(2, 8, 8)
    maps[0, :, 2] = 1 / 8  # a band in the third column, from .25 to .375
    maps[1, 5, :] = 1 / 8  # and in the sixth row, from .625 to .75
    box = torch.tensor([0.25, 0.25, 0.75, 0.75])  # a quarter of its size is .125
    shares = side_shares(maps, box)
    assert shares["left"].tolist() == pytest.approx([1.0, 0.25])
    assert shares["right"].tolist() == pytest.approx([0.0, 0.25])
    assert shares["top"].tolist() == pytest.approx([0.25, 0.0])
    assert shares["bottom"].tolist() == pytest.approx([0.25, 1.0])


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ConditionalDETR.from_preset("shapes", 3)
    Checkpoint(tmp_path / "x.pt", model.config, model.classes, model.network.state_dict()).save()
    picture().save(tmp_path / "photo.png")
    arguments = [tmp_path / "photo.png", "--checkpoint", tmp_path / "x.pt", "--output-dir", tmp_path / "out"]

    def run() -> Any:
        with pytest.raises(SystemExit) as stop:
            cli.run(attention_maps.main, [*map(str, arguments), "--detections", "2", "--device", "cpu"])
        return stop.value.code

    assert run() == 0
    drawn = sorted((tmp_path / "out").iterdir())
    assert len(drawn) == 2
    printed = capsys.readouterr().out
    for path in drawn:
        assert str(path) in printed
        with Image.open(path) as image:
            assert image.width > 800
    assert run() == 0  # its own are replaced
    picture().save(drawn[0])
    before = drawn[0].read_bytes()
    assert run() == 2
    assert drawn[0].read_bytes() == before
    assert f"{drawn[0]} is there already, and not of cond-detr" in capsys.readouterr().err
