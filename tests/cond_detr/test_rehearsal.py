"""The rehearsal takes the largest batch, says what does not fit, and leaves no trace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cond_detr import ConditionalDETR, InputError, preset
from cond_detr.data import open_split
from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.dataset import CocoDataset
from cond_detr.train.criterion import Criterion
from cond_detr.train.memory import largest_batch_size, largest_images, rehearse

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def parts(dataset_dir: Path) -> tuple[ConditionalDETR, Criterion, CocoDataset]:
    config = preset("small")
    data = replace(config.data, dataset_dir=str(dataset_dir), image_size=64, max_size=96)
    config = replace(config, data=data)
    dataset = open_split(config.data, "train", 16)
    return ConditionalDETR.new(config, dataset.annotations.classes), Criterion(config.loss), dataset


@pytest.mark.parametrize(
    ("sizes", "size_step", "want"),
    [
        ([(640, 480), (480, 640)], 0, (1067, 1067)),
        ([(640, 480), (480, 640)], 64, (832, 1088)),
        ([(640, 480), (500, 500)], 0, (800, 1067)),
        ([(480, 640)], 0, (1067, 800)),
        ([(2000, 500)], 0, (800, 1333)),
    ],
    ids=["wide and tall", "by size", "wide", "tall", "very wide"],
)
def test_largest_batch(parts: Any, sizes: list[tuple[int, int]], size_step: int, want: tuple[int, int]) -> None:
    """Out of memory after hours: detr#150, rf-detr#782."""
    dataset = parts[2]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    raw = {"images": images, "categories": [{"id": 1, "name": "thing"}], "annotations": []}
    dataset.annotations = check_annotations(raw, "raw")
    config = replace(preset("r50"), data=replace(preset("r50").data, size_step=size_step))
    assert largest_images(config, dataset) == want


def test_leaves_the_model_as_it_was(parts: Any) -> None:
    model, criterion, dataset = parts
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    rehearse(model, model.network, criterion, dataset)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_says_what_does_not_fit(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion, dataset = parts

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.network.backbone, "forward", too_large)
    with pytest.raises(InputError, match=r"4 images of \d+x\d+ pixels.*do not fit.*lower `batch_size`"):
        rehearse(model, model.network, criterion, dataset)


@pytest.mark.parametrize(("room", "most", "want"), [(1, 100, 1), (5, 100, 5), (64, 100, 64), (100, 7, 7), (37, 40, 37)])
def test_finds_the_largest_batch(parts: Any, monkeypatch: pytest.MonkeyPatch, room: int, most: int, want: int) -> None:
    model, criterion, dataset = parts

    def with_little_memory(batch_size: int, *_: object) -> bool:
        return batch_size <= room

    monkeypatch.setattr("cond_detr.train.memory.fits", with_little_memory)
    assert largest_batch_size(model, model.network, criterion, dataset, most) == want


def test_says_that_nothing_fits(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion, dataset = parts
    monkeypatch.setattr("cond_detr.train.memory.fits", lambda *_: False)
    with pytest.raises(InputError, match="not even one image fits"):
        largest_batch_size(model, model.network, criterion, dataset, 8)
