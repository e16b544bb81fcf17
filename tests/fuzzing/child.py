"""A process that opens files for another one, and says of each how it went, how long it took and how much memory."""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

from cond_detr.errors import InputError

# Opens a file; returns the sentences that it prints about what is in it
Opener: TypeAlias = Callable[[Path], list[str]]

# Of the address space, above what a new child has: more than any case may take, so that the machine stays usable
HARD_LIMIT = 8 << 30
# A child is replaced after that many cases, so that what leaks slowly does not end one
MOST_CASES = 2000


@dataclass
class Outcome:
    """How opening a file went.

    Attributes:
        opened: whether a valid result came of it.
        sentences: what was said: why the file was refused, or about what is in it.
        error: what was raised instead of an InputError, with its traceback; or what happened to the process.
        seconds: time that it took.
        growth: memory in bytes that it took at most.
    """

    opened: bool = False
    sentences: list[str] | None = None
    error: str = ""
    seconds: float = 0.0
    growth: int = 0


class Memory:
    """Measures how much memory a block of code takes at most.

    Linux can be asked to forget a process's peak, so that each case has its own; where it refuses, only a case that
    takes more than all earlier ones is seen.
    """

    def __init__(self) -> None:
        self._forget()
        self.before = self._now("VmRSS") or self._most_ever()

    def growth(self) -> int:
        """Bytes that were taken at most since this object was made."""
        return max(0, (self._now("VmHWM") or self._most_ever()) - self.before)

    @staticmethod
    def _forget() -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    @staticmethod
    def _now(name: str) -> int:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(name):
                    return int(line.split()[1]) << 10
        return 0

    @staticmethod
    def _most_ever() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def opened(opener: Opener, path: Path) -> Outcome:
    """Opens a file in this process."""
    outcome, memory, start = Outcome(), Memory(), time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            outcome.sentences = opener(path)
            outcome.opened = True
        except InputError as error:
            outcome.sentences = [str(error)]
        except BaseException:  # SystemExit is as wrong as any other
            outcome.error = traceback.format_exc(limit=-12)
    if warned and not outcome.error:  # Python prints it with the line of code that it comes from
        outcome.error = f"a warning is shown: {warned[0].filename}:{warned[0].lineno}: {warned[0].message}"
    outcome.seconds, outcome.growth = time.monotonic() - start, memory.growth()
    return outcome


def serve(connection: Connection, said: str, folder: str, scratch: str) -> None:
    """Opens files until there are no more; what is printed by anything goes to the file ``said``."""
    os.environ["TMPDIR"], tempfile.tempdir = scratch, None
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    os.chdir(folder)
    _limit_memory()
    while (request := connection.recv()) is not None:
        connection.send(opened(*request))


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + HARD_LIMIT, hard))


class Child:
    """A child process, which is started when it is needed, and again when it has crashed or hangs.

    Args:
        folder: folder that it works in, beside which the file is that takes what it prints.
        scratch: folder that it puts temporary files into.
        patience: seconds that a file may take.
    """

    def __init__(self, folder: Path, scratch: Path, patience: float) -> None:
        scratch.mkdir(exist_ok=True)
        self.folder = folder
        self.scratch = scratch
        self.said = folder.parent / "said"
        self.patience = patience
        self.cases = 0
        self.process: multiprocessing.process.BaseProcess | None = None

    def open(self, opener: Opener, path: Path) -> Outcome:
        """Opens a file in the child."""
        if self.process is None or self.cases >= MOST_CASES:
            self.close()
            self._start()
        self.cases += 1
        start = time.monotonic()
        try:
            self.connection.send((opener, path))
            if self.connection.poll(self.patience):
                outcome: Outcome = self.connection.recv()
                return outcome
            error = f"took more than {self.patience:g} s"
            assert self.process is not None
            self.process.kill()
        except (EOFError, ConnectionError):
            error = ""
        return Outcome(error=self._end(error), seconds=time.monotonic() - start)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        places = str(self.said), str(self.folder), str(self.scratch)
        self.process = context.Process(target=serve, args=(theirs, *places), daemon=True)
        self.process.start()
        theirs.close()
        self.cases = 0

    def _end(self, error: str) -> str:
        """What became of a child that gave no answer."""
        assert self.process is not None
        self.process.join()
        code = self.process.exitcode or 0
        self.process = None
        last = self.said.read_text(errors="replace")[-3000:] if self.said.exists() else ""
        return error or f"the process ended with {f'signal {-code}' if code < 0 else f'code {code}'}\n{last}"

    def close(self) -> None:
        """Ends the child."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self.process.join(5)
            self.process.kill()
            self.process.join()
            self.process = None
