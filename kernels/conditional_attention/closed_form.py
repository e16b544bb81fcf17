"""The computation of the kernels in plain PyTorch: the operator's implementation on devices without the kernels.

``conditional_attention`` does not use it on a CPU, as PyTorch's own attention is faster there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr_kernels.conditional_attention.problem import LOG2_E, MASK_CHUNK, MASK_STRETCH, Problem
from cond_detr_kernels.conditional_attention.reference import dropped_reference, head_thresholds


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Computes the output (B, H, N, Dv), and the base-2 log-sum-exp of the scores (B, H, padded N).

    The log-sum-exp is infinite where all keys are masked, and in the padding.
    """
    scores = _scores(problem)
    lse = scores.logsumexp(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -math.inf)
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    weights = (scores - lse[..., None]).exp() * _kept(problem)
    padded = problem.new_rows().fill_(math.inf)
    padded[..., : lse.shape[-1]] = lse * LOG2_E
    out = problem.new_like_heads(problem.sizes[2], problem.dims[2], problem.value.dtype)
    return out.copy_(weights @ problem.value.float()), padded


def backward(problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor) -> list[Tensor]:
    """Computes the gradients of q_content, q_spatial, k_content, k_spatial and value.

    Args:
        problem: the arguments of the call.
        out: (B, H, N, Dv), as of :func:`forward`.
        lse: (B, H, padded N), likewise.
        grad_out: (B, H, N, Dv) gradient of the output.
    """
    grad_out = grad_out.float()
    scores = _scores(problem)
    weights = (scores - lse[..., : scores.shape[2], None] / LOG2_E).exp()
    kept = _kept(problem)
    grad_weights = (grad_out @ problem.value.float().mT) * kept
    delta = (grad_out * out.float()).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - delta) * problem.scale
    gradients = [
        grad_scores @ problem.k_content.float(),
        grad_scores @ problem.k_spatial.float(),
        grad_scores.mT @ problem.q_content.float(),
        grad_scores.mT @ problem.q_spatial.float(),
        (weights * kept).mT @ grad_out,
    ]
    dtype = problem.value.dtype
    return [problem.new_like_heads(g.shape[2], g.shape[3], dtype).copy_(g) for g in gradients]


def _scores(problem: Problem) -> Tensor:
    content = problem.q_content.float() @ problem.k_content.float().mT
    scores = problem.scale * (content + problem.q_spatial.float() @ problem.k_spatial.float().mT)
    if problem.key_mask is None:
        return scores
    return scores + problem.key_mask[:, None, None, : problem.sizes[3]]


def _kept(problem: Problem) -> Tensor:
    """Factor of each weight by dropout: 0, or 1 / (1 - p) with the head's p."""
    batch, heads, queries, keys = problem.sizes
    if problem.seed is None or not all(problem.sizes):
        return problem.value.new_ones(())
    seed = int(problem.seed)
    device = problem.value.device
    dropped = dropped_reference(seed, batch * heads, queries, keys, problem.dropout_p, device)
    factor = 256 / (256 - head_thresholds(seed, batch * heads, problem.dropout_p, device))
    return (~dropped * factor).view(batch, heads, queries, keys)


def prepare_mask(mask: Tensor) -> Tensor:
    """Converts a (B, S) bool mask, True for masked keys, to the form of the kernels: (B, mask_width(S)) fp32.

    A row has, for its image: a bias for each key, minus infinity for masked keys and for the padding of the row, else
    0; a flag for each stretch of keys, 1 if it has a bias other than 0; the index after the last key without a mask.
    """
    batch, keys = mask.shape
    chunks = -(-keys // MASK_CHUNK)
    masked = F.pad(mask, (0, chunks * MASK_CHUNK - keys), value=True)
    bias = torch.zeros(masked.shape, device=mask.device).masked_fill(masked, -math.inf)
    flags = masked.view(batch, chunks * MASK_CHUNK // MASK_STRETCH, MASK_STRETCH).any(-1).float()
    numbers = torch.arange(1, keys + 1, device=mask.device)
    end = F.pad(numbers * ~mask, (1, 0)).amax(-1, keepdim=True).float()
    return torch.cat([bias, flags, end], dim=1)
