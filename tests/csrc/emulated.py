"""The CUDA assignment solver on an emulated GPU: how its program is built and run.

The program, ``emulation/main.cpp``, compares every answer with that of the CPU solver. Only the kernels in it, and how
they are launched, are watched by sanitizers, so that they alone are compiled once for each, and again for each change
to them.
"""

import os
import platform
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.kernels.assignment_cases import KINDS, make

CSRC = Path(__file__).parents[2] / "csrc"
EMULATION = Path(__file__).with_name("emulation")
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
INCLUDE = ("-I", str(EMULATION / "include"), "-I", str(EMULATION))

# Of the memory that a block may have, the launch leaves 1 KiB alone: all, some and none of the scratch is in it
SHARED_BYTES = {"shared": 232448, "mostly global": 20000, "global": 1024}


@dataclass(frozen=True)
class Sanitizer:
    flags: tuple[str, ...]
    scheduler: str  # what tells the scheduler


SANITIZERS = {
    "address": Sanitizer(("-fsanitize=address,undefined", "-fno-sanitize-recover"), "-DEMULATION_ASAN"),
    "thread": Sanitizer(("-fsanitize=thread",), "-DEMULATION_TSAN"),
}
# Inline functions of its own, which the linker does not mix up with those of the CPU solver
AS_CXX = ("-x", "c++", "-DCOND_DETR_ISA=emulated")
# With so few warps in a block, a thread has one column, or several, or more than it can keep in registers
FEW_WARPS = ("-DCOND_DETR_WARPS=2", "-DCOND_DETR_GROUPS=3")


def compiler() -> str:
    found = shutil.which("g++")
    assert found, "g++ is what builds the extension; it must be there"
    return found


def call(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Builder:
    """Compiles what all programs share, into a folder, and then programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = [EMULATION / f"{name}.cpp" for name in ("main", "on_cpu", "on_device", "random_match")]
        sources = [*own, *sorted(CSRC.glob("cpu/simd*.cpp"))]
        jobs = [(source, folder / f"{source.stem}.o", ()) for source in sources]
        self.shared = [target for _, target, _ in jobs]
        for name, sanitizer in SANITIZERS.items():
            jobs.append((EMULATION / "scheduler.cpp", self.scheduler(name), (sanitizer.scheduler,)))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.compile(*job), jobs))

    def scheduler(self, sanitizer: str) -> Path:
        return self.folder / f"scheduler-{sanitizer}.o"

    def compile(self, source: Path, target: Path, flags: Iterable[str], csrc: Path = CSRC) -> None:
        call(compiler(), *FLAGS, *flags, *INCLUDE, "-I", csrc, "-c", source, "-o", target)

    def program(self, sanitizer: str, csrc: Path = CSRC) -> Path:
        """The program with the kernels of a ``csrc`` folder; all else is this checkout's."""
        flags = SANITIZERS[sanitizer].flags
        built = self.folder / f"{csrc.parent.name}-{sanitizer}"
        kernels = built.with_suffix(".o")
        lenient = () if csrc == CSRC else ("-Wno-error",)  # of what a seeded bug leaves unused
        self.compile(csrc / "cuda/launchers.cu", kernels, (*flags, *FEW_WARPS, *AS_CXX, *lenient), csrc)
        call(compiler(), *flags, kernels, self.scheduler(sanitizer), *self.shared, "-o", built)
        return built


@dataclass(frozen=True)
class Batch:
    costs: NDArray[np.float64]  # (P, rows, cols)
    maximize: bool


def dense_batches(problems: int, seed: int, sizes: dict[int, float]) -> Iterator[Batch]:
    """Batches of one to three problems of one shape, at least so many problems in all.

    ``sizes`` has the probabilities of the largest number of rows; of columns there are up to 2.54 times as many.
    """
    rng = np.random.default_rng(seed)
    while problems > 0:
        largest = rng.choice(list(sizes), p=list(sizes.values()))
        rows, cols = (int(rng.integers(0, most, endpoint=True)) for most in (largest, round(largest * 2.54)))
        if rng.random() < 0.3:
            rows, cols = cols, rows
        kinds = rng.choice(KINDS, size=rng.integers(1, 3, endpoint=True))
        maximize = bool(rng.random() < 0.3)
        costs = np.stack([make(kind, rows, cols, rng) for kind in kinds])
        yield Batch(-costs if maximize else costs, maximize)
        problems -= len(kinds)


def write_batches(batches: Iterable[Batch], path: Path) -> None:
    with path.open("wb") as file:
        for batch in batches:
            file.write(struct.pack("<qqqq", *batch.costs.shape, batch.maximize) + batch.costs.tobytes())


@dataclass(frozen=True)
class Run:
    """One call of the program: where scratch may be, what memory is full of, and the seed of all that is random."""

    shared_bytes: int
    garbage: int
    seed: int
    match_batches: int
    seconds: int = 300  # of a processor

    def __call__(self, program: Path, dense: Path, answers: Path) -> subprocess.CompletedProcess[str]:
        numbers = (self.shared_bytes, self.garbage, self.seed, self.match_batches)
        command = [str(part) for part in (program, *numbers, dense, answers)]
        done = self._run(command)
        if "unexpected memory mapping" in done.stderr:  # ThreadSanitizer, of addresses more random than it can bear
            done = self._run(["setarch", platform.machine(), "-R", *command])
        return done

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
        limited = ["prlimit", f"--cpu={self.seconds}", *command]
        return subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=20 * self.seconds)


def complaint(run: subprocess.CompletedProcess[str]) -> str | None:
    """What the program, or a sanitizer, found wrong in a run."""
    if run.returncode == 0:
        return None
    if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "no end"
    patterns = (
        r"ThreadSanitizer: (.*?) \(",
        r"AddressSanitizer: (\S+)",
        r"runtime error: (.*)",
        r"emulation: block \d+, thread \d+: (.*)",
        r"not (what the CPU has)",
    )
    for pattern in patterns:
        if found := re.search(pattern, run.stderr):
            return found[1].replace("what the CPU has", "another answer than the CPU's")
    return f"exit status {run.returncode}: {run.stderr.strip()[-200:]}"
