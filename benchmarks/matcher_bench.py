"""Matching and assignment: one call for all layers and images against what a DETR does today.

``solve`` rows give ready cost matrices to solvers. ``match`` rows begin with logits and boxes: the costs are part of
the work. Every answer is first compared with SciPy's total; one that is wrong is not timed.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from common import Row, arguments, interleaved, machine, percentiles, print_table, ratio_axis, timed, write_json
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

    def operands(self, device: torch.device) -> tuple[Tensor, ...]:
        tensors = (self.logits, self.boxes, self.labels, self.target_boxes, self.counts)
        return tuple(tensor.to(device) for tensor in tensors)


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
    """As DETR's published code does it, layer by layer: all predictions against all targets of the batch, to the host,
    then SciPy on the diagonal blocks."""
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


def solvers(costs: NDArray[np.float64], device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each solver, as a call that solves all matrices and returns a column per row of each."""
    yield "scipy", lambda: [scipy_lsa(cost)[1] for cost in costs]
    try:
        import lap

        yield "lap", lambda: [lap.lapjv(cost, extend_cost=True)[1] for cost in costs]
    except ImportError:
        pass
    if device.type == "cuda":
        on_device = torch.from_numpy(costs).float().to(device)
        try:
            from torch_linear_assignment import batch_linear_assignment

            yield "torch_linear_assignment", lambda: batch_linear_assignment(on_device)
        except ImportError:
            pass
        yield "ours", lambda: torch.ops.cond_detr.linear_sum_assignment(on_device.double(), False)[1]
    else:
        try:
            from torch_linear_assignment import batch_linear_assignment

            matrices = torch.from_numpy(costs).float()
            yield "torch_linear_assignment", lambda: batch_linear_assignment(matrices)
        except ImportError:
            pass
        yield "ours", lambda: linear_sum_assignment(costs)[1]


def total_of(costs: NDArray[np.float64], columns: object) -> float:
    rows = np.arange(costs.shape[1])
    parts = columns.cpu().numpy() if isinstance(columns, Tensor) else columns
    return sum(float(cost[rows, np.asarray(cols)].sum()) for cost, cols in zip(costs, parts, strict=True))  # type: ignore[call-overload]


def solve_rows(kind: str, layers: int, batch: int, targets: int, device: torch.device, seconds: float) -> Iterator[Row]:
    costs = cost_matrices(make_problem(kind, batch, targets))[: layers * batch]
    want = sum(float(cost[scipy_lsa(cost)].sum()) for cost in costs)
    calls = dict(solvers(costs, device))
    for name, call in calls.items():
        got = total_of(costs, call())
        # fp32 solvers may take near ties for ties
        if abs(got - want) > 1e-5 * abs(want) + 1e-4:
            raise SystemExit(f"{name} finds a total of {got}, SciPy {want}, for {kind} {costs.shape}")
    setting = Setting("solve", kind, layers, batch, targets)
    yield from rows_of(setting, calls, device, seconds)


def match_rows(
    kind: str, batch: int, targets: int, ragged: bool, device: torch.device, seconds: float
) -> Iterator[Row]:
    problem = make_problem(kind, batch, targets, ragged)
    operands = problem.operands(device)
    counts = problem.counts.tolist()
    check_match(problem, match(*operands, weights=WEIGHTS)[0].cpu(), original_match(*operands[:4], counts))
    calls = {
        "original": lambda: original_match(*operands[:4], counts),
        "ours": lambda: match(*operands, weights=WEIGHTS),
    }
    yield from rows_of(Setting("match", kind, LAYERS, batch, targets), calls, device, seconds)


def check_match(problem: Problem, pred_index: Tensor, want: list[Assignment]) -> None:
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
        if abs(ours - best) > 1e-4 * max(1, abs(best)):
            raise SystemExit(f"match finds a total of {ours}, the original path {best}")


def rows_of(
    setting: "Setting", calls: dict[str, Callable[[], object]], device: torch.device, seconds: float
) -> Iterator[Row]:
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
    op: str
    kind: str
    layers: int
    batch: int
    targets: int
    ragged: bool = False


def settings(quick: bool) -> Iterator[Setting]:
    """All that is measured."""
    for targets in (1, 7, 20, 50, 100):
        for kind in KINDS if targets in (20, 100) else KINDS[:2]:
            yield Setting("solve", kind, LAYERS, 16, targets)
    for kind in KINDS:
        yield Setting("solve", kind, 1, 1, 300)
    for batch in (1, 2, 16) if quick else (1, 2, 16, 64):
        for kind in ("trained", "untrained"):
            yield Setting("match", kind, LAYERS, batch, 7, ragged=True)
    for kind in ("trained", "untrained"):
        yield Setting("match", kind, LAYERS, 16, 20)
        yield Setting("match", kind, LAYERS, 16, 100)


def run(device: torch.device, quick: bool, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for setting in tqdm(list(settings(quick)), unit="setting", leave=False, disable=None):
        op, kind, layers, batch, targets, ragged = setting
        if op == "solve":
            rows += solve_rows(kind, layers, batch, targets, device, seconds)
        else:
            rows += match_rows(kind, batch, targets, ragged, device, seconds)
    return rows


def picture(rows: list[Row], title: str) -> object:
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
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="without the largest batch")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each row")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    where = machine(device)
    print(where)
    rows = run(device, options.quick, options.seconds)
    print_table(rows, COLUMNS)
    if options.json:
        write_json(options.json, "matcher_bench", where, rows)
        picture(rows, where).savefig(options.json.with_suffix(".png"), dpi=130)  # type: ignore[attr-defined]
    return 0


if __name__ == "__main__":
    sys.exit(main())
