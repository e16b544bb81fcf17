"""Assignment problems of all kinds. Run as a script, solves many of them and compares the totals with SciPy's."""

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment as scipy_lsa

from cond_detr_kernels import _numpy, linear_sum_assignment

KINDS = ("float", "ties", "forbidden", "huge", "tiny", "nan", "columns alike", "rank one")


def cases(count: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Matrices of 0..130 x 0..330, most of them small; with as many rows as columns, fewer, and more."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        largest = (8, 20, 40, 130)[rng.choice(4, p=(0.5, 0.3, 0.15, 0.05))]
        rows, cols = rng.integers(0, largest, endpoint=True), rng.integers(0, round(largest * 2.54), endpoint=True)
        cost = make(KINDS[i % len(KINDS)], int(rows), int(cols), rng)
        yield np.ascontiguousarray(cost.T) if rng.random() < 0.3 else cost


def make(kind: str, rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.float64]:
    cost = rng.normal(size=(rows, cols))
    if kind == "ties":
        return rng.integers(0, 4, size=(rows, cols)).astype(np.float64)
    if kind == "forbidden":
        cost[rng.random(cost.shape) < rng.choice([0.1, 0.5, 0.9])] = np.inf
    if kind == "huge":
        return cost * 1e150
    if kind == "tiny":
        return cost * 1e-150
    if kind == "nan" and cost.size:
        cost.flat[rng.integers(cost.size)] = rng.choice([np.nan, -np.inf])
    if kind == "columns alike":
        return np.repeat(cost[:, :1], cols, axis=1) + rng.integers(0, 2, size=(rows, cols)) * 1e-3
    if kind == "rank one":
        return np.abs(cost[:, :1] * cost[:1]) if cost.size else cost
    return cost


def scipy_total(cost: NDArray[np.float64]) -> float | str:
    """The least total, or SciPy's complaint."""
    try:
        return float(cost[scipy_lsa(cost)].sum())
    except ValueError as error:
        return str(error)


def total(cost: NDArray[np.float64]) -> float | str:
    try:
        rows, cols = linear_sum_assignment(cost)
    except ValueError as error:
        return str(error)
    k = min(cost.shape)
    for indices, size in zip((rows, cols), cost.shape, strict=True):
        assert len(set(indices.tolist())) == len(indices) == k
        assert set(indices.tolist()) <= set(range(size))
    assert (np.diff(rows) > 0).all()
    return float(cost[rows, cols].sum())


def agree(got: float | str, want: float | str, scale: float) -> bool:
    if isinstance(want, str) or isinstance(got, str):
        return got == want
    return abs(got - want) <= 1e-9 * abs(want) + 1e-12 * scale


def main(count: int, seed: int) -> int:
    wrong = 0
    for i, cost in enumerate(cases(count, seed)):
        got, want = total(cost), scipy_total(cost)
        finite = np.abs(cost[np.isfinite(cost)])
        if not agree(got, want, finite.max(initial=0.0)):
            print(f"case {i}, {KINDS[i % len(KINDS)]} {cost.shape}: {got}, SciPy has {want}", file=sys.stderr)
            wrong += 1
    print(f"{count} problems with {_numpy.simd()}, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
