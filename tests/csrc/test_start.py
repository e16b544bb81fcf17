"""How the assignment solver starts: what it leaves to the searches has to be optimal as far as it goes, and little."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.csrc.emulated import CSRC, FLAGS, call, compiler
from tests.kernels.assignment_cases import KINDS, make

Costs = NDArray[np.float64]


class Started(NamedTuple):
    status: int
    col_of_row: NDArray[np.int64]
    row_dual: Costs
    col_dual: Costs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("started") / "start"
    call(compiler(), *FLAGS, "-I", CSRC, Path(__file__).with_name("start_main.cpp"), "-o", built)
    return built


def start(program: Path, problems: Sequence[Costs]) -> list[Started]:
    given, written = program.with_name("in"), program.with_name("out")
    given.write_bytes(b"".join(np.int64(cost.shape).tobytes() + cost.tobytes() for cost in problems))
    subprocess.run([program, given, written], check=True)
    found, numbers = [], np.fromfile(written)
    for rows, cols in (cost.shape for cost in problems):
        status, col_of_row, row_dual, col_dual, numbers = np.split(numbers, np.cumsum([1, rows, rows, cols]))
        found.append(Started(int(status[0]), col_of_row.astype(np.int64), row_dual, col_dual))
    assert numbers.size == 0
    return found


def test_what_is_assigned_is_optimal(program: Path) -> None:
    """Duals are feasible, edges of assigned pairs tight, and columns without a row have a dual of 0."""
    rng = np.random.default_rng(0)
    shapes = [(rows, rows + extra) for rows in (1, 2, 7, 30, 100) for extra in (0, 1, 5, 200)]
    problems = [make(kind, *shape, rng) for kind in KINDS if kind != "nan" for shape in shapes]
    started = [(cost, one) for cost, one in zip(problems, start(program, problems), strict=True) if one.status == 0]
    assert len(started) > 100
    for cost, (_, col_of_row, row_dual, col_dual) in started:
        rows = np.flatnonzero(col_of_row >= 0)
        cols = col_of_row[rows]
        assert len(set(cols.tolist())) == len(cols)
        slack = cost - row_dual[:, None] - col_dual
        rounding = 1e-12 * np.abs(cost[np.isfinite(cost)]).max()
        assert slack.min() >= -rounding
        assert np.abs(slack[rows, cols]).max(initial=0.0) <= rounding
        assert (np.delete(col_dual, cols) == 0).all()


def test_little_is_left_of_what_several_rows_want(program: Path) -> None:
    """Distances of 100 points to 300 others: about 30 of the 100 are nearest to one that another has taken."""
    rng = np.random.default_rng(0)
    costs = np.linalg.norm(rng.random((10, 100, 1, 2)) * 0.7 - rng.random((10, 1, 300, 2)), axis=-1)
    by_row_minima = sum(100 - len(set(cost.argmin(axis=1).tolist())) for cost in costs)
    left = sum(int((one.col_of_row < 0).sum()) for one in start(program, list(costs)))
    assert left < 0.25 * by_row_minima
