"""Training the transformers package's detectors, with its losses and with ours in their place.

For every family at its published size, on one thread or a GPU: loss and backward of a batch's predictions for several
numbers of objects, and a whole training step on small images. Values and gradients are compared before times count.
Times are CPU seconds; on a GPU, those until the work is done.
"""

import contextlib
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import Record, Row, arguments, first_line, machine, print_table, ratio_axis, timed
from host_reads import HostReads, cuda_synchronisations
from torch.overrides import TorchFunctionMode
from transformers_families import (
    FAMILIES,
    Family,
    captured_loss,
    difference,
    loss_and_gradients,
)

from cond_detr_kernels.transformers import accelerate, restore
from cond_detr_kernels.transformers.losses import ORIGINAL, AcceleratedLoss

COLUMNS = {
    "family": "",
    "part": "",
    "images": "d",
    "targets": "d",
    "theirs_ms": ".0f",
    "ours_ms": ".0f",
    "times": ".1f",
    "difference": ".0e",
    "host_reads_theirs": "d",
    "host_reads_ours": "d",
}
TARGETS = (0, 1, 7, 30)
# Images of a step
STEP_IMAGES = 2
TOLERANCE = 1e-4
# Of a million pairs of objects that could swap queries, some would win less than rounding does: then the matching is an
# accident, and other predictions are drawn, at most as often as this
DRAWS = 6
# Turns of both; half of them, where one takes longer than so many seconds
LOSS_TURNS, STEP_TURNS, LONG = 5, 9, 4.0
# Of the ratio of two steps of some seconds
NOISE = 0.03


class HostCopies(TorchFunctionMode):
    """Counts copies to the host by their name, as on a CPU they are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += func is torch.Tensor.cpu
        return func(*args, **(kwargs or {}))


def host_reads(call: Callable[[], object], device: torch.device) -> int:
    """How often a call asks the device for a value."""
    if device.type == "cuda":
        return cuda_synchronisations(call)
    with HostReads() as reads, HostCopies() as copies:
        call()
    return sum(reads.found.values()) + copies.found


@contextlib.contextmanager
def ties_in_order() -> Iterator[None]:
    """Makes the package break ties between votes in a fixed order, which otherwise is an accident of sorting."""
    argsort = torch.argsort
    torch.argsort = lambda *args, **kwargs: argsort(*args, stable=True, **kwargs)
    try:
        yield
    finally:
        torch.argsort = argsort


def in_turns(
    theirs: Callable[[], object], ours: Callable[[], object], turns: int, device: torch.device
) -> tuple[float, float, float]:
    """Median milliseconds of two calls that take turns, and the median of their ratios."""
    times: list[tuple[float, float]] = []
    for turn in range(turns):
        first, second = (theirs, ours) if turn % 2 == 0 else (ours, theirs)
        pair = seconds(first, device), seconds(second, device)
        times.append(pair if turn % 2 == 0 else pair[::-1])
        if max(pair) > LONG and turn >= turns // 2:
            break
    medians = [statistics.median(each) * 1e3 for each in zip(*times, strict=True)]
    return medians[0], medians[1], statistics.median(a / b for a, b in times)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """CPU seconds that a call takes; on a GPU, the time until it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return timed(call, device)() / 1e6
    began = time.process_time()
    call()
    return time.process_time() - began


def apart_by(theirs: Callable[[], Any], ours: Callable[[], Any]) -> float:
    """How far the results of two calls are apart."""
    with ties_in_order():
        return difference(theirs(), ours())


def compared(
    name: str,
    part: str,
    images: int,
    targets: int,
    device: torch.device,
    calls: tuple[Callable[[], Any], Callable[[], Any]],
    counted: tuple[Callable[[], Any], Callable[[], Any]] | None = None,
) -> Row:
    """A row, if two calls, theirs and ours, return the same; ``counted`` are what host reads are counted in."""
    apart = apart_by(*calls)
    if not apart < TOLERANCE:
        raise ArithmeticError(f"{name}, {part}, {targets} targets: results differ by {apart:.1e}")
    reads = [host_reads(call, device) for call in counted or calls]
    their_ms, our_ms, times = in_turns(*calls, STEP_TURNS if part == "step" else LOSS_TURNS, device)
    return {
        "family": name,
        "part": part,
        "images": images,
        "targets": targets,
        "theirs_ms": their_ms,
        "ours_ms": our_ms,
        "times": times,
        "difference": apart,
        "host_reads_theirs": reads[0],
        "host_reads_ours": reads[1],
    }


def loss_rows(family: Family, model: Any, images: int, counts: tuple[int, ...]) -> Iterator[Row]:
    """Loss and backward for several numbers of objects an image."""
    for count in counts:
        for seed in range(DRAWS):
            with torch.no_grad():
                given = captured_loss(model, family.batch(images, [count] * images, seed, model.device))
            theirs = functools.partial(loss_and_gradients, ORIGINAL[model.loss_type], given)
            calls = theirs, functools.partial(loss_and_gradients, AcceleratedLoss(model.loss_type), given)
            if apart_by(*calls) < TOLERANCE:
                break
        yield compared(family.name, "loss", images, count, model.device, calls)


def step_row(family: Family, model: Any, images: int, count: int) -> Row:
    """A whole step, on the same model with and without what is replaced."""
    batch = family.batch(images, [count] * images, device=model.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def backward() -> Any:
        torch.manual_seed(2)
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return [loss.detach()]  # batch normalisation makes last digits of a small batch's gradients large

    def step() -> Any:
        result = backward()
        optimizer.step()
        return result

    def accelerated(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            accelerate(model)
            try:
                return call()
            finally:
                restore(model)

        return run

    calls, counted = (step, accelerated(step)), (backward, accelerated(backward))
    return compared(family.name, "step", images, count, model.device, calls, counted)


def picture(rows: list[Row], where: str) -> Any:
    """How many times faster, by family and number of objects."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    families = list(dict.fromkeys(row["family"] for row in rows))
    kinds = dict.fromkeys((row["part"], row["targets"]) for row in rows)
    for i, (part, targets) in enumerate(kinds):
        points = [
            (families.index(r["family"]), r["times"]) for r in rows if (r["part"], r["targets"]) == (part, targets)
        ]
        label = f"{part}, {targets} objects an image"
        color = "black" if part == "step" else f"C{i}"
        axis.plot(*zip(*points, strict=True), "s" if part == "step" else "o", color=color, label=label)
    axis.set_xticks(range(len(families)), families, rotation=35, ha="right")
    ratio_axis(axis, "times as fast")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.suptitle(where, fontsize=9)
    return figure


def main() -> int:
    """Runs the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="two families, few images and objects")
    parser.add_argument("--families", nargs="+", metavar="NAME", help="of these alone, such as RTDetr")
    parser.add_argument("--tiny", action="store_true", help="one family and no step, to see that it runs")
    options = parser.parse_args()
    quick = ["ConditionalDetr"] if options.tiny else ["ConditionalDetr", "RTDetr"]
    few = options.quick or options.tiny
    wanted = options.families or (quick if few else [family.name for family in FAMILIES])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    where = machine(device)
    print(where)
    record = Record(options.json, "transformers_bench", where)
    for family in (family for family in FAMILIES if family.name in wanted):
        try:
            model: Any = family.build().to(device)
        except (AttributeError, ImportError) as problem:
            record.note(f"{family.name}: not in this release of the package ({first_line(problem)})")
            continue
        images, counts = (2, (0, 3)) if few else (family.images, TARGETS)
        for row in loss_rows(family, model, images, counts):
            record.add([row])
        if not options.tiny:
            record.add([step_row(family, model, STEP_IMAGES, counts[-1])])
        print_table([row for row in record.rows if row["family"] == family.name], COLUMNS)
    record.finish(picture)
    slower = [f"{row['family']} {row['part']} {row['targets']}" for row in record.rows if row["times"] < 1 - NOISE]
    print(f"slower than the package's by more than {NOISE:.0%}: {', '.join(slower) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
