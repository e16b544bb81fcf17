"""Cases: which valid file is changed in which way, by seed and number alone; and what is wrong with an outcome."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.fuzzing.child import Child, Outcome
from tests.fuzzing.specimens import Specimen

# Kinds of cases in their order, over and over; those that are opened slowly come seldom
ORDER = (*("checkpoints", "annotations", "images", "metadata", "config", "images") * 8, "report")
# What onnxruntime leaves in the folder for temporary files
NOT_OURS = ".ses"
MOST_GROWTH = 1 << 30
LONGEST_SENTENCE = 2000

# What is in a folder: the bytes of each file, None for a folder
Content: TypeAlias = dict[Path, bytes | None]


@dataclass(frozen=True)
class Case:
    """A changed file.

    Attributes:
        number: number of the case.
        specimen: the valid file.
        data: the bytes of the changed one.
        changes: names of the changes, in their order.
    """

    number: int
    specimen: Specimen
    data: bytes
    changes: tuple[str, ...]


def kind_of(number: int) -> str:
    """The kind of the file of a case."""
    return ORDER[number % len(ORDER)]


def make_case(specimens: Mapping[str, Sequence[Specimen]], seed: int, number: int) -> Case:
    """Makes a case; it depends on seed and number only."""
    rng = random.Random(f"{seed}, {number}")
    chosen = rng.choice(specimens[kind_of(number)])
    data, changes = chosen.data, []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(chosen.changes)
        data = change(data, rng)
        changes.append(change.__name__)
    return Case(number, chosen, data, tuple(changes))


def content(folder: Path) -> Content:
    """What is in a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != NOT_OURS}


@dataclass
class Judge:
    """Opens changed files in a child process, and says what is wrong with that.

    Attributes:
        child: the process, in whose folder for temporary files nothing may stay.
        most_seconds: what a case may take.
    """

    child: Child
    most_seconds: float

    def open(self, case: Case) -> tuple[Outcome, str]:
        """Opens the file of a case.

        Returns:
            The outcome, and what is wrong; empty if nothing is.
        """
        path, folder = case.specimen.path, case.specimen.folder
        before = content(folder) | {path: case.data}
        path.write_bytes(case.data)
        outcome = self.child.open(case.specimen.opener, path)
        touched = self._touched(before, content(folder) | content(self.child.scratch), folder)
        path.write_bytes(case.specimen.data)
        return outcome, self._wrong(outcome, path) or touched

    def _wrong(self, outcome: Outcome, path: Path) -> str:
        if outcome.error:
            return outcome.error
        if outcome.growth > MOST_GROWTH:
            return f"took {outcome.growth >> 20} MB of memory"
        if outcome.seconds > self.most_seconds:
            return f"took {outcome.seconds:.1f} s"
        said = outcome.sentences or []
        for sentence in said:
            if len(sentence.splitlines()) != 1 or len(sentence) > LONGEST_SENTENCE:
                return f"a message is no sentence: {sentence[:LONGEST_SENTENCE]!r}"
        if not outcome.opened and not any(name in said[0] for name in (path.name, str(path.parent))):
            return f"a message does not name the file: {said[0]!r}"
        return ""

    def _touched(self, before: Content, after: Content, folder: Path) -> str:
        touched = sorted(path for path in before.keys() | after.keys() if before.get(path, 0) != after.get(path, 0))
        self._restore(touched, before)
        names = ", ".join(
            str(path.relative_to(folder.parent)) if folder in path.parents else str(path) for path in touched
        )
        return f"changed, made or removed {names}" if touched else ""

    @staticmethod
    def _restore(touched: Sequence[Path], before: Content) -> None:
        """Makes files what they were; those that are new stay only as long as no case is opened beside them."""
        for path in touched:
            old = before.get(path)
            if old is not None:
                path.write_bytes(old)
            elif path.is_file() and path not in before:
                path.unlink()
