"""The moving average of the weights."""

from pathlib import Path

import pytest
import torch

from cond_detr import ConditionalDETR
from cond_detr.train.ema import WeightAverage
from cond_detr.weights.checkpoint import Checkpoint
from tests.cond_detr.test_training import TINY, run_train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_the_average_of_all_steps() -> None:
    model = ConditionalDETR.from_preset("shapes", 2)
    average = WeightAverage(model, 0.5)
    network, averaged = model.network, average.model.network
    want = network.class_head.weight.detach().double().clone()
    for step in range(20):
        with torch.no_grad():
            network.class_head.weight.normal_()
            network.backbone.bn1.num_batches_tracked += 1
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * network.class_head.weight.detach()
    torch.testing.assert_close(averaged.class_head.weight.double(), want, rtol=0, atol=1e-6)
    assert averaged.backbone.bn1.num_batches_tracked == 20
    assert not any(parameter.requires_grad for parameter in averaged.parameters())


def test_runs_save_it(dataset_dir: Path, tmp_path: Path) -> None:
    options = [*TINY, "--dataset-dir", dataset_dir, "--ema", 0.9]
    assert run_train(*options, "--epochs", 1, "--output-dir", tmp_path / "a") == 0
    last, best = Checkpoint.load(tmp_path / "a" / "last.pt"), Checkpoint.load(tmp_path / "a" / "best.pt")
    assert last.average is not None
    name = "class_head.bias"
    assert not torch.equal(last.model[name], last.average[name])
    assert best.average is None
    assert torch.equal(ConditionalDETR.from_checkpoint(last.path).network.class_head.bias, last.average[name])
