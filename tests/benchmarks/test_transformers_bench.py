"""The parts of the benchmark of the transformers package's detectors that decide what it reports."""

import math

import pytest
import torch
import transformers_bench
from transformers_families import FAMILIES, difference

from cond_detr_kernels.transformers.losses import ORIGINAL, criterion_of

CPU = torch.device("cpu")


def test_results_that_differ() -> None:
    one = (torch.tensor(2.0), {"a": torch.ones(2)}, {"g": torch.tensor([0.0, 4.0])})
    other = (torch.tensor(2.0), {"a": torch.ones(2)}, {"g": torch.tensor([1.0, 4.0])})
    assert difference(one, one) == 0
    assert difference(one, other) == 0.25
    assert difference(one, (torch.tensor(math.nan), *one[1:])) == math.inf
    with pytest.raises(KeyError):
        difference(one, (one[0], {}, one[2]))


def test_a_row_needs_equal_results() -> None:
    same = lambda: [torch.ones(3)]  # noqa: E731
    row = transformers_bench.compared("Family", "loss", 1, 0, CPU, (same, same))
    assert row["difference"] == 0
    assert row["times"] > 0
    with pytest.raises(ArithmeticError, match="Family, loss, 0 targets: results differ by"):
        transformers_bench.compared("Family", "loss", 1, 0, CPU, (same, lambda: [torch.tensor([1.0, 1.0, 0.5])]))


def test_reads_of_the_host_are_counted() -> None:
    x = torch.ones(3)
    assert transformers_bench.host_reads(lambda: x.sum().item(), CPU) == 1
    assert transformers_bench.host_reads(lambda: x.cpu(), CPU) == 1
    assert transformers_bench.host_reads(lambda: x + 1, CPU) == 0


def test_every_loss_has_a_family() -> None:
    """But those with masks."""
    names = {family.name for family in FAMILIES}
    wanted = {name.removesuffix("ForObjectDetection") for name, loss in ORIGINAL.items() if criterion_of(loss)}
    assert {name for name in wanted if name and "Segmentation" not in name} <= names
