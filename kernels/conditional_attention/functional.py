"""Conditional cross-attention by the fastest implementation for the given tensors."""

import math
from typing import Literal, NamedTuple, TypeAlias, cast, overload

import torch
from torch import Tensor

from cond_detr_kernels.checks import check_number, check_same, check_shape, check_tensor
from cond_detr_kernels.conditional_attention import measured
from cond_detr_kernels.conditional_attention.fallback import pytorch_attention
from cond_detr_kernels.conditional_attention.reference import attention_weights
from cond_detr_kernels.conditional_attention.torch_operator import HAS_TRITON, DifferentiableAttention

# Limits of the kernels; tiles of larger heads would not fit into shared memory
MAX_HEAD_DIM = 128
MIN_CAPABILITY = (8, 0)
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Operands: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_NAMES = ("q_content", "q_spatial", "k_content", "k_spatial", "value")


class KeyMask(NamedTuple):
    """A key padding mask prepared by :func:`prepare_key_mask`.

    Attributes:
        padding: (B, S) bool, True for masked keys.
        prepared: the same in the form of the kernels; None on devices without kernels.
    """

    padding: Tensor
    prepared: Tensor | None = None


def prepare_key_mask(padding: Tensor) -> KeyMask:
    """Prepares a key padding mask once for all layers that attend to the same keys, forward and backward.

    Args:
        padding: (B, S) bool, True for masked keys.

    Raises:
        ValueError: if it has another shape or dtype.
    """
    _check_mask(padding, None, None)
    return KeyMask(padding, torch.ops.cond_detr.prepare_key_mask(padding) if _has_kernels(padding.device) else None)


def attention_path(device: torch.device) -> str:
    """Describes in words which implementation :func:`conditional_attention` uses on a device."""
    why = ""
    if device.type == "cuda":
        if _has_kernels(device):
            table = measured.table_of(device.index or 0)
            if table is None:
                return "Triton kernels (not tuned on this GPU: python -m cond_detr_kernels.tune)"
            return f"what was measured fastest of Triton kernels and PyTorch ({measured.table_path(device)})"
        why = " (the GPU is older than the kernels take)" if HAS_TRITON else " (Triton is not installed)"
    return f"PyTorch on {device.type}, plain or scaled_dot_product_attention by what is faster{why}"


@overload
def conditional_attention(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | KeyMask | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    deterministic: bool | None = None,
    return_weights: Literal[False] = False,
) -> Tensor: ...


@overload
def conditional_attention(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | KeyMask | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    deterministic: bool | None = None,
    return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def conditional_attention(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | KeyMask | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    deterministic: bool | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax((q_content . k_content + q_spatial . k_spatial) * scale) value, per head (Conditional DETR, section 3.3).

    On a CUDA device of compute capability 8.0 or later, forward and backward are fused Triton kernels. On other
    devices, and for float64 or heads wider than 128, it is PyTorch's flash attention or the plain formula, whichever is
    faster. After ``python -m cond_detr_kernels.tune``, it is what that command measured to be the fastest on the GPU.
    Under autocast the operands are cast as for PyTorch's own attention.

    Args:
        q_content: (B, H, N, Dc) content queries; like the other operands a view with any strides.
        q_spatial: (B, H, N, Ds) spatial queries; Ds may be 0.
        k_content: (B, H, S, Dc) content keys.
        k_spatial: (B, H, S, Ds) spatial keys.
        value: (B, H, S, Dv) values.
        key_padding_mask: (B, S) bool, True for masked keys, or the result of :func:`prepare_key_mask` for it, which
            can be shared by all calls with the same keys. Queries whose keys are all masked get output 0 and zero
            gradients.
        dropout_p: probability in [0, 1) of dropping an attention weight; the others are scaled up. In each head the
            kernels use one of the two multiples of 2**-8 next to it as probability, but at most 255/256, drawn so that
            the mean over heads is ``dropout_p`` to within 2**-16. The draws follow torch's generator of the device.
            Pass 0 in evaluation.
        scale: positive factor of the scores; (Dc + Ds) ** -0.5 if None.
        deterministic: how the kernels compute gradients: True for bitwise reproducible results, False for one pass with
            atomic additions, None for the faster of both, but deterministic under
            ``torch.use_deterministic_algorithms``.
        return_weights: also return the attention weights before dropout. They are computed separately, which costs
            time and memory.

    Returns:
        (B, H, N, Dv), in the dtype of the operands; with ``return_weights`` also (B, H, N, S).

    Raises:
        ValueError: if the shape, dtype or device of an argument does not fit, ``dropout_p`` is not in [0, 1), or
            ``scale`` is not positive and finite, or there are no channels to derive it from.
        TypeError: if an argument is no tensor or no number.
    """
    for name, tensor in zip(_NAMES, (q_content, q_spatial, k_content, k_spatial, value), strict=True):
        check_tensor(name, tensor)
    tensors = _autocasted(q_content, q_spatial, k_content, k_spatial, value)
    prepared = None
    if isinstance(key_padding_mask, KeyMask):
        key_padding_mask, prepared = key_padding_mask
    _check(tensors, key_padding_mask, dropout_p, scale)
    if scale is None:
        scale = (q_content.shape[-1] + q_spatial.shape[-1]) ** -0.5
    backend = _measured_backend(tensors, key_padding_mask is not None, dropout_p, deterministic)
    if backend is None and _fits_kernels(tensors):
        seed = None
        if dropout_p > 0:
            # drawn on the device: no synchronisation, and a CUDA graph draws anew at each replay
            seed = torch.randint(2**31, (1,), device=q_content.device)
        if prepared is None and key_padding_mask is not None:
            prepared = torch.ops.cond_detr.prepare_key_mask(key_padding_mask)
        out = DifferentiableAttention.apply(*tensors, prepared, seed, dropout_p, scale, deterministic)[0]
    else:
        out = pytorch_attention(*tensors, key_padding_mask, dropout_p, scale, backend)
    if not return_weights:
        return cast(Tensor, out)
    return out, attention_weights(*tensors[:4], key_padding_mask=key_padding_mask, scale=scale)


def _autocasted(*tensors: Tensor) -> Operands:
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return cast(Operands, tensors)
    dtype = torch.get_autocast_dtype(kind)
    casted = (t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)
    return cast(Operands, tuple(casted))


def _has_kernels(device: torch.device) -> bool:
    return HAS_TRITON and device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def _measured_backend(tensors: Operands, masked: bool, dropout_p: float, deterministic: bool | None) -> str | None:
    """The backend of PyTorch's attention that was measured to be faster than the kernels on this GPU, or None."""
    if deterministic or torch.are_deterministic_algorithms_enabled():
        return None
    if torch.compiler.is_compiling():  # sizes may be symbols then
        return None
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    situation = measured.situation_of(
        tensors[0], tensors[1], tensors[4], masked=masked, dropout_p=dropout_p, training=training
    )
    found = measured.find(tensors[0].device, situation)
    return None if found is None or found.path == measured.KERNELS else found.path


def _fits_kernels(tensors: Operands) -> bool:
    query = tensors[0]
    return (
        _has_kernels(query.device)
        and query.dtype in KERNEL_DTYPES
        and all(tensor.shape[3] <= MAX_HEAD_DIM for tensor in tensors)
    )


def _check(tensors: Operands, key_padding_mask: Tensor | None, dropout_p: float, scale: float | None) -> None:
    q_content, q_spatial, k_content, k_spatial, value = tensors
    check_shape("q_content", q_content, "(B, H, N, Dc)", (None, None, None, None))
    batch, heads, queries, content_dim = q_content.shape
    check_shape("q_spatial", q_spatial, "(B, H, N, Ds)", (batch, heads, queries, None))
    check_shape("k_content", k_content, "(B, H, S, Dc)", (batch, heads, None, content_dim))
    keys = k_content.shape[2]
    check_shape("k_spatial", k_spatial, "(B, H, S, Ds)", (batch, heads, keys, q_spatial.shape[3]))
    check_shape("value", value, "(B, H, S, Dv)", (batch, heads, keys, None))
    check_same(_NAMES, tensors, "dtype")
    check_same(_NAMES, tensors, "device")
    if not q_content.is_floating_point():
        raise ValueError(f"q_content must be a floating point tensor, got {q_content.dtype}")
    if key_padding_mask is not None:
        _check_mask(key_padding_mask, batch, keys)
        check_same(("q_content", "key_padding_mask"), (q_content, key_padding_mask), "device")
    check_number("dropout_p", dropout_p)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if scale is None:
        if content_dim + q_spatial.shape[3] == 0:
            raise ValueError("q_content and q_spatial must not both have 0 channels, or scale must be given")
        return
    check_number("scale", scale)
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")


def _check_mask(padding: Tensor, batch: int | None, keys: int | None) -> None:
    check_shape("key_padding_mask", padding, "(B, S)", (batch, keys))
    if padding.dtype != torch.bool:
        raise ValueError(f"key_padding_mask must be a bool tensor, got {padding.dtype}")
