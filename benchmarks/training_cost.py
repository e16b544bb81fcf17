"""What the queries that only training has cost: a training step with them, on one thread, and its multiply-adds.

At the tiny size of the built-in data, whose step is mostly decoder, and at R50 with an image of 800 x 1066 and 7
targets. Times are CPU seconds; the variants take turns.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from common import Row, arguments, machine, print_table, write_json
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cond_detr.data.batching import Batch, pad_targets
from cond_detr.models.model import new_network
from cond_detr.presets import configured
from cond_detr.train.criterion import Criterion
from cond_detr.train.optim import make_optimizer, set_lr
from cond_detr.train.step import TrainStep
from cond_detr.train.training_queries import for_training

VARIANTS: dict[str, dict[str, Any]] = {
    "Conditional DETR": {},
    "5 query groups": {"query_groups": 5},
    "2 denoising copies": {"denoising": 2},
    "5 denoising copies": {"denoising": 5},
    "groups and denoising": {"query_groups": 5, "denoising": 5},
    "boxes": {"queries": "boxes"},
    "varifocal": {"classification": "varifocal"},
    "mal": {"classification": "mal"},
}
COLUMNS = {
    "preset": "",
    "batch": "d",
    "row": "",
    "cpu_ms": ".0f",
    "times_plain": ".3f",
    "gmacs": ".2f",
    "more_gmacs": ".3f",
}


class Size(NamedTuple):
    """Images of a step; ``rounds`` are the steps of each variant."""

    preset: str
    batch: int
    height: int
    width: int
    targets: int
    rounds: int


SIZES = [Size("shapes", 16, 64, 64, 3, 40), Size("r50", 1, 800, 1066, 7, 4)]


def make_batch(size: Size) -> Batch:
    """Random images and targets."""
    pixels = torch.randint(0, 256, (size.batch, 3, size.height, size.width), dtype=torch.uint8)
    labels = [torch.randint(0, 6, (size.targets,)) for _ in range(size.batch)]
    boxes = [torch.rand(size.targets, 4) * 0.4 + 0.1 for _ in range(size.batch)]
    return Batch(
        pixels, None, pad_targets(labels, boxes), tuple(range(size.batch)), [(size.width, size.height)] * size.batch
    )


def make_module(size: Size, values: dict[str, Any]) -> tuple[nn.Module, TrainStep]:
    """What is trained, and its step."""
    config = configured(size.preset, {"classification": "focal", **values, "fused_attn": True})
    module = for_training(new_network(config, 6), config.train).train()
    criterion = Criterion(config.loss, config.train.query_groups, config.train.denoising)
    return module, TrainStep(module, module, criterion, make_optimizer(module, config.train), config.train)


def multiply_adds(size: Size, values: dict[str, Any], batch: Batch) -> float:
    """Of the forward pass, in 10^9 for each image. Nothing is computed: the tensors have shapes only."""
    config = configured(size.preset, {"classification": "focal", **values})
    module = for_training(new_network(config, 6), config.train).train()
    arguments = [*batch.inputs(), batch.targets] if config.train.denoising else [*batch.inputs()]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with sdpa_kernel(SDPBackend.MATH), fake, FlopCounterMode(display=False) as counter:
        module(*arguments)
    total: int = counter.get_total_flops()
    return total / 2e9 / size.batch


def measure(size: Size) -> list[Row]:
    """A row for each variant."""
    torch.manual_seed(0)
    batch = make_batch(size)
    steps = {name: taken(make_module(size, values)[1], batch) for name, values in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(size.rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if number:  # the first one creates the optimiser's state
                times[name].append(time.process_time() - started)
    plain = next(iter(VARIANTS))
    counted = {name: multiply_adds(size, values, batch) for name, values in VARIANTS.items()}
    return [
        {
            "preset": size.preset,
            "batch": size.batch,
            "row": name,
            "cpu_ms": statistics.median(times[name]) * 1e3,
            "times_plain": statistics.median(a / b for a, b in zip(times[name], times[plain], strict=True)),
            "gmacs": counted[name],
            "more_gmacs": counted[name] / counted[plain] - 1,
        }
        for name in VARIANTS
    ]


def taken(step: TrainStep, batch: Batch) -> Callable[[], None]:
    """Takes a step when it is called."""

    def run() -> None:
        set_lr(step.optimizer, 1e-3)
        step.backward(batch, batch.targets.counts.sum(), last=True)
        step.update()

    return run


def main() -> int:
    """Measures, prints the table, and writes rows if wanted."""
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny size alone, and few steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [SIZES[0]._replace(rounds=3)] if options.quick else SIZES
    rows = [row for size in sizes for row in measure(size)]
    print_table(rows, COLUMNS)
    if options.json:
        write_json(options.json, "training_cost", machine(), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
