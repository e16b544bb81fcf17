"""Opening annotations, loading samples and evaluating at COCO's size, against what else people use.

Makes a data set of COCO's size in a temporary folder. Each task runs in a process of its own on one thread, and what it
found is compared before its costs count. The short tasks run in several rounds, all implementations in each, and of
each the cheapest run counts: what else a machine does can only make a run dearer.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from common import ROOT, Record, Row, arguments, first_line, machine, print_table, ratio_axis
from data_made import make
from data_tasks import TASKS
from tqdm import tqdm

COLUMNS = {
    "task": "",
    "impl": "",
    "cpu_s": "8.2f",
    "resident_mb": "8.0f",
    "peak_mb": "8.0f",
    "growth_mb": "8.1f",
    "samples_per_cpu_s": "8.1f",
    "times_ours": "8.2f",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
# The share of COCO, and the number of photos
FULL, QUICK, TINY = (1, 240), (0.02, 24), (0.002, 2)
# In which evaluations agree
DIGITS = 1e-6
# What tasks are compared by, and whether more of it is better
COST = {"open": "cpu_s", "loading": "growth_mb", "evaluate": "cpu_s", "sample": "samples_per_cpu_s"}
# In how many rounds a task runs, if not in one
ROUNDS = {"open": 6, "sample": 6}


def rows_of(task: str, folder: Path, rounds: int, note: Callable[[str], None]) -> list[Row]:
    """A row for each implementation of a task that could run: of its runs, the one with the fewest CPU seconds."""
    names = [name for name in TASKS if name.partition(" ")[0] == task]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    failed = set()
    for _ in range(rounds):
        for name in names:
            if name in failed:
                continue
            try:
                rows[name].append(run_task(name, folder))
            except RuntimeError as problem:
                failed.add(name)
                note(f"{name}: {first_line(problem)}")
    return [min(rows[name], key=lambda row: row.get("cpu_s", 0.0)) for name in names if name not in failed]


def run_task(name: str, folder: Path) -> Row:
    """The row of one run of a task.

    Raises:
        RuntimeError: if it fails.
    """
    command = [sys.executable, str(Path(__file__).with_name("data_tasks.py")), name, str(folder)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    task, _, impl = name.partition(" ")
    return {"task": task, "impl": impl, **row}


def differ(a: list[float], b: list[float]) -> bool:
    """Whether what two implementations found is not the same."""
    return len(a) != len(b) or any(abs(x - y) > DIGITS for x, y in zip(a, b, strict=True))


def ratio(row: Row, ours: Row) -> float:
    """How many times our cost something has."""
    cost = COST[row["task"]]
    if cost == "samples_per_cpu_s":
        return float(ours[cost] / row[cost])
    return float(row[cost] / max(ours[cost], 1e-9))


def run(folder: Path, record: Record, rounds: Mapping[str, int]) -> bool:
    """Fills the record; returns whether all found the same. ``rounds`` has how many a task has, if not one."""
    agree = True
    for task in tqdm(COST, unit="task", leave=False, disable=None):
        rows = rows_of(task, folder, rounds.get(task, 1), record.note)
        ours = next((row for row in rows if row["impl"] == "ours"), None)
        if ours is None:
            agree = False
            continue
        for row in rows:
            if differ(row["found"], ours["found"]):
                record.note(f"{task} {row['impl']} found {row['found']}, and ours {ours['found']}")
                agree = False
            kept = {name: value for name, value in row.items() if name != "found"}
            record.add([{**kept, "times_ours": ratio(row, ours)}])
    return agree


def picture(rows: list[Row], title: str) -> object:
    """How many times our cost each alternative has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    others = [row for row in rows if row["impl"] != "ours"]
    bars = axis.bar([f"{row['task']}\n{row['impl']}" for row in others], [row["times_ours"] for row in others])
    axis.bar_label(bars, [f"{row['times_ours']:.1f}" for row in others])
    axis.tick_params("x", labelsize=8)
    ratio_axis(axis, "cost / our cost")
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> int:
    """Measures, prints the table, and writes rows and picture if wanted."""
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of COCO, and 24 photos")
    parser.add_argument("--tiny", action="store_true", help="some images, to see that everything runs")
    options = parser.parse_args()
    where = machine()
    print(where)
    record = Record(options.json, "data_bench", where, threads=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "made"
        make(folder, *(TINY if options.tiny else QUICK if options.quick else FULL))
        agree = run(folder, record, {} if options.tiny else ROUNDS)
    print_table(record.rows, COLUMNS)
    record.finish(picture)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
