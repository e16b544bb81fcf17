"""Matching and assignment: one call for all layers and images against what a DETR does today.

``solve`` rows give ready cost matrices to solvers. ``match`` rows begin with logits and boxes: the costs are part of
the work. Every answer is first compared with SciPy's total; one that is wrong is not timed.
"""

import importlib
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from common import Record, Row, arguments, first_line, interleaved, machine, percentiles, print_table, ratio_axis, timed
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment as scipy_lsa
from torch import Tensor
from tqdm import tqdm

from cond_detr_kernels import MatchWeights, linear_sum_assignment, match
from cond_detr_kernels.assignment.reference import focal_cost, match_cost, pairwise_giou

LAYERS, QUERIES, CLASSES = 6, 300, 91
WEIGHTS = MatchWeights()
COLUMNS = {
    "op": "",
    "kind": "",
    "layers": "d",
    "batch": "d",
    "targets": "d",
    "impl": "",
    "us": ".0f",
    "us_p20": ".0f",
    "us_p80": ".0f",
    "times_ours": ".1f",
}
KINDS = ("trained", "untrained", "collapsed", "uniform", "tied")


@dataclass(frozen=True)
class Problem:
    """Predictions (L, B, Q, ...) and padded targets, as :func:`cond_detr_kernels.match` takes them."""

    logits: Tensor
    boxes: Tensor
    labels: Tensor
    target_boxes: Tensor
    counts: Tensor

    def operands(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of it on a device, in the order of ``match``'s arguments."""
        predictions = (self.logits.to(device), self.boxes.to(device))
        return *predictions, self.labels.to(device), self.target_boxes.to(device), self.counts.to(device)


def make_problem(kind: str, batch: int, targets: int, ragged: bool = False) -> Problem:
    """Predictions of a detector in a state, for ``targets`` objects in an image, or that many on average."""
    counts = torch.full((batch,), targets)
    if ragged:
        counts = torch.randint(0, 2 * targets + 1, (batch,))
    most = max(1, int(counts.max()))
    target_boxes = torch.cat([torch.rand(batch, most, 2) * 0.8 + 0.1, torch.rand(batch, most, 2) * 0.3 + 0.02], -1)
    labels = torch.randint(0, CLASSES, (batch, most))
    shape = (LAYERS, batch, QUERIES)
    logits = torch.randn(*shape, CLASSES) * 0.1 - 4.6
    boxes = torch.cat([torch.rand(*shape, 2), 0.5 + 0.02 * torch.randn(*shape, 2)], -1)
    if kind == "trained":
        logits = torch.randn(*shape, CLASSES) - 6
        boxes = torch.rand(*shape, 4) * torch.tensor([1, 1, 0.4, 0.4]) + 0.01
        for image in range(batch):
            queries = torch.randperm(QUERIES)[: min(most, QUERIES)]
            seen = slice(0, len(queries))
            boxes[:, image, queries] = target_boxes[image, seen] + 0.01 * torch.randn(LAYERS, len(queries), 4)
            logits[:, image, queries, labels[image, seen]] = 2 + torch.randn(LAYERS, len(queries))
        boxes = boxes.clamp(min=0.005)
    elif kind == "collapsed":
        boxes = torch.tensor([0.5, 0.5, 0.3, 0.3]) + 1e-3 * torch.randn(*shape, 4)
    elif kind == "uniform":
        logits, boxes = torch.rand(*shape, CLASSES), torch.rand(*shape, 4) * 0.9 + 0.05
    elif kind == "tied":
        logits, boxes = logits.round(), (boxes * 4).round() / 4 + 0.05
        target_boxes = (target_boxes * 4).round() / 4 + 0.05
    return Problem(logits, boxes, labels, target_boxes, counts)


def cost_matrices(problem: Problem) -> NDArray[np.float64]:
    """(L * B, targets, Q), for problems whose images have equally many targets."""
    layers, batch = problem.logits.shape[:2]
    costs = [
        match_cost(problem.logits[i, j], problem.boxes[i, j], problem.labels[j], problem.target_boxes[j], WEIGHTS)
        for i in range(layers)
        for j in range(batch)
    ]
    return torch.stack(costs).double().numpy()


Assignment = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def original_match(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, counts: list[int]
) -> list[Assignment]:
    """As DETR's published code does it, layer by layer.

    All predictions against all targets of the batch, to the host, then SciPy on the diagonal blocks.
    """
    layers, batch, queries, _ = logits.shape
    flat_labels = torch.cat([labels[i, :n] for i, n in enumerate(counts)])
    flat_boxes = torch.cat([target_boxes[i, :n] for i, n in enumerate(counts)])
    found = []
    for layer in range(layers):
        scores, predicted = logits[layer].flatten(0, 1), boxes[layer].flatten(0, 1)
        cost = (
            WEIGHTS.label * focal_cost(scores, WEIGHTS.alpha, WEIGHTS.gamma)[:, flat_labels]
            + WEIGHTS.l1 * torch.cdist(predicted, flat_boxes, p=1)
            - WEIGHTS.giou * pairwise_giou(predicted, flat_boxes)
        )
        blocks = cost.view(batch, queries, -1).cpu().split(counts, -1)
        found.append([scipy_lsa(block[i]) for i, block in enumerate(blocks)])
    return found


# What a solver returns: for each matrix, the column of each row
Columns = Tensor | Iterable[NDArray[np.int64]]
Solver = Callable[[], Columns]
# Of lapx, each for a whole batch; which there are depends on the release
LAPX_BATCH = ("lapjvx_batch", "lapjvr_batch", "lapjvh_batch")


def missing_solvers() -> Iterator[str]:
    """A sentence for each package that could be compared with and is not there."""
    for package, module in (("lapx", "lap"), ("torch-linear-assignment", "torch_linear_assignment")):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as problem:
            yield f"not installed: {package} (no module {problem.name})"
        # whatever another package raises must not cost the others their rows
        except Exception as problem:
            yield f"{package}: {first_line(problem)}"


def solvers(costs: NDArray[np.float64], device: torch.device) -> dict[str, Solver]:
    """Each solver, as a call that solves all matrices and returns a column per row of each."""
    on_device = torch.from_numpy(costs).float().to(device)
    table: dict[str, Solver] = {"scipy": lambda: [scipy_lsa(cost)[1] for cost in costs]}
    with suppress(Exception):
        table |= lapx_solvers(costs)
    with suppress(Exception):
        from torch_linear_assignment import batch_linear_assignment

        table["torch_linear_assignment"] = lambda: batch_linear_assignment(on_device)
    if device.type == "cuda":
        table["ours"] = lambda: torch.ops.cond_detr.linear_sum_assignment(on_device.double(), False)[1]
    else:
        table["ours"] = lambda: linear_sum_assignment(costs)[1]
    return table


def lapx_solvers(costs: NDArray[np.float64]) -> dict[str, Solver]:
    """Those of lapx: one matrix at a time, and a whole batch by each function that the release has."""
    import lap

    table: dict[str, Solver] = {"lap": lambda: [lap.lapjv(cost, extend_cost=True)[1] for cost in costs]}
    for name in LAPX_BATCH:
        if hasattr(lap, name):
            solve = partial(getattr(lap, name), costs, extend_cost=True, return_cost=False)
            table[f"lap.{name}"] = lambda solve=solve: solve()[1]  # type: ignore[misc]
    return table


def total_of(costs: NDArray[np.float64], columns: Columns) -> float:
    """The cost of an assignment, summed over all matrices."""
    rows = np.arange(costs.shape[1])
    parts = columns.cpu().numpy() if isinstance(columns, Tensor) else columns
    return sum(float(cost[rows, np.asarray(cols)].sum()) for cost, cols in zip(costs, parts, strict=True))


def solve_rows(setting: "Setting", device: torch.device, seconds: float, record: Record) -> Iterator[Row]:
    """A row for each solver that finds SciPy's total; the others are noted."""
    problem = make_problem(setting.kind, setting.batch, setting.targets)
    costs = cost_matrices(problem)[: setting.layers * setting.batch]
    want = sum(float(cost[scipy_lsa(cost)].sum()) for cost in costs)
    calls = {}
    for name, call in solvers(costs, device).items():
        trouble = wrong_with(call, costs, want)
        if trouble is None:
            calls[name] = call
        elif name == "ours":
            raise SystemExit(f"{name} {trouble}, for {setting}")
        else:
            record.note(f"{name} {trouble}, for {setting}")
    yield from rows_of(setting, calls, device, seconds)


def wrong_with(call: Solver, costs: NDArray[np.float64], want: float) -> str | None:
    """Why a solver is not timed, or None."""
    try:
        got = total_of(costs, call())
    # whatever an alternative raises must not cost the others their rows
    except Exception as problem:
        return f"raises {first_line(problem)}"
    # fp32 solvers may take near ties for ties
    if not abs(got - want) <= 1e-5 * abs(want) + 1e-4:
        return f"finds a total of {got}, SciPy {want}"
    return None


def match_rows(setting: "Setting", device: torch.device, seconds: float) -> Iterator[Row]:
    """A row for the original path and one for ours, once their totals agree."""
    problem = make_problem(setting.kind, setting.batch, setting.targets, setting.ragged)
    operands = problem.operands(device)
    counts = problem.counts.tolist()
    check_match(problem, match(*operands, weights=WEIGHTS)[0].cpu(), original_match(*operands[:4], counts))
    calls: dict[str, Callable[[], object]] = {
        "original": lambda: original_match(*operands[:4], counts),
        "ours": lambda: match(*operands, weights=WEIGHTS),
    }
    yield from rows_of(setting, calls, device, seconds)


def check_match(problem: Problem, pred_index: Tensor, want: list[Assignment]) -> None:
    """Stops everything if our total is not the original path's, in any layer of any image."""
    for layer, image in np.ndindex(*pred_index.shape[:2]):
        count = int(problem.counts[image])
        cost = match_cost(
            problem.logits[layer, image].double(),
            problem.boxes[layer, image].double(),
            problem.labels[image, :count],
            problem.target_boxes[image, :count].double(),
            WEIGHTS,
        )
        queries, targets = want[layer][image]
        best = cost[torch.from_numpy(targets), torch.from_numpy(queries)].sum()
        ours = cost[torch.arange(count), pred_index[layer, image, :count]].sum()
        if abs(ours - best) > 1e-4 * max(1.0, float(abs(best))):
            raise SystemExit(f"match finds a total of {ours}, the original path {best}")


def rows_of(
    setting: "Setting", calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> Iterator[Row]:
    """Times the calls in turns, and makes a row of each."""
    times = interleaved({name: timed(call, device) for name, call in calls.items()}, seconds * len(calls), least=3)
    for name, values in times.items():
        yield {
            "impl": name,
            "op": setting.op,
            "layers": setting.layers,
            "batch": setting.batch,
            "targets": setting.targets,
            "kind": setting.kind,
            **percentiles(values),
            "times_ours": statistics.median(values) / statistics.median(times["ours"]),
        }


class Setting(NamedTuple):
    """A problem; ``op`` is "solve" or "match", ``ragged`` makes ``targets`` an average."""

    op: str
    kind: str
    layers: int
    batch: int
    targets: int
    ragged: bool = False


def settings(quick: bool) -> Iterator[Setting]:
    """All that is measured, what matters most first."""
    for batch in (16, 2) if quick else (16, 2, 1, 64):
        for kind in KINDS[:2]:
            yield Setting("match", kind, LAYERS, batch, 7, ragged=True)
    for targets in (100,) if quick else (100, 20):
        for kind in KINDS[:2]:
            yield Setting("match", kind, LAYERS, 16, targets)
    for targets in (20, 100, 7) if quick else (20, 100, 7, 1, 50):
        for kind in KINDS if targets in (20, 100) and not quick else KINDS[:2]:
            yield Setting("solve", kind, LAYERS, 16, targets)
    for kind in KINDS[:3] if quick else KINDS:
        yield Setting("solve", kind, 1, 1, 300)


# small ones of both, to see that everything runs
TINY = [Setting("solve", "trained", LAYERS, 1, 5), Setting("match", "trained", LAYERS, 2, 3, ragged=True)]


def run(device: torch.device, chosen: list[Setting], seconds: float, record: Record) -> None:
    """Fills the record."""
    for sentence in missing_solvers():
        record.note(sentence)
    for setting in tqdm(chosen, unit="setting", leave=False, disable=None):
        if setting.op == "solve":
            record.add(solve_rows(setting, device, seconds, record))
        else:
            record.add(match_rows(setting, device, seconds))


def picture(rows: list[Row], title: str) -> object:
    """A panel for each of the two: how many times longer than ours each alternative takes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, op in zip(figure.subplots(1, 2), ("solve", "match"), strict=True):
        mine = [r for r in rows if r["op"] == op]
        places = list(dict.fromkeys((r["kind"], r["layers"] * r["batch"], r["targets"]) for r in mine))
        names = list(dict.fromkeys(r["impl"] for r in mine if r["impl"] != "ours"))
        for i, name in enumerate(names):
            ratios = {
                (r["kind"], r["layers"] * r["batch"], r["targets"]): r["times_ours"] for r in mine if r["impl"] == name
            }
            where = [j + 0.8 * i / len(names) for j in range(len(places))]
            heights = [ratios.get(place, np.nan) for place in places]
            axis.bar(where, heights, 0.8 / len(names), label=name, align="edge")
        labels = [f"{kind}, {problems} x {targets}" for kind, problems, targets in places]
        axis.set_xticks([j + 0.4 for j in range(len(places))], labels, fontsize=6, rotation=60, ha="right")
        ratio_axis(axis, "time / our time")
        axis.set_title(f"{op}: {'assignment alone' if op == 'solve' else 'costs and assignment'}", fontsize=10)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> int:
    """Measures, prints the table, and writes rows and picture if wanted."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    parser.add_argument("--tiny", action="store_true", help="two small problems, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each row")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    where = machine(device)
    print(where)
    record = Record(options.json, "matcher_bench", where)
    run(device, TINY if options.tiny else list(settings(options.quick)), options.seconds, record)
    print_table(record.rows, COLUMNS)
    record.finish(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
