"""The Triton kernels against the formula in fp64: on a CUDA device, or through Triton's interpreter."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cond_detr_kernels.conditional_attention import closed_form
from cond_detr_kernels.conditional_attention.backward import backward_launches
from cond_detr_kernels.conditional_attention.forward import forward_launches
from cond_detr_kernels.conditional_attention.launch import dot_precision
from cond_detr_kernels.conditional_attention.problem import Problem
from cond_detr_kernels.conditional_attention.reference import dropped_reference, head_thresholds, philox
from cond_detr_kernels.conditional_attention.target import target_of
from cond_detr_kernels.conditional_attention.torch_operator import DifferentiableAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEED = 123456789
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
OPERANDS = ("q_content", "q_spatial", "k_content", "k_spatial", "value")


class Shape(NamedTuple):
    batch: int
    heads: int
    queries: int
    keys: int
    content: int
    spatial: int
    value: int


SHAPES = {
    "paper": Shape(1, 1, 300, 1050, 32, 32, 32),
    "one query": Shape(2, 2, 1, 130, 32, 32, 32),
    "one key": Shape(1, 2, 33, 1, 16, 16, 16),
    "299 keys": Shape(2, 1, 100, 299, 32, 32, 32),
    "mixed dims": Shape(1, 2, 65, 200, 16, 64, 128),
    "wide": Shape(1, 1, 40, 150, 128, 128, 64),
    "not powers of two": Shape(2, 2, 25, 64, 12, 12, 12),
    "tile edges": Shape(1, 1, 128, 256, 32, 16, 32),
    "content alone": Shape(2, 2, 150, 150, 32, 0, 32),
}


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_problem(shape: Shape, dtype: torch.dtype, mask: str = "none", dropout_p: float = 0.0) -> Problem:
    """Head views as the model makes them: (B, N, H, D) transposed."""
    b, h, n, s, dc, ds, dv = shape
    sizes = [(n, dc), (n, ds), (s, dc), (s, ds), (s, dv)]
    tensors = [torch.randn(b, length, h, dim, device=DEVICE).to(dtype).transpose(1, 2) for length, dim in sizes]
    seed = torch.tensor([SEED], device=DEVICE) if dropout_p else None
    padding = make_mask(shape, mask)
    key_mask = None if padding is None else torch.ops.cond_detr.prepare_key_mask(padding)
    return Problem(*tensors, key_mask, seed, dropout_p, scale=(dc + ds) ** -0.5)


def make_mask(shape: Shape, kind: str) -> Tensor | None:
    if kind == "none":
        return None
    key = torch.arange(shape.keys, device=DEVICE)
    mask = torch.rand(shape.batch, shape.keys, device=DEVICE) < 0.3
    if kind == "right and bottom":
        mask[:] = (key % 35 >= 28) | (key >= 0.7 * shape.keys)
    if kind == "first keys":
        mask[:] = key < 0.6 * shape.keys
    if kind == "all of one image":
        mask[-1] = True
    if kind == "all":
        mask[:] = True
    return mask


def exact(problem: Problem, grad_out: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients in fp64, with no code shared with the kernels but which weights are dropped."""
    qc, qs, kc, ks, v = (x.detach().double().requires_grad_() for x in problem[:5])
    scores = problem.scale * (torch.einsum("bhnd,bhsd->bhns", qc, kc) + torch.einsum("bhnd,bhsd->bhns", qs, ks))
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    if problem.key_mask is not None:
        weights = weights * (problem.key_mask[:, None, None, : kc.shape[2]] == 0)
    total = weights.sum(-1, keepdim=True)
    weights = weights / total.where(total > 0, torch.ones_like(total))
    if problem.dropout_p:
        batch, heads, queries, keys = problem.sizes
        dropped = dropped_reference(SEED, batch * heads, queries, keys, problem.dropout_p).to(DEVICE)
        keep = 1 - head_thresholds(SEED, batch * heads, problem.dropout_p).to(DEVICE) / 256
        weights = weights * (~dropped / keep).view(batch, heads, queries, keys)
    out = torch.einsum("bhns,bhsd->bhnd", weights, v)
    grads = torch.autograd.grad((out * grad_out.double()).sum(), (qc, qs, kc, ks, v))
    return out.detach(), list(grads)


def run(problem: Problem, grad_out: Tensor, deterministic: bool, multiprocessors: int) -> tuple[Tensor, list[Tensor]]:
    """As if on a device of so many multiprocessors, which decides the configuration and whether keys are split."""
    tuning = target_of(problem).tuning
    launches, out, lse = forward_launches(problem, tuning, multiprocessors)
    for launch in launches:
        launch.run()
    launches, grad_queries, grad_keys = backward_launches(problem, out, lse, grad_out, tuning, deterministic)
    for launch in launches:
        launch.run()
    return out, [*grad_queries, *grad_keys]


def assert_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """In the norm of the tensor; those that are zero but for rounding absolutely."""
    assert not got.isnan().any(), f"{name} holds NaN"
    error = (got.double() - want).norm() / want.norm().clamp(min=1)
    assert error < tolerance, f"{name} is off by {error:.1e}"


def check(
    problem: Problem, deterministic: bool = True, multiprocessors: int = 1, tolerance: float | None = None
) -> None:
    dtype = problem.value.dtype
    tolerance = tolerance or TOLERANCE[dtype]
    grad_out = torch.randn(*problem.sizes[:3], problem.dims[2], device=DEVICE).to(dtype)
    want, want_grads = exact(problem, grad_out)
    got, grads = run(problem, grad_out, deterministic, multiprocessors)
    assert got.dtype == dtype
    assert_close("the output", got, want, tolerance)
    for name, grad, want_grad in zip(OPERANDS, grads, want_grads, strict=True):
        assert_close(f"the gradient of {name}", grad, want_grad, tolerance)


def is_tried(dtype: torch.dtype, mask: str, dropout_p: float, deterministic: bool) -> bool:
    """The interpreter takes seconds for each: there in bf16 only what has everything, and one way back for each."""
    if DEVICE.type == "cuda":
        return True
    if dtype == torch.bfloat16:
        return mask != "none" and dropout_p > 0 and deterministic
    return deterministic == ((mask == "none") == (dropout_p > 0))


VARIANTS = [
    pytest.param(
        *(dtype, mask, p, deterministic),
        id=f"{str(dtype)[6:]}-{mask}-p={p}-{'deterministic' if deterministic else 'one pass'}",
    )
    for dtype in (torch.float32, torch.bfloat16)
    for mask in ("none", "right and bottom")
    for p in (0.0, 0.1)
    for deterministic in (True, False)
    if is_tried(dtype, mask, p, deterministic)
]


@pytest.mark.parametrize(("dtype", "mask", "dropout_p", "deterministic"), VARIANTS)
@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("paper", "one key")])
def test_agrees_with_fp64(name: str, dtype: torch.dtype, mask: str, dropout_p: float, deterministic: bool) -> None:
    check(make_problem(SHAPES[name], dtype, mask, dropout_p), deterministic)


@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "one pass"])
def test_one_key(deterministic: bool) -> None:
    """Its weight is always 1, so the gradients of queries and keys are zero but for rounding."""
    check(make_problem(SHAPES["one key"], torch.float32, dropout_p=0.1), deterministic)


@pytest.mark.parametrize(("multiprocessors", "dropout_p"), [(1, 0.1), (132, 0.0)], ids=["whole", "keys split"])
def test_agrees_at_the_papers_size(multiprocessors: int, dropout_p: float) -> None:
    check(make_problem(SHAPES["paper"], torch.float32, "right and bottom", dropout_p), True, multiprocessors)


@pytest.mark.parametrize("multiprocessors", [1, 132], ids=["whole", "keys split"])
@pytest.mark.parametrize("mask", ["random", "first keys", "all of one image", "all"])
def test_masks(mask: str, multiprocessors: int) -> None:
    """Keys are split in the forward pass alone; so each way back is tried with one of the two."""
    problem = make_problem(Shape(2, 1, 70, 450, 32, 32, 32), torch.float32, mask)
    check(problem, deterministic=multiprocessors == 1, multiprocessors=multiprocessors)


def test_masked_images_give_zero() -> None:
    problem = make_problem(SHAPES["299 keys"], torch.float32, "all of one image")
    out, grads = run(problem, torch.randn_like(problem.q_content), deterministic=False, multiprocessors=1)
    assert all((tensor[-1] == 0).all() for tensor in (out, *grads))


def test_half_precision() -> None:
    check(make_problem(SHAPES["299 keys"], torch.float16, "random", 0.1))


@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "one pass"])
def test_tf32(deterministic: bool) -> None:
    """Torch's setting is followed, and operands are rounded to nearest: cut off, they would be .2 % off."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check(make_problem(SHAPES["299 keys"], torch.float32, "random", 0.1), deterministic, tolerance=8e-4)
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_follows_either_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dot_precision(torch.float32) == "ieee"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert dot_precision(torch.float32) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "one pass"])
def test_heads_of_different_rates(deterministic: bool) -> None:
    """Each scales what it keeps by its own."""
    dropout_p = 25.5 / 256
    assert head_thresholds(SEED, 16, dropout_p).unique().tolist() == [25, 26]
    check(make_problem(Shape(2, 8, 20, 40, 16, 16, 16), torch.float32, dropout_p=dropout_p), deterministic)


@pytest.mark.parametrize("dropout_p", [1 / 65536, 0.99999999], ids=["least", "most"])
def test_extreme_dropout(dropout_p: float) -> None:
    check(make_problem(SHAPES["one query"], torch.float32, dropout_p=dropout_p))


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_large_scores(dropout_p: float) -> None:
    """Scores of minus thousands: nothing overflows, also behind the last key, where scores are 0."""
    problem = make_problem(Shape(1, 1, 20, 70, 16, 16, 16), torch.float32, dropout_p=dropout_p)
    problem = problem._replace(
        q_content=problem.q_content.abs() * 30, k_content=-problem.k_content.abs() * 30, scale=1.0
    )
    for deterministic in (True, False):
        # such scores are themselves rounded to three decimals
        check(problem, deterministic, tolerance=1e-2)


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same numbers in another place."""
    b, h, n, d = tensor.shape
    if how == "heads first":
        return tensor.contiguous()
    if how == "columns apart":
        return torch.stack([tensor, torch.full_like(tensor, float("nan"))], -1).flatten(-2)[..., ::2]
    if how == "dims before rows":
        return tensor.mT.contiguous().mT
    wide = torch.full((n + 3, b, h, d + 5), float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = wide[2 : n + 2, ..., 3 : d + 3].permute(1, 2, 0, 3)
    return view.copy_(tensor)


LAYOUTS = ["heads first", "columns apart", "dims before rows", "inside another"]


@settings(max_examples=18, deadline=None, derandomize=True)
@given(
    shape=st.builds(
        Shape,
        *(st.integers(1, 2), st.integers(1, 2), st.integers(1, 90), st.integers(1, 150)),
        *(st.integers(1, 40) for _ in range(3)),
    ),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=5, max_size=5),
    mask=st.sampled_from(["none", "random", "first keys", "all of one image"]),
    dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
    deterministic=st.booleans(),
)
def test_any_shape_and_strides(
    shape: Shape, layouts: list[str], mask: str, dropout_p: float, deterministic: bool
) -> None:
    problem = make_problem(shape, torch.float32, mask, dropout_p)
    tensors = dict(zip(OPERANDS, map(strided, problem[:5], layouts), strict=True))
    check(problem._replace(**tensors), deterministic)


def test_expanded_operands() -> None:
    """One image position embedding for the whole batch, without copies."""
    problem = make_problem(SHAPES["299 keys"], torch.float32)
    check(problem._replace(k_spatial=problem.k_spatial[:1].expand(2, -1, -1, -1)))


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_closed_form_is_what_the_kernels_compute(dropout_p: float) -> None:
    problem = make_problem(SHAPES["299 keys"], torch.float32, "all of one image", dropout_p)
    grad_out = torch.randn_like(problem.q_content)
    out, grads = run(problem, grad_out, deterministic=True, multiprocessors=1)
    want, lse = closed_form.forward(problem)
    torch.testing.assert_close(out, want)
    for grad, want_grad in zip(grads, closed_form.backward(problem, want, lse, grad_out), strict=True):
        torch.testing.assert_close(grad, want_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=str)
def test_empty(sizes: tuple[int, int, int, int]) -> None:
    problem = make_problem(Shape(*sizes, 8, 8, 8), torch.float32)
    inputs = [tensor.requires_grad_() for tensor in problem[:5]]
    out, _ = DifferentiableAttention.apply(*inputs, *problem[5:], None)
    assert out.shape == (*sizes[:3], 8)
    assert (out == 0).all()
    for tensor, grad in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
        assert grad.shape == tensor.shape
        assert (grad == 0).all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["p=0", "p=.1"])
def test_opcheck(dropout_p: float) -> None:
    torch.use_deterministic_algorithms(False)
    problem = make_problem(Shape(2, 2, 7, 40, 16, 8, 12), torch.float32, "random", dropout_p)
    inputs = [tensor.requires_grad_() for tensor in problem[:5]]
    torch.library.opcheck(torch.ops.cond_detr.conditional_attention.default, (*inputs, *problem[5:], None))
    out, lse = torch.ops.cond_detr.conditional_attention(*problem, None)
    arguments = (torch.randn_like(out), *(x.detach() for x in problem[:5]), *problem[5:], out.detach(), lse, True)
    torch.library.opcheck(torch.ops.cond_detr.conditional_attention_backward.default, arguments)


def attend(problem: Problem) -> Tensor:
    out: Tensor = DifferentiableAttention.apply(*problem, True)[0]
    return out


def test_torch_func() -> None:
    problem = make_problem(Shape(2, 2, 7, 40, 16, 8, 12), torch.float32, "random")

    def loss(query: Tensor) -> Tensor:
        return attend(problem._replace(q_content=query)).square().sum()

    queries = torch.stack([problem.q_content, 2 * problem.q_content])
    inside = torch.func.vmap(torch.func.grad(loss))(queries)
    outside = torch.func.grad(lambda q: torch.func.vmap(loss)(q).sum())(queries)
    for query, *got in zip(queries, inside, outside, strict=True):
        query = query.detach().requires_grad_()
        want = torch.autograd.grad(loss(query), query)[0]
        torch.testing.assert_close(got, [want, want])


def test_no_second_derivatives() -> None:
    problem = make_problem(Shape(1, 1, 3, 5, 8, 8, 8), torch.float32)
    query = problem.q_content.requires_grad_()
    out = attend(problem._replace(q_content=query))
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        grad.sum().backward()


def test_compiles_without_graph_breaks() -> None:
    problem = make_problem(Shape(2, 2, 7, 40, 16, 8, 12), torch.float32, "random", 0.1)
    inputs = [tensor.requires_grad_() for tensor in problem[:5]]
    rest = problem[5:]
    compiled = torch.compile(lambda *t: attend(Problem(*t, *rest)), fullgraph=True, backend="aot_eager")
    got, want = compiled(*inputs), attend(Problem(*inputs, *rest))
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0), 0, (0x257A3673, 0xCD26BE2A)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0xAB302C4D, 0x3DC9D239)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xBEDBBE6B, 0xE4C770B3)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter: tuple[int, int], key: int, words: tuple[int, int]) -> None:
    """Those that its authors publish with Random123, for 7 rounds."""
    low, high = philox(torch.tensor(counter[0]), torch.tensor(counter[1]), key)
    assert (int(low), int(high)) == words


def test_draws_look_independent() -> None:
    """The rate of drops in each head, and the correlation of a weight's drop with those of its neighbours."""
    drops = dropped_reference(SEED, 4, 512, 1024, 0.1).double()
    rates = head_thresholds(SEED, 4, 0.1) / 256
    spread = (rates * (1 - rates)).sqrt()
    assert ((drops.mean((1, 2), keepdim=True) - rates).abs() < 4 * spread / drops[0].numel() ** 0.5).all()
    centred = (drops - rates) / spread
    for dim in (0, 1, 2):
        for distance in (1, 2, 8, 16, 24, 128):
            if distance < drops.shape[dim]:
                product = centred.narrow(dim, distance, drops.shape[dim] - distance) * centred.narrow(
                    dim, 0, drops.shape[dim] - distance
                )
                assert abs(product.mean()) < 4 / product.numel() ** 0.5, (dim, distance)
    assert not torch.equal(drops, dropped_reference(SEED + 1, 4, 512, 1024, 0.1).double())


@pytest.mark.parametrize("p", [0.0, 1 / 65536, 0.001, 0.1, 0.25, 0.5, 0.99])
def test_the_mean_over_heads_is_the_probability(p: float) -> None:
    thresholds = head_thresholds(SEED, 100_000, p)
    assert set(thresholds.unique().tolist()) <= {int(p * 256), min(int(p * 256) + 1, 255)}
    assert abs(thresholds.double().mean() / 256 - p) < 2e-5


@pytest.mark.parametrize("kind", ["random", "first keys", "right and bottom", "all of one image", "all"])
@pytest.mark.parametrize("keys", [1, 127, 128, 1024, 1050])
def test_prepared_masks(keys: int, kind: str) -> None:
    """The kernel against the formula; masks of any strides."""
    mask = make_mask(Shape(3, 1, 1, keys, 1, 1, 1), kind)
    assert mask is not None
    for view in (mask, mask.mT.contiguous().mT, mask[:1].expand(3, -1)):
        prepared = torch.ops.cond_detr.prepare_key_mask(view)
        assert torch.equal(prepared, closed_form.prepare_mask(view))
        assert torch.equal(prepared[:, :keys] == 0, ~view)
        assert prepared[:, -1].tolist() == [max([0, *((~row).nonzero()[:, 0] + 1).tolist()]) for row in view]
    torch.library.opcheck(torch.ops.cond_detr.prepare_key_mask.default, (mask,))
