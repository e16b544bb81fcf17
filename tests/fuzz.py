"""Changes valid files at random and opens them: each must give a valid result, or be refused in a sentence.

    python tests/fuzz.py --seconds 60 --seed 0
    python tests/fuzz.py --seconds 60 --only checkpoints images
    python tests/fuzz.py --seed 0 --case 1234        one case again, with all that it says
    python tests/fuzz.py --seconds 60 --say 20       also prints some of the sentences of each kind

Files are opened in a child process. The exit status is 1 if a file led to another exception than InputError, to a
message that is no sentence or does not name the file, or to the end of the process; took more than 20 s or 1 GB; or if
another file was changed, made or removed. Such files are saved in the folder of --keep.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzzing.cases import Case, Judge, kind_of, make_case
from tests.fuzzing.child import Child, Outcome
from tests.fuzzing.specimens import KINDS, Specimen, make, missing

MOST_SECONDS = 20.0
# Everything is loaded when the first files are opened
LOADING = 120.0
# Of the lines about a failure, which may hold a traceback
MOST_LINES = 30


@dataclass
class Tally:
    """What came of the cases of a kind."""

    cases: int = 0
    refused: int = 0
    opened: int = 0
    failed: int = 0
    slowest: float = 0.0
    growth: int = 0
    sentences: set[str] = field(default_factory=set)

    def add(self, outcome: Outcome, wrong: str) -> None:
        self.cases += 1
        self.failed += bool(wrong)
        self.opened += outcome.opened and not wrong
        self.refused += not outcome.opened and not wrong
        self.slowest = max(self.slowest, outcome.seconds)
        self.growth = max(self.growth, outcome.growth)
        self.sentences.update(outcome.sentences or [])


@dataclass
class Failures:
    """Where files that fail are saved, and what is said about them.

    Attributes:
        folder: the folder; one is made for temporary files if there is none.
        seed: seed of the cases.
    """

    folder: Path | None
    seed: int

    def save(self, case: Case, wrong: str) -> str:
        """Saves the file of a case; returns what there is to say."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / f"{case.specimen.kind}-{self.seed}-{case.number}-{case.specimen.path.name}"
        kept.write_bytes(case.data)
        lines = wrong.rstrip().splitlines()
        cut = [*lines[:1], "...", *lines[-MOST_LINES:]] if len(lines) > MOST_LINES else lines
        how = f"{case.specimen.path.name}: {', then '.join(case.changes)}"
        return "\n    ".join([f"FAILED --seed {self.seed} --case {case.number}: {how}; saved as {kept}", *cut])


def numbers(kinds: Iterable[str], seconds: float, most: int | None) -> Iterator[int]:
    """Numbers of cases of some kinds, until time is up."""
    kinds, number, given, end = set(kinds), 0, 0, time.monotonic() + seconds
    while time.monotonic() < end and (most is None or given < most):
        if kind_of(number) in kinds:
            given += 1
            yield number
        number += 1


def unchanged(specimens: dict[str, list[Specimen]], judge: Judge) -> list[str]:
    """Opens the valid files, so that nothing is loaded any more when cases are timed; returns those that fail."""
    problems = []
    for each in (each for group in specimens.values() for each in group):
        outcome, wrong = judge.open(Case(-1, each, each.data, ()))
        if wrong or not outcome.opened:
            problems.append(f"FAILED {each.kind}: the valid {each.path.name}: {wrong or outcome.sentences}")
    return problems


def table(tallies: dict[str, Tally]) -> str:
    """Formats what came of the cases."""
    head = ("kind", "cases", "refused", "opened", "failed", "slowest", "growth")
    rows = [
        (kind, t.cases, t.refused, t.opened, t.failed, f"{t.slowest:.2f} s", f"{t.growth >> 20} MB")
        for kind, t in tallies.items()
    ]
    return "\n".join(f"{row[0]:12}" + "".join(f"{value!s:>10}" for value in row[1:]) for row in (head, *rows))


def fuzz(
    specimens: dict[str, list[Specimen]], judge: Judge, failures: Failures, order: Iterable[int]
) -> dict[str, Tally]:
    """Runs cases; returns what came of them by kind."""
    tallies = {kind: Tally() for kind in specimens}
    said = 0.0
    for done, number in enumerate(order, 1):
        case = make_case(specimens, failures.seed, number)
        outcome, wrong = judge.open(case)
        tallies[case.specimen.kind].add(outcome, wrong)
        if wrong:
            print(failures.save(case, wrong), flush=True)
        if time.monotonic() - said > 1:
            said = time.monotonic()
            failed = sum(t.failed for t in tallies.values())
            print(f"\r{done} cases, {failed} failed, at case {number} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return tallies


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=60, metavar="S")
    p.add_argument("--cases", type=int, metavar="N", help="stop after that many")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--case", type=int, metavar="N", help="run one case, by its number")
    p.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    p.add_argument("--keep", type=Path, metavar="DIR", help="where files that fail are saved (default: a new folder)")
    p.add_argument("--say", type=int, default=0, metavar="N", help="sentences of each kind to print")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
    options = parser().parse_args(argv)
    kinds = tuple(options.only) if options.case is None else (kind_of(options.case),)
    for kind in kinds:
        if missing(kind):
            print(f"SKIPPED {kind}: {missing(kind)}")
    failures = Failures(options.keep, options.seed)
    with tempfile.TemporaryDirectory() as work:
        specimens = make(Path(work) / "files", tuple(kind for kind in KINDS if kind in kinds))
        judge = Judge(Child(Path(work) / "files", Path(work) / "tmp", LOADING), MOST_SECONDS)
        problems = unchanged(specimens, judge)
        judge.child.patience = MOST_SECONDS + 5
        order = [options.case] if options.case is not None else numbers(specimens, options.seconds, options.cases)
        tallies = fuzz(specimens, judge, failures, order if specimens else [])
        judge.child.close()
    print("\n".join([*problems, table(tallies)]))
    say(tallies, 1000 if options.case is not None else options.say)
    return int(bool(problems) or any(t.failed for t in tallies.values()))


def say(tallies: dict[str, Tally], count: int) -> None:
    """Prints some of the sentences of each kind."""
    for kind, tally in tallies.items():
        chosen = sorted(tally.sentences)
        for sentence in random.Random(0).sample(chosen, min(count, len(chosen))):
            print(f"{kind}: {sentence}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the child: small models are faster without a thread pool
    sys.exit(main())
