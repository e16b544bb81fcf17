"""The CUDA kernels, executed on an emulated GPU: against the CPU solver, SciPy, and sanitizers."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.csrc.emulated import SANITIZERS, SHARED_BYTES, Batch, Run, dense_batches, write_batches
from tests.csrc.seeded_bugs import Workplace
from tests.kernels.assignment_cases import agree, scipy_total

SENTENCES = {1: "matrix contains invalid numeric entries", 2: "cost matrix is infeasible"}
GARBAGE = (0x00, 0xFF)
CONFIGURATIONS = [(place, garbage) for place in SHARED_BYTES for garbage in GARBAGE]
# One that only ThreadSanitizer can see, one that takes blocks that run at the same time, one that breaks a meeting; and
# which sanitizer is to see each
SOME_BUGS = {
    "columns cleared without a barrier": "thread",
    "global scratch not per problem": "address",
    "lane 0 leaves a vote out": "address",
}


class Dense:
    """Dense problems, their file, and SciPy's totals."""

    def __init__(self, folder: Path) -> None:
        self.batches = list(dense_batches(5000, seed=5, sizes={8: 0.66, 20: 0.28, 40: 0.053, 160: 0.007}))
        self.file = folder / "dense"
        write_batches(self.batches, self.file)
        self.totals = [[scipy_total(cost) for cost in self.minimized(batch)] for batch in self.batches]

    @staticmethod
    def minimized(batch: Batch) -> NDArray[np.float64]:
        return -batch.costs if batch.maximize else batch.costs

    def check(self, answers: NDArray[np.int64]) -> None:
        for batch, totals in zip(self.batches, self.totals, strict=True):
            count, k = len(batch.costs), min(batch.costs.shape[1:])
            status, rows, cols, answers = np.split(answers, np.cumsum([count, count * k, count * k]))
            self.check_batch(batch, totals, status, rows.reshape(count, k), cols.reshape(count, k))
        assert answers.size == 0

    def check_batch(
        self,
        batch: Batch,
        totals: list[float | str],
        status: NDArray[np.int64],
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
    ) -> None:
        for cost, total, s, i, j in zip(self.minimized(batch), totals, status, rows, cols, strict=True):
            got = SENTENCES.get(int(s)) or float(cost[i, j].sum())
            assert agree(got, total, np.abs(cost[np.isfinite(cost)]).max(initial=0.0))
            assert (np.diff(i) > 0).all()
            assert len(set(j.tolist())) == len(j)


@dataclass(frozen=True)
class Work:
    """All that takes long, under way at the same time; tests wait for their part of it."""

    dense: Dense
    answers: dict[tuple[str, int], Future[NDArray[np.int64]]]
    races: dict[str, Future[str | None]]
    bugs: dict[str, Future[dict[str, str | None]]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    folder = tmp_path_factory.mktemp("emulated")
    workplace = Workplace(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = {name: pool.submit(workplace.builder.program, name) for name in SANITIZERS}
        programs = {name: future.result() for name, future in built.items()}
        bugs = {name: pool.submit(workplace.catch, name, [sanitizer]) for name, sanitizer in SOME_BUGS.items()}
        races = {
            place: pool.submit(workplace.run, programs["thread"], "thread", place, garbage=0xFF)
            for place in SHARED_BYTES
        }
        dense = Dense(folder)
        answers = {
            (place, garbage): pool.submit(answers_of, programs["address"], dense, place, garbage)
            for place, garbage in CONFIGURATIONS
        }
        yield Work(dense, answers, races, bugs)


def answers_of(program: Path, dense: Dense, place: str, garbage: int) -> NDArray[np.int64]:
    answers = program.with_name(f"answers, {place}, {garbage}")
    run = Run(SHARED_BYTES[place], garbage, seed=100 + CONFIGURATIONS.index((place, garbage)), match_batches=80)
    done = run(program, dense.file, answers)
    assert done.returncode == 0, done.stderr
    return np.fromfile(answers, np.int64)


@pytest.mark.parametrize(("place", "garbage"), CONFIGURATIONS)
def test_same_as_the_cpu_and_as_good_as_scipy(work: Work, place: str, garbage: int) -> None:
    work.dense.check(work.answers[place, garbage].result())


@pytest.mark.parametrize("place", SHARED_BYTES)
def test_no_data_race(work: Work, place: str) -> None:
    assert work.races[place].result() is None


@pytest.mark.parametrize("name", SOME_BUGS)
def test_bugs_are_noticed(work: Work, name: str) -> None:
    assert any(work.bugs[name].result().values())
