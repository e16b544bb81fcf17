"""A training step asks the host for nothing: on a GPU that would make it wait for the device.

Counted on the CPU, where the operations that hand a value to the host are the same.
"""

from dataclasses import replace

import pytest
import torch
from host_reads import HostReads

from cond_detr import preset
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.models.model import new_network
from cond_detr.train.criterion import Criterion
from cond_detr.train.optim import make_optimizer, set_lr
from cond_detr.train.step import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_counter_sees_them() -> None:
    values = torch.tensor([1.0, 0.0])
    with HostReads() as reads:
        values[values > 0].sum().item()
        bool(values[0])
        values.nonzero()
    assert reads.found["index"] == 1
    assert reads.found["_local_scalar_dense"] + reads.found["is_nonzero"] == 2
    assert reads.found["nonzero"] == 1


@pytest.mark.parametrize("padded", [False, True], ids=["one size", "padded"])
@pytest.mark.parametrize("fused", [False, True], ids=["reference", "fused"])
@pytest.mark.parametrize("counts", [[0, 0], [1, 7]], ids=["no targets", "some"])
def test_a_step_asks_for_nothing(counts: list[int], fused: bool, padded: bool) -> None:
    """A copy to the host per layer for matching: detr#562, rf-detr#1423, #1361, #1486."""
    config = preset("small")
    config = replace(config, model=replace(config.model, dropout=0.1, fused_attn=fused, encoder_layers=1))
    network = new_network(config, 3).train()
    optimizer = make_optimizer(network, config.train)
    train_step = TrainStep(network, network, Criterion(config.loss), optimizer, config.train)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, :, 64:] = True
    targets = pad_targets([torch.randint(0, 3, (n,)) for n in counts], [torch.rand(n, 4) * 0.4 + 0.1 for n in counts])

    batch = Batch(images, padding if padded else None, targets, (0, 1), [(96, 64)] * 2)

    def step() -> None:
        set_lr(optimizer, 0.5)
        train_step.backward(batch, targets.counts.sum().clamp(min=1), last=True)
        train_step.update()

    step()  # the first one creates the optimiser's state
    with HostReads() as reads:
        step()
    assert not reads.found
