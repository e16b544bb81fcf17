"""What users of DETR, Deformable DETR, RT-DETR and RF-DETR ran into, by the threads where they said so.

Further ones are tested where they belong: search the tests for ``detr#``.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cond_detr import PRESETS, ConditionalDETR
from cond_detr.boxes import xyxy_to_cxcywh
from cond_detr.config import DataConfig
from cond_detr.data import open_split
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.data.images import normalise
from cond_detr.evaluate.over_dataset import measure, run_over
from cond_detr.models.model import Model
from cond_detr.models.predictions import Predictions
from cond_detr.presets import preset
from cond_detr.train.criterion import Criterion
from cond_detr.train.optim import make_optimizer
from cond_detr.train.step import Outcome, TrainStep, forward_backward
from cond_detr.weights.progress import LOSS_NAMES


@pytest.mark.usefixtures("one_thread")
def test_a_few_images_are_learnt_by_heart(dataset_dir: Path) -> None:
    """AP stays at 0 on small data: detr#125, detr#84, ConditionalDETR#34."""
    config = preset("shapes")
    dataset = open_split(
        DataConfig(dataset_dir=str(dataset_dir), image_size=64, max_size=64, augment="none"), "val", stride=8
    )
    samples = [dataset[i] for i in range(4)]
    images = torch.stack([sample.pixels for sample in samples])  # type: ignore[union-attr]
    targets = pad_targets([s.labels for s in samples], [s.boxes for s in samples])  # type: ignore[union-attr]
    batch = Batch(images, None, targets, (0, 1, 2, 3), [(64, 64)] * 4)
    network = ConditionalDETR.from_preset("shapes", len(dataset.annotations.classes)).network.train()
    step = TrainStep(network, network, Criterion(config.loss), make_optimizer(network, config.train), config.train)
    losses = []
    for _ in range(150):
        losses.append(step.backward(batch, targets.counts.sum(), last=True).losses[0].item())
        step.update()
    assert losses[-1] < 0.25 * losses[0]
    network.eval()
    for sample in samples:
        scores = network(normalise(sample.pixels)[None]).logits[-1, 0].sigmoid()  # type: ignore[union-attr]
        found = sorted((scores > 0.5).nonzero()[:, 1].tolist())
        assert found == sorted(sample.labels.tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["dc5-r50", "dc5-r101"])
def test_padding_sensitive_models_are_evaluated_one_by_one(name: str) -> None:
    """Dilated models lose ten points in padded batches: detr#217, detr#191."""
    assert PRESETS[name].train.eval_batch_size == 1


@pytest.mark.usefixtures("one_thread")
def test_the_log_has_means_of_the_epoch(dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one batch, which may be without objects: class_error stuck at 100, detr#41, detr#550."""
    file = dataset_dir / "annotations/instances_train.json"
    raw = json.loads(file.read_text())
    half = {image["id"] for image in raw["images"][::2]}
    raw["annotations"] = [annotation for annotation in raw["annotations"] if annotation["image_id"] in half]
    file.write_text(json.dumps(raw))
    seen = []

    def recording(*arguments: Any) -> Outcome:
        seen.append(forward_backward(*arguments))
        return seen[-1]

    monkeypatch.setattr("cond_detr.train.step.forward_backward", recording)
    model = ConditionalDETR.from_preset("shapes", 6, decoder_layers=1)
    model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "run", epochs=1, batch_size=2, device="cpu")
    record = json.loads((tmp_path / "run/log.jsonl").read_text())
    mean = torch.stack([outcome.losses for outcome in seen]).mean(0)
    assert len(seen) == 12
    assert [record[name] for name in LOSS_NAMES] == pytest.approx(mean.tolist())
    assert "class_error" not in record


class Oracle(nn.Module):
    """Finds everything, and is sure of nothing."""

    softmax = False
    device = torch.device("cpu")

    def __init__(self, targets: list[tuple[Tensor, Tensor]], classes: int) -> None:
        super().__init__()
        self.targets = iter(targets)
        self.classes = classes

    def forward(self, images: Tensor, padding: Tensor | None) -> Predictions:
        labels, boxes = next(self.targets)
        logits = torch.full((1, 1, len(labels), self.classes), -12.0)
        logits[0, 0, torch.arange(len(labels)), labels] = -5.0  # a score of .007
        return Predictions(logits, boxes[None, None])


def test_evaluation_knows_no_threshold(dataset_dir: Path) -> None:
    """AP falls when weak detections are left out: detr#319."""
    dataset = open_split(DataConfig(dataset_dir=str(dataset_dir), image_size=64, max_size=64), "val", stride=8)
    classes = dataset.annotations.classes
    targets = [
        (torch.from_numpy(record.labels), xyxy_to_cxcywh(torch.from_numpy(record.boxes)) / 64)
        for record in dataset.annotations.records
    ]
    oracle = Model(Oracle(targets, len(classes)), preset("shapes"), classes)  # type: ignore[arg-type]
    found = run_over(oracle, dataset, classes, batch_size=1)
    assert measure(dataset, found).metrics["AP"] == pytest.approx(1)
