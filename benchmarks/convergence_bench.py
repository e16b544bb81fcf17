"""How fast Conditional DETR learns, and DETR, with the same budget on the built-in data: the paper's Figure 2, small.

Both begin with the same backbone, which has learnt to classify (pretraining.py), as the paper's come from ImageNet. The
learning rate stays as it is and a moving average of the weights is evaluated: so each epoch of a curve is a result, and
not one that waits for the rate to drop. Every run is ``python -m cond_detr.train`` in a folder of its own: what is
there already is not run again, and what was interrupted goes on. ``--ablations`` trains the rows of section 4.3, Tables
3 and 4 and Figure 5 instead; ``--beyond`` what others have added since.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Row, arguments, machine, print_table, write_json
from pretraining import pretrain

# 256 positions; a tenth of the transformer's rate for the backbone, as in the paper
PROTOCOL = ["--preset", "dc5-shapes", "--num-queries", "50", "--backbone-lr", "1e-4", "--ema", "0.998"]
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
GOALS = (0.5, 0.7)
FORMATS = {"AP": ".3f", "lowest": ".3f", "highest": ".3f", "ratio": ".1f"}
MODELS = {"Conditional DETR": [], "DETR": ["--model", "detr"]}
GROUPS, DENOISING, BOXES = ["--query-groups", "10"], ["--denoising", "5"], ["--queries", "boxes"]
MAL, BLOCK = ["--classification", "mal"], ["--projection", "block"]
BEYOND = {
    "Conditional DETR": [],
    "MAL": MAL,
    "MAL, 10 query groups": [*GROUPS, *MAL],
    "MAL, 5 denoising copies": [*DENOISING, *MAL],
    "MAL, groups and denoising": [*GROUPS, *DENOISING, *MAL],
    "MAL, boxes": [*BOXES, *MAL],
    "all of them": [*BOXES, *GROUPS, *DENOISING, *MAL],
    "MAL, block-diagonal": [*BLOCK, *MAL],
    "MAL, block-diagonal, groups": [*BLOCK, *GROUPS, *MAL],
    "DETR": ["--model", "detr"],
    "DETR, 10 query groups": ["--model", "detr", *GROUPS],
    "DETR, 5 denoising copies": ["--model", "detr", *DENOISING],
}
# (table, row, switches); Conditional DETR as it is stands in all of them
DETR_ROW = ["--model", "detr", "--reference-point", "predicted"]
ABLATIONS = [
    ("section 4.3", "reference point predicted (ours)", []),
    ("section 4.3", "reference point learned", ["--reference-point", "learned"]),
    ("section 4.3", "reference point fixed", ["--reference-point", "origin"]),
    ("Table 3", "CSQ (ours)", []),
    ("Table 3", "CSQ-T", ["--spatial-query", "csq-t"]),
    ("Table 3", "CSQ-P", ["--spatial-query", "csq-p"]),
    ("Table 3", "CSQ-C", ["--spatial-query", "csq-c"]),
    ("Table 3", "CSQ-I", ["--spatial-query", "csq-i"]),
    ("Figure 5", "identity", ["--projection", "identity"]),
    ("Figure 5", "single scalar", ["--projection", "scalar"]),
    ("Figure 5", "diagonal (ours)", []),
    ("Figure 5", "block-diagonal", ["--projection", "block"]),
    ("Figure 5", "full", ["--projection", "full"]),
    ("Table 4", "DETR", ["--model", "detr"]),
    ("Table 4", "DETR, offsets", [*DETR_ROW, "--offset-regression"]),
    ("Table 4", "DETR, focal", ["--model", "detr", "--classification", "focal"]),
    ("Table 4", "DETR, offsets, focal", [*DETR_ROW, "--offset-regression", "--classification", "focal"]),
    ("Table 4", "with CSQ (ours)", []),
]


class Run(NamedTuple):
    """One training."""

    model: str
    switches: tuple[str, ...]
    seed: int
    epochs: int
    goal: float = math.inf  # AP at which it ends; the rate is constant, so that it could have gone on

    def is_over(self, root: Path) -> bool:
        """Whether all epochs are done, or the goal is reached."""
        records = history(self.folder(root))
        return len(records) >= self.epochs or any((record["AP"] or 0) >= self.goal for record in records)

    def folder(self, root: Path) -> Path:
        """Where it trains, named after its switches."""
        name = "-".join(part.removeprefix("--") for part in self.switches) or "conditional-detr"
        return root / f"{name}-{self.epochs}-epochs-seed-{self.seed}"


def backbone_weights(root: Path) -> Path:
    """The pretrained backbone's file, made if it is not there."""
    path = root / "backbone.pt"
    if not path.exists():
        print(f"pretrained backbone: {pretrain(path):.1%} of the cut-out objects classified correctly", flush=True)
    return path


def train(run: Run, root: Path, threads: int) -> Row:
    """Trains, or goes on, or finds everything done; the run's row."""
    folder = run.folder(root)
    if not run.is_over(root):
        folder.mkdir(parents=True, exist_ok=True)
        new = [*PROTOCOL, "--weights", str(root / "backbone.pt"), "--seed", str(run.seed), *run.switches]
        new += ["--epochs", str(run.epochs), "--schedule", "step", "--lr-drop", str(run.epochs)]
        options = ["--resume"] if (folder / "last.pt").exists() else new
        command = [sys.executable, "-m", "cond_detr.train", *options, "--output-dir", str(folder)]
        code, seconds = until_over(run, root, command, threads)
        if not torch.cuda.is_available():  # beside a GPU they say nothing
            with (folder / "cpu_seconds.txt").open("a") as file:
                file.write(f"{seconds}\n")
        if code:
            raise subprocess.CalledProcessError(code, command)
    curve = [[record["epoch"], record["AP"], record["AP50"]] for record in history(folder)]
    row = {"model": run.model, "switches": list(run.switches), "seed": run.seed, "curve": curve}
    if (folder / "cpu_seconds.txt").exists():
        row["cpu_seconds"] = sum(map(float, (folder / "cpu_seconds.txt").read_text().split()))
    return row


def until_over(run: Run, root: Path, command: Sequence[str], threads: int) -> tuple[int, float]:
    """Runs a command, and interrupts it when the run's goal is reached; its exit code and CPU seconds."""
    with (run.folder(root) / "output.txt").open("a") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        stopped = False
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            time.sleep(1)
            if not stopped and run.is_over(root) and len(history(run.folder(root))) < run.epochs:
                process.terminate()  # Ctrl-C's signal is ignored where a shell has started this in the background
                stopped = True
    _, status, used = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    return 0 if stopped else process.returncode, used.ru_utime + used.ru_stime


def history(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged so far, a record for each epoch."""
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def train_all(runs: Sequence[Run], root: Path, jobs: int) -> list[Row]:
    """All runs, ``jobs`` at a time, with a line for each that is done."""
    threads = max(1, torch.get_num_threads() // jobs)
    rows: dict[Run, Row] = {}
    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(train, run, root, threads): run for run in dict.fromkeys(runs)}
        for done in as_completed(pending):
            run = pending[done]
            rows[run] = done.result()
            name = " ".join([run.model, *run.switches])
            print(f"{len(rows)}/{len(pending)}  {name}, seed {run.seed}: AP {final(rows[run]):.3f}", flush=True)
    return [rows[run] for run in dict.fromkeys(runs)]


def final(row: Row) -> float:
    """AP after the last epoch."""
    return float(row["curve"][-1][1])


def epochs_to(row: Row, level: float) -> int | None:
    """The first epoch with at least that AP."""
    return next((epoch for epoch, ap, _ in row["curve"] if ap >= level), None)


def crossing(row: Row, level: float) -> float | None:
    """When AP reaches a level, in epochs: between two evaluations on the straight line, and before the first from 0."""
    before = (0, 0.0)
    for epoch, ap, _ in row["curve"]:
        if ap >= level:
            return float(before[0] + (epoch - before[0]) * (level - before[1]) / (ap - before[1]))
        before = epoch, ap
    return None


def comparison(rows: Sequence[Row]) -> list[Row]:
    """For each AP level, and for DETR's final AP, the epochs that both need: means of the seeds, if all get there."""
    detr = [row for row in rows if row["model"] == "DETR"]
    ours = [row for row in rows if row["model"] == "Conditional DETR"]
    goal = statistics.mean(map(final, detr))
    table = []
    for name, level in [
        *((f"{level:.2f}", level) for level in LEVELS if level < goal),
        (f"DETR's final, {goal:.3f}", goal),
    ]:
        our_epochs, detr_epochs = mean_epochs(ours, level), mean_epochs(detr, level)
        if level == goal:  # by definition; the seeds lie on both sides of their mean
            detr_epochs = len(detr[0]["curve"])
        ratio = detr_epochs / our_epochs if our_epochs and detr_epochs else None
        table.append({"AP": name, "conditional_detr": our_epochs, "detr": detr_epochs, "ratio": ratio})
    return table


def mean_epochs(rows: Sequence[Row], level: float, to: Callable[..., float | None] = epochs_to) -> float | None:
    """Of the seeds, or None if one of them does not get there."""
    needed = [epochs for row in rows if (epochs := to(row, level)) is not None]
    return statistics.mean(needed) if len(needed) == len(rows) else None


def beyond_table(rows: Sequence[Row]) -> list[Row]:
    """For each way to train: epochs and CPU minutes to AP levels, means of the seeds if all get there."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        # a run that somebody else began may not know what it has cost
        seconds = [row["cpu_seconds"] / len(row["curve"]) for row in mine if "cpu_seconds" in row]
        minutes = statistics.mean(seconds) / 60 if seconds else None
        needed = {goal: mean_epochs(mine, goal) for goal in GOALS}
        table.append(
            {
                "row": model,
                **{f"epochs_to_{goal}": value for goal, value in needed.items()},
                **{f"epochs_between_{goal}": mean_epochs(mine, goal, crossing) for goal in GOALS},
                **{f"minutes_to_{goal}": value and minutes and value * minutes for goal, value in needed.items()},
                "minutes_per_epoch": minutes,
                "seeds": len(mine),
            }
        )
    return table


def curves_picture(rows: Sequence[Row], title: str) -> object:
    """AP over epochs: the mean of the seeds, and each of them faintly."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for i, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        mine = [[ap for _, ap, _ in row["curve"]] for row in rows if row["model"] == model]
        epochs = range(1, len(mine[0]) + 1)
        for curve in mine:
            axis.plot(epochs, curve, color=f"C{i}", alpha=0.3, linewidth=1)
        axis.plot(epochs, [statistics.mean(values) for values in zip(*mine, strict=True)], color=f"C{i}", label=model)
    axis.set(xlabel="epoch", ylabel="AP on held-out images", ylim=(0, None))
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(title, fontsize=9)
    return figure


def beyond_picture(rows: Sequence[Row], title: str) -> object:
    """AP over epochs, and over CPU minutes where they are known, a line for each seed until it reaches the goal."""
    from matplotlib.figure import Figure

    known = any("cpu_seconds" in row for row in rows)
    figure = Figure(figsize=(10 if known else 7, 4.8), layout="constrained")
    axes = figure.subplots(1, 1 + known, sharey=True, squeeze=False)[0]
    for i, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        for row in (row for row in rows if row["model"] == model):
            curve = [ap for _, ap, _ in row["curve"]]
            epochs = range(1, len(curve) + 1)
            style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "linewidth": 1.2, "alpha": 0.8}
            axes[0].plot(epochs, curve, label=model if row["seed"] == 0 else None, **style)
            minutes = row.get("cpu_seconds", math.nan) / 60 / len(curve)
            if known:
                axes[1].plot([epoch * minutes for epoch in epochs], curve, **style)
    axes[0].set(ylabel="AP on held-out images", ylim=(0, None))
    axes[0].locator_params(axis="x", integer=True)
    for axis, label in zip(axes, ("epoch", "CPU minutes"), strict=False):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        for goal in GOALS:
            axis.axhline(goal, color="0.6", linewidth=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def ablation_table(rows: Sequence[Row]) -> list[Row]:
    """The paper's rows, each with the mean and the spread of the seeds' final AP."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row["switches"])].append(final(row))
    table = []
    for place, name, switches in ABLATIONS:
        values = found[tuple(switches)]
        table.append(
            {
                "table": place,
                "row": name,
                "AP": statistics.mean(values),
                "lowest": min(values),
                "highest": max(values),
                "seeds": len(values),
            }
        )
    return table


def ablation_picture(table: Sequence[Row], title: str) -> object:
    """A panel for each of the paper's tables; bars are means, lines reach from the lowest to the highest."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(row["table"] for row in table))
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, place in zip(figure.subplots(2, 2).flat, places, strict=True):
        mine = [row for row in table if row["table"] == place]
        means = [row["AP"] for row in mine]
        spread = [[row["AP"] - row["lowest"] for row in mine], [row["highest"] - row["AP"] for row in mine]]
        bars = axis.barh([row["row"] for row in mine], means, xerr=spread, capsize=3)
        axis.bar_label(bars, fmt="{:.3f}", fontsize=8, padding=4)
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set(title=place, xlabel="AP")
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> int:
    """Trains what is missing, prints the table, and writes curves and picture if wanted."""
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="one seed, 10 epochs")
    parser.add_argument("--ablations", action="store_true", help="the paper's ablations instead of the comparison")
    parser.add_argument("--beyond", action="store_true", help="what others have added since instead")
    parser.add_argument("--rows", nargs="+", choices=list(BEYOND), metavar="NAME", help="of --beyond, only these")
    parser.add_argument("--epochs", type=int, metavar="N", help="of every run (default: 18, of ablations 3)")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each model (default: 3)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="trainings at the same time (default: one a CPU core, on a GPU 1)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/convergence"), metavar="DIR", help="of the runs")
    options = parser.parse_args()
    if options.rows and not options.beyond:
        parser.error("--rows are those of --beyond")
    epochs = options.epochs or (10 if options.quick else 3 if options.ablations else 18)
    seeds = range(options.seeds or (1 if options.quick else 3))
    wanted = list((BEYOND if options.beyond else MODELS).items())
    if options.rows:
        wanted = [(name, BEYOND[name]) for name in options.rows]
    if options.ablations:
        wanted = [(f"{t}: {n}", s) for t, n, s in ABLATIONS]
    distinct = {tuple(switches): name for name, switches in reversed(wanted)}
    goal = max(GOALS) if options.beyond else math.inf
    runs = [
        Run(distinct[tuple(switches)], tuple(switches), seed, epochs, goal) for seed in seeds for _, switches in wanted
    ]
    where = machine()
    print(f"{where}; {len(set(runs))} runs of {epochs} epochs in {options.output_dir}")
    backbone_weights(options.output_dir)
    jobs = options.jobs or (1 if torch.cuda.is_available() else torch.get_num_threads())
    rows = train_all(runs, options.output_dir, jobs)
    table = (ablation_table if options.ablations else beyond_table if options.beyond else comparison)(rows)
    formats = {
        name: FORMATS.get(
            name,
            ".2f" if name.startswith("epochs_between") else ".1f" if name.startswith(("epochs_", "minutes_")) else "",
        )
        for name in table[0]
    }
    if not (options.ablations or options.beyond):
        formats["AP"] = ""  # names of levels
    print_table(table, formats)
    if options.json:
        write_json(options.json, "convergence_bench", where, rows)
        draw = beyond_picture if options.beyond else curves_picture
        picture = ablation_picture(table, where) if options.ablations else draw(rows, where)
        picture.savefig(options.json.with_suffix(".png"), dpi=130)  # type: ignore[attr-defined]
    return 0


if __name__ == "__main__":
    sys.exit(main())
