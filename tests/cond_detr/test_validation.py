"""The loss on held-out images is what the criterion gives for them, image by image."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cond_detr import ConditionalDETR, Criterion
from cond_detr.classes import Classes
from cond_detr.data import open_split
from cond_detr.data.batching import collate
from cond_detr.train.validation import NAMES, ValidationLoss


@pytest.mark.parametrize("settings", [{}, {"query_groups": 2, "denoising": 1, "ema": 0.9}, {"classification": "mal"}])
def test_of_a_run(settings: dict[str, object], dataset_dir: Path, tmp_path: Path) -> None:
    tiny = {"decoder_layers": 2, "num_queries": 8, **{k: v for k, v in settings.items() if k == "classification"}}
    model = ConditionalDETR.from_preset("shapes", **tiny)  # type: ignore[arg-type]
    rest = {k: v for k, v in settings.items() if k != "classification"}
    how = {"batch_size": 4, "eval_batch_size": 3, "device": "cpu", "epochs": 1, "workers": 0}
    model.train(dataset_dir=dataset_dir, output_dir=tmp_path / "run", **how, **rest)  # type: ignore[arg-type]
    (record,) = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    images = open_split(model.config.data, "val", model.stride)
    criterion = Criterion(model.config.loss)
    total, objects = 0.0, 0
    with torch.no_grad():
        for batch in DataLoader(images, batch_size=1, collate_fn=collate):
            losses = criterion(model.network(*batch.inputs()), batch.targets, torch.tensor(1))
            total, objects = total + float(losses.total), objects + int(batch.targets.counts.sum())
    assert record["val_loss"] == pytest.approx(total / objects, rel=1e-4)


def test_classes_in_another_order() -> None:
    """A data set's labels are the model's by name."""
    torch.manual_seed(0)
    model = ConditionalDETR.from_preset("shapes", 6, decoder_layers=1, num_queries=5)
    images = open_split(model.config.data, "val", model.stride)
    names = images.annotations.classes.names
    batch = collate([images[i] for i in range(4)])
    with torch.no_grad():
        predictions = model.network(*batch.inputs())
        flipped = predictions._replace(logits=predictions.logits.flip(-1))

    def means(classes: Classes, logits: object) -> dict[str, float | None]:
        model.classes = classes
        loss = ValidationLoss(model, images.annotations.classes)
        loss.add(logits, batch)  # type: ignore[arg-type]
        return loss.means()

    ids = tuple(range(6))
    assert means(Classes(names[::-1], ids), flipped) == pytest.approx(means(Classes(names, ids), predictions))


def test_without_objects() -> None:
    model = ConditionalDETR.from_preset("shapes", 1, decoder_layers=1, num_queries=5)
    loss = ValidationLoss(model, model.classes)
    assert loss.means() == dict.fromkeys(NAMES)
