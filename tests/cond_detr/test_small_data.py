"""What a little data needs: augmentation, frozen parts, an early end, and less memory for larger images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from cond_detr import ConditionalDETR, InputError
from cond_detr.config import DataConfig
from cond_detr.data import open_split
from cond_detr.data.augment import Annotated, Zoom, augment, draw_augmentation, recolour, zoom
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.images import GREY
from cond_detr.data.mosaic import cells, mosaic
from cond_detr.models.model import new_network
from cond_detr.models.recompute import set_recomputing
from cond_detr.presets import configured
from cond_detr.train.__main__ import main as train_main
from cond_detr.train.cuda_graphs import why_not
from cond_detr.train.freezing import PARTS, freeze
from cond_detr.train.optim import make_optimizer, set_lr
from cond_detr.weights.progress import is_over
from tests.cond_detr.conftest import SMALL, exit_code
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def marked(width: int = 40, height: int = 30) -> Annotated:
    """A black image with a white box and a red one, and where they are."""
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    pixels[:, 5:15, 8:20] = 255
    pixels[0, 20:28, 30:38] = 255
    boxes = np.array([[8, 5, 20, 15], [30, 20, 38, 28]], np.float32)
    return Annotated(pixels, boxes, np.array([0, 1]))


def assert_boxes_are_where_they_look(sample: Annotated) -> None:
    """Inside of each box the colour of its class, and none of it outside of all."""
    left = sample.pixels.clone()
    for (x1, y1, x2, y2), label in zip(sample.boxes, sample.labels, strict=True):
        if (x2 - x1) < 4 or (y2 - y1) < 4:
            continue
        inside = sample.pixels[
            :, round(float(y1)) + 1 : round(float(y2)) - 1, round(float(x1)) + 1 : round(float(x2)) - 1
        ]
        assert inside[0].float().mean() > 200
        assert (inside[1].float().mean() > 200) == (label == 0)
    for x1, y1, x2, y2 in sample.boxes:
        left[:, max(0, int(y1) - 1) : int(np.ceil(y2)) + 1, max(0, int(x1) - 1) : int(np.ceil(x2)) + 1] = 0
    assert left.max() <= GREY + 60


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.0, 1.4, 1.9])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.3, 0.9), (1.0, 1.0)])
def test_zoomed_boxes_stay_on_their_objects(factor: float, place: tuple[float, float]) -> None:
    sample = zoom(marked(), Zoom(factor, place), (80, 60))
    assert sample.size == (80, 60)
    assert_boxes_are_where_they_look(sample)
    if factor < 1:
        assert len(sample.boxes) == 2
        assert (sample.pixels == GREY).all(0).float().mean().item() == pytest.approx(1 - factor**2, abs=0.05)


@pytest.mark.parametrize(
    "factors", [(1.0, 1.0, 1.0), (0.6, 1.0, 1.0), (1.3, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.0, 0.3)], ids=str
)
def test_colours_as_pillow_changes_them(factors: tuple[float, float, float]) -> None:
    array = np.random.default_rng(0).integers(40, 200, (20, 30, 3), np.uint8)
    image = Image.fromarray(array)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        image = enhance(image).enhance(factor)
    got = recolour(torch.from_numpy(array).permute(2, 0, 1), *factors)
    assert (got.int() - torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).int()).abs().max() <= 2


def test_mosaics_hold_four_images_whole() -> None:
    sizes = [(40, 30)] * 4
    opened: list[tuple[int, tuple[int, int]]] = []

    def open_part(i: int, wanted: tuple[int, int]) -> Annotated:
        opened.append((i, wanted))
        return marked()

    for seed in range(20):
        sample = mosaic((100, 80), sizes, open_part, (seed,))
        assert sample.size == (100, 80)
        assert len(sample.boxes) == 8
        assert_boxes_are_where_they_look(sample)
    assert {i for i, _ in opened} == {0, 1, 2, 3}
    where = cells((100, 80), np.random.default_rng(3))
    assert sum(width * height for _, _, width, height in where) == 100 * 80


def test_what_is_off_draws_nothing() -> None:
    """The paper's augmentation stays the same to the last draw."""
    data = DataConfig()
    for seed in range(5):
        plain, more = np.random.default_rng(seed), np.random.default_rng(seed)
        drawn = draw_augmentation((640, 480), data, plain)
        wider = draw_augmentation((640, 480), DataConfig(zoom=0.5, colour=0.4), more)
        assert (wider.flip, wider.first_size, wider.crop, wider.size) == (
            drawn.flip,
            drawn.first_size,
            drawn.crop,
            drawn.size,
        )
        assert wider.zoom is not None
        assert 0.5 <= wider.zoom.factor <= 1.5
        assert wider.colours is not None
        assert all(0.6 <= factor <= 1.4 for factor in wider.colours)
    assert augment(marked(), draw_augmentation((40, 30), DataConfig(image_size=30, zoom=0.5), plain)).size


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), train=12, val=3)


def opened(data: Path, **settings: Any) -> CocoDataset:
    config = configured("shapes", {**settings, "dataset_dir": str(data)})
    return open_split(config.data, "train", 16, seed=3)


def test_samples_depend_on_seed_epoch_and_image_alone(data: Path) -> None:
    settings = {"mosaic": 0.5, "zoom": 0.3, "colour": 0.3, "augment": "paper"}
    first, second = opened(data, **settings), opened(data, **settings)
    for epoch in (0, 1):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        sizes = first.training_sizes()
        order = list(range(len(first)))
        for i, again in zip(order, [second[i] for i in reversed(order)][::-1], strict=True):
            sample = first[i]
            assert not isinstance(sample, InputError)
            assert not isinstance(again, InputError)
            assert sample.pixels.shape[1:] == sizes[i][::-1]
            assert ((sample.boxes[:, :2] - sample.boxes[:, 2:] / 2) > -1e-4).all()
            assert torch.equal(sample.pixels, again.pixels)
            assert torch.equal(sample.boxes, again.boxes)


def test_random_weights_are_not_frozen(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(train_main, *SMALL, "--dataset-dir", data, "--freeze", "backbone") == 2
    assert "--freeze backbone would keep random weights; give --weights to start from" in capsys.readouterr().err


def test_a_frozen_backbone_leaves_one_group_of_parameters() -> None:
    network = new_network(configured("shapes", {}), 3)
    freeze(network, "backbone")
    optimizer = make_optimizer(network, configured("shapes", {}).train, capturable=True)
    set_lr(optimizer, 0.5)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("part", PARTS)
def test_frozen_parts_keep_their_weights(part: str, data: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", 6, num_queries=9, decoder_layers=1)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    settings: dict[str, Any] = {"dataset_dir": data, "epochs": 1, "batch_size": 4, "workers": 0, "device": "cpu"}
    model.train(freeze=part, output_dir=data.parent / part, **settings)  # type: ignore[arg-type]
    after = model.network.state_dict()
    same = {name for name, tensor in after.items() if torch.equal(tensor, before[name].to(tensor.dtype))}
    for name in before:
        frozen = name.split(".")[0] in PARTS[part]
        if frozen:
            assert name in same
        elif "class_head" not in name and not name.startswith("decoder.layers.0.cross_attn.k_"):
            assert name not in same or "num_batches" in name, name
    network = model.network
    assert all(each.requires_grad for each in network.decoder.parameters())


def test_patience_ends_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--dataset-dir", data, "--epochs", 6, "--lr", 1e-12, "--backbone-lr", 1e-12, "--patience", 2]
    assert exit_code(train_main, *options, "--output-dir", tmp_path) == 0
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    best = max(i for i, record in enumerate(records) if record["AP"] == max(each["AP"] for each in records))
    assert len(records) in (best + 3, 6)
    found = capsys.readouterr().out
    if len(records) < 6:
        assert "stopped     no better AP for 2 epochs" in found
        assert exit_code(train_main, "--resume", tmp_path / "last.pt", "--device", "cpu") == 2
        assert "has had no better AP for 2 epochs; go on with --patience" in capsys.readouterr().err


def test_when_a_run_is_over() -> None:
    def history(*aps: float | None) -> list[dict[str, Any]]:
        return [{"AP": ap} for ap in aps]

    assert is_over(history(0.2, 0.5, 0.1, 0.3), 9, 2)
    assert not is_over(history(0.2, 0.5, 0.1, 0.3), 9, 3)
    assert not is_over(history(0.2, 0.5, 0.1, 0.3), 9, 0)
    assert is_over(history(0.2, 0.5), 2, 0)
    assert is_over(history(0.0, 0.0, 0.0), 9, 2)  # nothing is learnt
    assert not is_over(history(None, None, None), 9, 2)
    assert not is_over([], 9, 1)


@pytest.mark.parametrize("kind", ["conditional-detr", "detr"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    settings = {
        "kind": kind,
        "backbone": "resnet18",
        "dropout": 0.1,
        "d_model": 32,
        "num_heads": 2,
        "encoder_layers": 2,
    }
    network = new_network(configured("shapes", settings), 3).train()
    images = torch.randn(2, 3, 64, 96)

    def gradients(recompute: bool) -> tuple[list[torch.Tensor], int]:
        set_recomputing(network, recompute)
        network.zero_grad()
        torch.manual_seed(0)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            predictions = network(images)
        (predictions.logits.square().sum() + predictions.boxes.square().sum()).backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None], kept

    (plain, much), (again, less) = gradients(False), gradients(True)
    assert less < 0.7 * much
    for ours, theirs in zip(again, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointing_is_not_captured() -> None:
    config = configured("shapes", {"checkpointing": True, "cuda_graphs": True})
    reason = why_not(config, torch.nn.Identity(), torch.device("cuda"))
    assert reason is not None
    assert "gradient checkpointing" in reason
