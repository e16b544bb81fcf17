"""linear_sum_assignment and match against SciPy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment as scipy_lsa

from cond_detr_kernels import MatchStatus, MatchWeights, linear_sum_assignment, match
from cond_detr_kernels.assignment import reference

SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (1, 7), (7, 1), (20, 20), (20, 300), (300, 20), (299, 300), (130, 131)]


def assert_optimal(cost: np.ndarray, rows: np.ndarray, cols: np.ndarray, maximize: bool = False) -> None:
    """Indices are unique, in range, rows ascending, and the total is SciPy's."""
    k = min(cost.shape)
    assert rows.shape == cols.shape == (k,)
    assert (np.diff(rows) > 0).all()
    assert len(set(cols.tolist())) == k
    assert k == 0 or (rows.min() >= 0 and rows.max() < cost.shape[0] and cols.min() >= 0 and cols.max() < cost.shape[1])
    want = cost[scipy_lsa(cost, maximize)].sum()
    np.testing.assert_allclose(cost[rows, cols].sum(), want, rtol=1e-9, atol=1e-12 * np.abs(cost).max(initial=0))


@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("kind", ["float", "ties", "negative", "huge"])
def test_numpy_matches_scipy(shape: tuple[int, int], kind: str, maximize: bool) -> None:
    rng = np.random.default_rng(0)
    cost = {
        "float": lambda: rng.random(shape),
        "ties": lambda: rng.integers(0, 4, shape),
        "negative": lambda: rng.normal(size=shape),
        "huge": lambda: rng.normal(size=shape) * 1e12,
    }[kind]()
    assert_optimal(cost, *linear_sum_assignment(cost, maximize), maximize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(9, 13), (13, 9)], ids=str)
def test_tensor_of_any_dtype(device: torch.device, shape: tuple[int, int], dtype: torch.dtype) -> None:
    cost = (torch.rand(shape) * 50).to(dtype)
    rows, cols = linear_sum_assignment(cost.to(device))
    assert rows.dtype == cols.dtype == torch.int64
    assert rows.device.type == cols.device.type == device.type
    assert_optimal(cost.double().numpy(), rows.cpu().numpy(), cols.cpu().numpy())


def test_leading_batch_dimensions() -> None:
    cost = torch.rand(3, 4, 6, 5, dtype=torch.float64).transpose(-1, -2)  # not contiguous
    for batch, index in ((cost, linear_sum_assignment(cost)), (cost.numpy(), linear_sum_assignment(cost.numpy()))):
        rows, cols = index
        assert rows.shape == cols.shape == (3, 4, 5)
        for i, j in np.ndindex(3, 4):
            assert_optimal(np.asarray(batch[i, j]), np.asarray(rows[i, j]), np.asarray(cols[i, j]))
    rows, cols = linear_sum_assignment(torch.rand(0, 4, 6))
    assert rows.shape == cols.shape == (0, 4)


@pytest.mark.parametrize(
    ("cost", "chosen"),
    [
        ([[400, 150, 400], [400, 450, 600], [300, 225, 300]], [150, 400, 300]),
        ([[400, 150, 400, 1], [400, 450, 600, 2], [300, 225, 300, 3]], [150, 2, 300]),
        ([[10, 10, 8], [9, 8, 1], [9, 7, 4]], [10, 1, 7]),
        ([[10, 10, 8, 11], [9, 8, 1, 1], [9, 7, 4, 10]], [10, 1, 4]),
        ([[], []], []),
        ([[10, np.inf, np.inf], [np.inf, np.inf, 1], [np.inf, 7, np.inf]], [10, 1, 7]),
    ],
    ids=["square", "rectangular", "square 2", "rectangular 2", "empty", "forbidden"],
)
@pytest.mark.parametrize("sign", [1, -1], ids=["min", "max"])
def test_scipys_published_cases(cost: list[list[float]], chosen: list[float], sign: int) -> None:
    matrix = np.array(cost)
    assert matrix[linear_sum_assignment(sign * matrix, maximize=sign < 0)].tolist() == chosen
    transposed = matrix.T[linear_sum_assignment(sign * matrix.T, maximize=sign < 0)]
    assert sorted(transposed.tolist()) == sorted(chosen)


@pytest.mark.parametrize("simd", ["baseline", "avx2", "avx512"])
def test_twenty_thousand_problems(simd: str) -> None:
    """Each instruction set in a process of its own, as it is chosen once."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.assignment_cases", "20000", "1"],
        env=os.environ | {"COND_DETR_SIMD": simd},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "0 wrong" in run.stdout


def test_every_instruction_set_finds_the_same() -> None:
    """Not only the same total: the same assignment, ties and all."""
    script = (
        "import torch; from cond_detr_kernels import MatchWeights, match; torch.manual_seed(0)\n"
        "q = torch.rand(2, 9, 60, 4)\n"
        "boxes = (q * 4).round() / 4 + 0.1; counts = torch.arange(9) * 9\n"
        "operands = torch.randn(2, 9, 60, 3).round(), boxes, torch.randint(0, 3, (9, 80)), "
        "boxes[0].repeat(1, 2, 1)[:, :80]\n"
        "for softmax in (False, True):\n"
        "    print(match(*operands, counts, weights=MatchWeights(softmax=softmax))[0].tolist())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"COND_DETR_SIMD": simd},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for simd in ("baseline", "avx2", "avx512")
    }
    assert len(answers) == 1


finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@settings(max_examples=400, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.one_of(finite, st.integers(-3, 3), st.just(np.inf)))
    ),
    st.booleans(),
)
def test_property_forbidden_pairs(cost: np.ndarray, maximize: bool) -> None:
    """+inf forbids a pair (-inf when maximising), and infeasible problems raise as SciPy's do."""
    if maximize:
        cost = -cost
    try:
        scipy_lsa(cost, maximize)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            linear_sum_assignment(cost, maximize)
        return
    rows, cols = linear_sum_assignment(cost, maximize)
    want = cost[scipy_lsa(cost, maximize)].sum()
    np.testing.assert_allclose(cost[rows, cols].sum(), want, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, -np.inf], ids=str)
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_invalid_entries_raise_scipys_sentence(bad: float, make: object) -> None:
    cost = np.zeros((2, 3, 3))
    cost[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"matrix contains invalid numeric entries \(problem 1\)"):
        linear_sum_assignment(make(cost))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("cost", "sentence"),
    [
        (np.zeros(3), "expected a matrix"),
        (np.array([["a", "b"]]), "Cannot cast array data"),
        (torch.zeros(2, 2, dtype=torch.complex64), "numerical entries"),
    ],
    ids=["vector", "strings", "complex"],
)
def test_wrong_operands(cost: object, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        linear_sum_assignment(cost)  # type: ignore[call-overload]


def problem(layers: int, batch: int, queries: int, classes: int, counts: list[int]) -> tuple[torch.Tensor, ...]:
    targets = max([*counts, 1])
    return (
        torch.randn(layers, batch, queries, classes) * 2,
        torch.rand(layers, batch, queries, 4) * 0.5 + 0.1,
        torch.randint(0, classes, (batch, targets)),
        torch.rand(batch, targets, 4) * 0.5 + 0.1,
        torch.tensor(counts, dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("queries", "counts"),
    [(30, [3, 0, 7]), (300, [0, 0]), (1, [1, 4]), (25, [60, 25, 24]), (300, [100])],
    ids=["ragged", "no targets", "one query", "more targets than queries", "many"],
)
@pytest.mark.parametrize(
    "weights",
    [MatchWeights(), MatchWeights(1.0, 0.0, 3.0, 0.5, 1.5), MatchWeights(1.0, 5.0, 2.0, softmax=True)],
    ids=["paper", "other", "softmax"],
)
def test_match_equals_reference(device: torch.device, queries: int, counts: list[int], weights: MatchWeights) -> None:
    operands = problem(3, len(counts), queries, 5, counts)
    pred_index, status = (t.cpu() for t in match(*(t.to(device) for t in operands), weights=weights))
    want_index, want_status = reference.match(*operands, weights=weights)
    assert pred_index.dtype == torch.int64
    assert status.dtype == torch.int32
    torch.testing.assert_close(pred_index, want_index)
    torch.testing.assert_close(status, want_status)
    for (_, image), row in zip(np.ndindex(3, len(counts)), pred_index.flatten(0, 1), strict=True):
        given_away = row[row >= 0]
        assert len(given_away) == min(counts[image], queries) == len(given_away.unique())
        assert (row[counts[image] :] == -1).all()


def test_match_without_images() -> None:
    pred_index, status = match(
        torch.zeros(2, 0, 5, 3),
        torch.zeros(2, 0, 5, 4),
        torch.zeros(0, 4, dtype=torch.int64),
        torch.zeros(0, 4, 4),
        torch.zeros(0, dtype=torch.int64),
    )
    assert pred_index.shape == (2, 0, 4)
    assert status.shape == (2, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("operand", [0, 1], ids=["logits", "boxes"])
def test_match_sanitises_only_the_problem_that_needs_it(device: torch.device, bad: float, operand: int) -> None:
    """ "Invalid numeric entries": rf-detr#784, transformers#47000, #47730, mmdetection#4902, RT-DETR#527."""
    operands = [t.to(device) for t in problem(2, 2, 10, 3, [4, 4])]
    clean, _ = match(*operands)
    operands[operand][1, 0, 5] = bad
    pred_index, status = match(*operands)
    assert status.tolist() == [[MatchStatus.OK, MatchStatus.OK], [MatchStatus.SANITISED, MatchStatus.OK]]
    assert (pred_index[1, 0] != 5).all()
    assert len(pred_index[1, 0].unique()) == 4
    torch.testing.assert_close(pred_index[0], clean[0])
    torch.testing.assert_close(pred_index[1, 1], clean[1, 1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("position", [0, 3], ids=["first class", "last class"])
def test_softmax_notices_a_bad_logit_of_another_class(device: torch.device, bad: float, position: int) -> None:
    weights = MatchWeights(softmax=True)
    operands = problem(1, 1, 10, 4, [3])
    operands[2].fill_(1)
    operands[0][0, 0, 5, position] = bad
    pred_index, status = match(*(t.to(device) for t in operands), weights=weights)
    want_index, want_status = reference.match(*operands, weights=weights)
    assert status.item() == want_status.item() == MatchStatus.SANITISED
    torch.testing.assert_close(pred_index.cpu(), want_index)
    operands[0][0, 0, 5, position] = -float("inf")  # a class that is ruled out is no mistake
    assert match(*(t.to(device) for t in operands), weights=weights)[1].item() == MatchStatus.OK


@pytest.mark.parametrize("softmax", [False, True])
def test_match_without_classes(softmax: bool) -> None:
    operands = problem(1, 1, 5, 1, [3])
    _, status = match(operands[0][..., :0], *operands[1:], weights=MatchWeights(softmax=softmax))
    assert status.item() == MatchStatus.SANITISED


def test_match_survives_an_unknown_label_and_count() -> None:
    operands = problem(1, 1, 6, 3, [4])
    operands[2][0, 1] = 99
    operands[4][0] = 10**6
    pred_index, status = match(*operands)
    assert status.item() == MatchStatus.SANITISED
    assert len(pred_index.unique()) == 4


def test_strict_names_layer_and_image() -> None:
    operands = problem(3, 2, 10, 3, [4, 4])
    match(*operands, strict=True)
    operands[0][2, 1, 5] = float("nan")
    for implementation in (match, reference.match):
        with pytest.raises(ValueError, match=r"matrix contains invalid numeric entries \(layer 2, image 1\)"):
            implementation(*operands, strict=True)


def test_match_costs_are_those_of_double_precision() -> None:
    """With one target, the chosen query is the cheapest; costs in fp32 may only err between near ties."""
    for gamma in (2.0, 1.5):
        weights = MatchWeights(gamma=gamma)
        logits, boxes, labels, target_boxes, counts = problem(1, 50, 300, 4, [1] * 50)
        logits *= 4
        found, _ = match(logits, boxes, labels, target_boxes, counts, weights=weights)
        for image in range(50):
            cost = reference.match_cost(
                logits[0, image].double(),
                boxes[0, image].double(),
                labels[image],
                target_boxes[image].double(),
                weights,
            )[0]
            assert cost[found[0, image, 0]] - cost.min() < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("softmax", [False, True], ids=["focal", "softmax"])
@pytest.mark.parametrize(
    ("queries", "counts"),
    [
        pytest.param(300, [3, 0, 7], id="few"),
        pytest.param(300, [100, 90, 300], id="many"),
        pytest.param(300, [2000, 1, 5], id="more than fit"),
        pytest.param(700, [150, 0, 40], id="several columns a thread"),
        pytest.param(2600, [50, 1, 20], id="more columns than registers"),
    ],
)
def test_cuda_is_the_cpu_bit_by_bit(queries: int, counts: list[int], softmax: bool) -> None:
    weights = MatchWeights(softmax=softmax)
    operands = problem(2, 3, queries, 20, counts)
    operands[1].copy_((operands[1] * 8).round() / 8)  # ties
    torch.testing.assert_close(
        [t.cpu() for t in match(*(t.cuda() for t in operands), weights=weights)],
        list(match(*operands, weights=weights)),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_neither_waits_nor_allocates_beyond_the_outputs() -> None:
    operands = [t.cuda() for t in problem(6, 2, 300, 20, [3, 9])]
    want = match(*operands)
    torch.cuda.set_sync_debug_mode("error")
    try:
        match(*operands)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = match(*operands)
    graph.replay()
    torch.testing.assert_close(got, want)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = match(*operands)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() - before <= sum(max(512, t.nbytes + 511) for t in kept)


def test_match_extreme_logits_are_exact() -> None:
    operands = problem(1, 1, 8, 2, [3])
    operands[0].mul_(1000)
    _, status = match(*operands)
    assert status.item() == MatchStatus.OK


@pytest.mark.parametrize(
    ("position", "tensor", "sentence"),
    [
        (0, torch.zeros(2, 10, 3), r"logits must be \(L, B, Q, C\)"),
        (1, torch.zeros(2, 2, 10, 5), r"boxes must be \(L, B, Q, 4\)"),
        (2, torch.zeros(2, 4), "target_labels must be an integer"),
        (3, torch.zeros(2, 7, 5), r"target_boxes must be \(B, T, 4\), here \(2, 4, 4\), got \(2, 7, 5\)"),
        (4, torch.zeros(3, dtype=torch.int64), r"target_count must be \(B,\)"),
        (1, torch.zeros(2, 2, 10, 4, dtype=torch.int64), "boxes must be a floating point"),
        (4, torch.zeros(2, dtype=torch.int64, device="meta"), "target_count must have the device of logits"),
    ],
    ids=["logits", "boxes", "labels dtype", "target boxes", "count", "boxes dtype", "device"],
)
def test_match_names_the_wrong_operand(position: int, tensor: torch.Tensor, sentence: str) -> None:
    operands = list(problem(2, 2, 10, 3, [4, 4]))
    operands[position] = tensor
    with pytest.raises(ValueError, match=sentence):
        match(*operands)


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6, 4), (0, 4, 4), (2, 0, 3)], ids=str)
def test_opcheck_linear_sum_assignment(shape: tuple[int, ...]) -> None:
    cost = torch.rand(shape, dtype=torch.float64)
    torch.library.opcheck(torch.ops.cond_detr.linear_sum_assignment.default, (cost, False))


def test_opcheck_match() -> None:
    operands = problem(2, 3, 10, 4, [2, 0, 5])
    torch.library.opcheck(torch.ops.cond_detr.match.default, (*operands, *MatchWeights()))


def test_match_compiles_without_graph_breaks() -> None:
    operands = problem(2, 2, 10, 4, [2, 5])
    compiled = torch.compile(match, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*operands), match(*operands))


def test_the_build_says_whether_it_has_cuda() -> None:
    from cond_detr_kernels import _C

    assert _C.WITH_CUDA in (0, 1)
