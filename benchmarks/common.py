"""What all benchmarks share: the machine's description, tables, files."""

import argparse
import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
TURN_SECONDS = 0.02


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE, and a picture beside it")
    return parser


def machine(device: torch.device | None = None) -> str:
    """What the numbers were measured on."""
    parts = [f"{torch.get_num_threads()} threads of {_cpu_name()}"]
    if device is not None and device.type == "cuda":
        parts = [torch.cuda.get_device_name(device)]
    parts += [f"{name} {version(name)}" for name in ("torch", "triton") if _installed(name)]
    return ", ".join(parts)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


@functools.cache
def commit() -> str:
    """The commit that is checked out, with a plus sign if files differ from it.

    Of a copy without its history the environment variable BENCHMARK_COMMIT says it.
    """
    if said := os.environ.get("BENCHMARK_COMMIT"):
        return said
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


def interleaved(samples: Mapping[str, Callable[[], float]], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Times of several things, in turns, so that what disturbs the machine disturbs all of them.

    A turn is a run that is not timed, as the others leave cold caches and thread pools that still spin, and then as
    many as take TURN_SECONDS.

    Args:
        samples: each runs one of them once and returns how long that took.
        seconds: for all of them, at least.
        least: turns that each gets whatever that takes.

    Returns:
        The times of each, in ascending order.
    """
    times: dict[str, list[float]] = {name: [] for name in samples}
    for sample in samples.values():
        sample()
    end = time.perf_counter() + seconds
    turns = 0
    while turns < least or time.perf_counter() < end:
        for name, sample in samples.items():
            sample()
            turn_end = time.perf_counter() + TURN_SECONDS
            times[name].append(sample())
            while time.perf_counter() < turn_end:
                times[name].append(sample())
        turns += 1
    return {name: sorted(values) for name, values in times.items()}


def percentiles(times: Sequence[float]) -> Row:
    """Median, 20th and 80th percentile of ascending times, as benchmark files have them."""
    return {
        "us": statistics.median(times),
        "us_p20": times[len(times) // 5],
        "us_p80": times[len(times) * 4 // 5],
    }


def timed(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """A call that returns how many microseconds it took, by the host's clock."""

    def sample() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e6

    return sample


def write_json(path: Path, benchmark: str, machine: str, rows: Sequence[Row], **header: Any) -> None:
    """Writes all of the file or nothing: who reads it, or is stopped, never has half a file."""
    script, *options = sys.argv
    command = shlex.join(["python", f"benchmarks/{Path(script).name}", *options])
    record = {"benchmark": benchmark, "commit": commit(), "machine": machine, "command": command}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps({**record, **header, "rows": list(rows)}, indent=1) + "\n")
    unfinished.replace(path)


class Record:
    """The rows of a benchmark so far. Its file has all of them at any time, should the benchmark be stopped."""

    def __init__(self, path: Path | None, benchmark: str, machine: str, **header: Any) -> None:
        self.path, self.benchmark, self.machine, self.header = path, benchmark, machine, header
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Adds rows, and writes them at once."""
        self.rows += rows
        self.write()

    def note(self, sentence: str) -> None:
        """Says why something has no row."""
        tqdm.write(sentence, file=sys.stderr)
        self.notes.append(sentence)

    def write(self) -> None:
        """Writes the file, if there is to be one."""
        if self.path:
            write_json(self.path, self.benchmark, self.machine, self.rows, **self.header, notes=self.notes)

    def finish(self, picture: Callable[[list[Row], str], Any]) -> None:
        """The file once more, for what was noted last, and a picture of the rows beside it."""
        self.write()
        if not self.path or not self.rows:
            return
        try:
            picture(self.rows, self.machine).savefig(self.path.with_suffix(".png"), dpi=130)
        except ImportError as problem:
            self.note(f"no picture: {problem}")


def first_line(problem: Exception) -> str:
    """An exception in a line."""
    return f"{type(problem).__name__} {str(problem).strip().partition(chr(10))[0]}".strip()


def ratio_axis(axis: Any, label: str) -> None:
    """A logarithmic axis for ratios, with a line at 1 and plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axhline(1, color="black", linewidth=1)
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.9), max(high, 2.1))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(label)


def print_table(rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Prints rows; ``columns`` maps their keys to formats, such as ``"8.1f"``."""
    cells = [[_cell(row.get(name), fmt) for name, fmt in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [list(columns), *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)), flush=True)


def _cell(value: Any, fmt: str) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, (str, bool)) or not fmt else format(value, fmt)
