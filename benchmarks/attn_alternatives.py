"""What a user could take instead of the fused attention.

Each takes content and spatial parts of queries and keys. A spatial part of no width is self-attention, as an encoder
has it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import first_line
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cond_detr_kernels import conditional_attention
from cond_detr_kernels.conditional_attention import conditional_attention_reference

Attend = Callable[..., Tensor]


def joined(content: Tensor, spatial: Tensor) -> Tensor:
    """Content and spatial part side by side."""
    return torch.cat([content, spatial], -1) if spatial.shape[-1] else content


def original(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """As DETR's published code computes it: concatenate, bmm, softmax, dropout, bmm, and the averaged weights."""
    batch, heads = q_content.shape[:2]
    query = joined(q_content, q_spatial).flatten(0, 1)
    key = joined(k_content, k_spatial).flatten(0, 1)
    scores = torch.bmm(query * query.shape[-1] ** -0.5, key.mT).unflatten(0, (batch, heads))
    if key_padding_mask is not None:
        scores = scores.masked_fill(key_padding_mask[:, None, None], -math.inf)
    weights = F.dropout(F.softmax(scores, dim=-1), dropout_p)
    out: Tensor = torch.bmm(weights.flatten(0, 1), value.flatten(0, 1)).unflatten(0, (batch, heads))
    weights.sum(dim=1).div_(heads)
    return out


def sdpa(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    backend: SDPBackend | None = None,
) -> Tensor:
    """PyTorch's function, by the backend that it chooses or by a given one."""
    query, key = joined(q_content, q_spatial), joined(k_content, k_spatial)
    mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
    value_dim = value.shape[-1]
    if backend == SDPBackend.FLASH_ATTENTION:  # takes equal head dims only
        value = F.pad(value, (0, query.shape[-1] - value_dim))
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
    return out[..., :value_dim]


def make_flex() -> Attend:
    """FlexAttention, compiled, with a block mask for padded keys."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # a variant for each setting; falling back to the uncompiled function would measure something else
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(flex_attention, dynamic=False)
    masks: dict[tuple[int, ...], Any] = {}  # made once for all layers and steps, as users do

    def flex(
        q_content: Tensor,
        q_spatial: Tensor,
        k_content: Tensor,
        k_spatial: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None,
        dropout_p: float,  # noqa: ARG001 - there is none
    ) -> Tensor:
        query, key = joined(q_content, q_spatial), joined(k_content, k_spatial)
        block_mask = None
        if key_padding_mask is not None:
            place = (key_padding_mask.data_ptr(), query.shape[2], *key_padding_mask.shape)
            if place not in masks:
                masks[place] = create_block_mask(
                    lambda b, _h, _q, k: ~key_padding_mask[b, k],
                    len(query),
                    None,
                    query.shape[2],
                    key.shape[2],
                    query.device,
                )
            block_mask = masks[place]
        return compiled(query, key, value, block_mask=block_mask)

    return flex


def make_flash4() -> Attend:
    """FlashAttention-4, which takes (B, N, H, D) and says with a function of its own which keys are seen."""
    import cutlass
    from cutlass import cute
    from flash_attn.cute import flash_attn_func, utils

    @cute.jit
    def is_seen(batch, head, query, key, seqlen_info, aux_tensors):  # type: ignore[no-untyped-def]  # noqa: ARG001
        masked = utils.scalar_to_ssa(aux_tensors[0][batch[0], key[0]], cutlass.Int32)
        return masked == utils.scalar_to_ssa(0, cutlass.Int32)

    masks: dict[tuple[int, ...], Tensor] = {}  # made once for all layers and steps, as users would

    def flash4(
        q_content: Tensor,
        q_spatial: Tensor,
        k_content: Tensor,
        k_spatial: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None,
        dropout_p: float,  # noqa: ARG001 - there is none
    ) -> Tensor:
        q_content, q_spatial, k_content, k_spatial, value = (
            tensor.transpose(1, 2) for tensor in (q_content, q_spatial, k_content, k_spatial, value)
        )
        masking = {}
        if key_padding_mask is not None:
            place = (key_padding_mask.data_ptr(), *key_padding_mask.shape)
            if place not in masks:
                masks[place] = key_padding_mask.int().contiguous()
            masking = {"mask_mod": is_seen, "aux_tensors": [masks[place]]}
        query, key = joined(q_content, q_spatial), joined(k_content, k_spatial)
        value_dim = value.shape[-1]
        if torch.is_grad_enabled() and value.requires_grad:  # its gradients want equal head dims, as of 4.0.0b36
            value = F.pad(value, (0, query.shape[-1] - value_dim))
        returned = flash_attn_func(query, key, value, **masking)
        # some releases return the log-sum-exp too
        out: Tensor = returned[0] if isinstance(returned, tuple) else returned
        return out[..., :value_dim].transpose(1, 2)

    return flash4


def implementations(device: torch.device, note: Callable[[str], None] = print) -> dict[str, Attend]:
    """All that run on a device, ours first; ``note`` is told what is left out."""
    table: dict[str, Attend] = {
        "fused": conditional_attention,
        "original": original,
        "reference": conditional_attention_reference,
        "sdpa": sdpa,
        "sdpa_math": partial(sdpa, backend=SDPBackend.MATH),
    }
    if device.type == "cuda":
        table["sdpa_efficient"] = partial(sdpa, backend=SDPBackend.EFFICIENT_ATTENTION)
        table["sdpa_flash"] = partial(sdpa, backend=SDPBackend.FLASH_ATTENTION)
        table["sdpa_cudnn"] = partial(sdpa, backend=SDPBackend.CUDNN_ATTENTION)
        table["flex"] = make_flex()
        try:
            table["flash4"] = make_flash4()
        except ModuleNotFoundError as problem:
            note(f"not installed: flash-attn-4 (no module {problem.name})")
        # whatever another package raises must not cost the others their rows
        except Exception as problem:
            note(f"flash4: {first_line(problem)}")
    return table
