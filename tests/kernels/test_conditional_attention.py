"""conditional_attention against the formula in fp64."""

import math

import pytest
import torch
from torch import Tensor

from cond_detr_kernels import attention_path, conditional_attention
from cond_detr_kernels.conditional_attention import conditional_attention_reference

SHAPES = {
    # batch, heads, queries, keys, content dim, spatial dim, value dim
    "paper": (2, 8, 30, 105, 32, 32, 32),
    "one query": (1, 2, 1, 17, 16, 16, 16),
    "one key": (2, 1, 5, 1, 8, 8, 8),
    "299 keys": (1, 3, 7, 299, 16, 32, 24),
    "wide values": (1, 2, 4, 9, 8, 8, 64),
    "built-in": (3, 8, 25, 64, 8, 8, 8),
}
IMPLEMENTATIONS = {"fused": conditional_attention, "reference": conditional_attention_reference}


def operands(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Head views as the model makes them: (B, N, H, D) transposed."""
    b, h, n, s, dc, ds, dv = SHAPES[name]
    sizes = [(n, dc), (n, ds), (s, dc), (s, ds), (s, dv)]
    return [torch.randn(b, length, h, dim, dtype=dtype).transpose(1, 2) for length, dim in sizes]


def padding_mask(name: str, kind: str) -> Tensor | None:
    b, _, _, s, *_ = SHAPES[name]
    if kind == "none":
        return None
    mask = torch.rand(b, s) < 0.4
    mask[:, 0] = False
    if kind == "all keys of one image":
        mask[-1] = True
    return mask


def textbook(tensors: list[Tensor], mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Equation by equation in fp64, without concatenation and without a softmax function."""
    qc, qs, kc, ks, v = tensors
    factor = 1 / math.sqrt(qc.shape[-1] + qs.shape[-1]) if scale is None else scale
    scores = factor * (torch.einsum("bhnd,bhsd->bhns", qc, kc) + torch.einsum("bhnd,bhsd->bhns", qs, ks))
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    if mask is not None:
        weights = weights * (~mask)[:, None, None, :]
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhns,bhsd->bhnd", weights / total.where(total > 0, torch.ones_like(total)), v)


@pytest.mark.parametrize("kind", ["none", "padded", "all keys of one image"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_output_and_gradients(device: torch.device, implementation: str, name: str, kind: str) -> None:
    tensors = [t.to(device) for t in operands(name)]
    mask = padding_mask(name, kind)
    mask = None if mask is None else mask.to(device)
    exact = [t.double().requires_grad_() for t in tensors]
    want = textbook(exact, mask)
    direction = torch.randn_like(want)
    want_grads = torch.autograd.grad((want * direction).sum(), exact)

    ours = [t.clone().requires_grad_() for t in tensors]
    got = IMPLEMENTATIONS[implementation](*ours, key_padding_mask=mask)
    got_grads = torch.autograd.grad((got * direction.float()).sum(), ours)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got_grad.double(), want_grad, rtol=1e-4, atol=1e-5)
    if kind == "all keys of one image":
        assert (got[-1] == 0).all()
        assert all((g[-1] == 0).all() for g in got_grads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation: str) -> None:
    b, h, n, s, d = 2, 2, 3, 5, 4
    sizes = [(n, d), (n, d), (s, d), (s, d), (s, d)]
    tensors = [torch.randn(b, h, length, dim, dtype=torch.float64, requires_grad=True) for length, dim in sizes]
    mask = torch.tensor([[False, False, True, False, True], [True] * 5])
    torch.autograd.gradcheck(lambda *t: IMPLEMENTATIONS[implementation](*t, key_padding_mask=mask), tensors)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scale(implementation: str) -> None:
    tensors = operands("paper", torch.float64)
    got = IMPLEMENTATIONS[implementation](*tensors, scale=0.3)
    torch.testing.assert_close(got, textbook(tensors, None, scale=0.3))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_keeps_the_mean(implementation: str) -> None:
    tensors = operands("one query", torch.float64)
    attend = IMPLEMENTATIONS[implementation]
    torch.manual_seed(3)
    first = attend(*tensors, dropout_p=0.3)
    torch.manual_seed(3)
    assert torch.equal(first, attend(*tensors, dropout_p=0.3))
    mean = torch.stack([attend(*tensors, dropout_p=0.3) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, attend(*tensors), rtol=0, atol=0.06)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    tensors = operands("paper", dtype)
    got = conditional_attention(*tensors)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), textbook([t.double() for t in tensors], None), rtol=2e-2, atol=2e-2)


def test_weights_on_demand() -> None:
    tensors = operands("paper", torch.float64)
    mask = padding_mask("paper", "all keys of one image")
    out, weights = conditional_attention(*tensors, key_padding_mask=mask, return_weights=True)
    torch.testing.assert_close(out, textbook(tensors, mask))
    torch.testing.assert_close(weights @ tensors[4], out)
    torch.testing.assert_close(weights.sum(-1)[0], torch.ones_like(weights[0, ..., 0]))
    assert (weights[-1] == 0).all()


def test_autocast(device: torch.device) -> None:
    """Operands of several precisions, as under autocast after a layer norm."""
    tensors = [t.to(device) for t in operands("paper")]
    tensors[1] = tensors[1].bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        got = conditional_attention(*tensors)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), textbook([t.double() for t in tensors], None), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_cuda_graph(dropout_p: float) -> None:
    """Captured and replayed, with new draws at each replay; nothing waits for the device."""
    device = torch.device("cuda")
    tensors = [t.to(device).requires_grad_() for t in operands("paper")]
    mask = padding_mask("paper", "padded").to(device)  # type: ignore[union-attr]

    def step() -> list[Tensor]:
        out = conditional_attention(*tensors, key_padding_mask=mask, dropout_p=dropout_p)
        return [out, *torch.autograd.grad(out.sum(), tensors)]

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    first = captured[0].clone()
    graph.replay()
    assert torch.equal(first, captured[0]) == (dropout_p == 0)
    if dropout_p == 0:
        torch.testing.assert_close(captured, step())


def test_compiles_without_graph_breaks() -> None:
    tensors = operands("paper")
    mask = padding_mask("paper", "padded")
    compiled = torch.compile(conditional_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(*tensors, key_padding_mask=mask), conditional_attention(*tensors, key_padding_mask=mask)
    )


@pytest.mark.parametrize(
    ("position", "change", "sentence"),
    [
        (0, lambda t: t[0], r"q_content must be \(B, H, N, Dc\)"),
        (1, lambda t: t[:, :, :2], r"q_spatial must be \(B, H, N, Ds\)"),
        (2, lambda t: t[..., :3], r"k_content must be \(B, H, S, Dc\)"),
        (3, lambda t: t[:, :, 1:], r"k_spatial must be \(B, H, S, Ds\)"),
        (4, lambda t: t[:, 1:], r"value must be \(B, H, S, Dv\)"),
        (4, lambda t: t.double(), "value must have the dtype of q_content, torch.float32, got torch.float64"),
        (3, lambda t: t.to("meta"), "k_spatial must have the device of q_content, cpu, got meta"),
    ],
    ids=["q_content", "q_spatial", "k_content", "k_spatial", "value", "dtype", "device"],
)
def test_names_the_wrong_operand(position: int, change: object, sentence: str) -> None:
    tensors = operands("paper")
    tensors[position] = change(tensors[position])  # type: ignore[operator]
    with pytest.raises(ValueError, match=sentence):
        conditional_attention(*tensors)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"dropout_p": -0.1}, "dropout_p"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"key_padding_mask": torch.zeros(2, 105)}, "key_padding_mask must be a bool tensor, got torch.float32"),
        ({"key_padding_mask": torch.zeros(2, 104, dtype=torch.bool)}, r"key_padding_mask must be \(B, S\)"),
    ],
    ids=["dropout 1", "dropout negative", "scale", "mask dtype", "mask shape"],
)
def test_names_the_wrong_keyword(keywords: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        conditional_attention(*operands("paper"), **keywords)  # type: ignore[arg-type]


def test_path_names_the_device() -> None:
    assert "cpu" in attention_path(torch.device("cpu"))
