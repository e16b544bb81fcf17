"""The attention modules of encoder and decoder, with their projections. Sequences are (B, N, d_model)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.models.full_precision import without_autocast
from cond_detr.models.position_encoding import ImagePosition
from cond_detr.models.queries import QuerySets
from cond_detr_kernels import KeyMask, conditional_attention
from cond_detr_kernels.conditional_attention import attention_weights, conditional_attention_reference


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Splits channels into heads, as a view: (B, N, d_model) -> (B, num_heads, N, d_model / num_heads)."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenates the heads: (B, num_heads, N, d) -> (B, N, num_heads * d)."""
    return x.transpose(1, 2).flatten(2)


def project(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """Applies several linear layers to the same x in one matrix product; returns views (..., d_out) of the result."""
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    return torch.split(F.linear(x, weight, bias), [linear.out_features for linear in linears], dim=-1)


def attention_mask(padding: KeyMask | None) -> Tensor | None:
    """Mask for PyTorch's attention: (B, 1, 1, S) bool, True where a key takes part."""
    return None if padding is None else ~padding.padding[:, None, None, :]


def padded_keys(padding: KeyMask | None) -> Tensor | None:
    """Mask for the reference: (B, S) bool, True where padded."""
    return None if padding is None else padding.padding


def attend_within(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout_p: float, sets: QuerySets | None
) -> Tensor:
    """Self-attention among N queries, (B, N, d_model) each and of the result, within each set.

    Args:
        query: projected queries.
        key: projected keys.
        value: projected values.
        num_heads: number of heads.
        dropout_p: dropout of the attention weights.
        sets: how the queries are divided; None if each sees all.
    """

    def attend(parts: tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(part, num_heads) for part in parts)
        return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p))

    sequences = query, key, value
    if sets is None:
        return attend(sequences)
    batch, length, width = query.shape
    matched = sets.groups * sets.size
    folded = tuple(part[:, :matched].reshape(batch * sets.groups, sets.size, width) for part in sequences)
    out = attend(folded).reshape(batch, matched, width)
    if sets.real is None:
        return out
    targets = sets.real.shape[1]
    # a query without a target sees itself, as a softmax over nothing has no value
    mask = sets.real[:, None] | torch.eye(targets, dtype=torch.bool, device=sets.real.device)
    folded = tuple(part[:, matched:].reshape(batch * sets.denoising, targets, width) for part in sequences)
    noised = attend(folded, mask.repeat_interleave(sets.denoising, 0)[:, None])
    return torch.cat([out, noised.reshape(batch, length - matched, width)], dim=1)


class AttentionMaps(NamedTuple):
    """Cross-attention weights of a layer, (B, H, N, S) each; rows sum to 1.

    Attributes:
        content: softmax of the content scores alone.
        spatial: softmax of the spatial scores alone.
        combined: the weights that the layer uses.
    """

    content: Tensor
    spatial: Tensor
    combined: Tensor


def single_weights(query: Tensor, key: Tensor, padding: KeyMask | None, scale: float | None = None) -> Tensor:
    """Attention weights (B, H, N, S) of content or spatial queries and keys alone.

    Args:
        query: (B, H, N, d).
        key: (B, H, S, d).
        padding: mask of the keys, or None.
        scale: factor of the scores; d ** -0.5 if None.
    """
    return attention_weights(
        query, query[..., :0], key, key[..., :0], key_padding_mask=padded_keys(padding), scale=scale
    )


class HeadProjections(nn.Module):
    """Projections of plain multi-head attention: queries, keys, values and output; biases start at zero.

    Args:
        d_model: width of the model, shared among the heads.
        num_heads: number of heads.
        dropout: dropout of the attention weights.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(linear.bias)


class SelfAttention(HeadProjections):
    """Multi-head self-attention: positions are added to queries and keys, not to values.

    PyTorch has no flash kernels for padded sequences. With ``fused``, those use the fused kernels of conditional
    attention, without a spatial part.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, *, fused: bool = False) -> None:
        super().__init__(d_model, num_heads, dropout)
        self.fused = fused

    def forward(self, x: Tensor, position: Tensor, padding: KeyMask | None = None) -> Tensor:
        """Attends from every position to every other: (B, S, d_model) -> (B, S, d_model).

        Args:
            x: (B, S, d_model).
            position: (B or 1, S, d_model) position embeddings.
            padding: mask of the (B, S) padded positions, or None.
        """
        query, key = project(x + position, self.q_proj, self.k_proj)
        query, key, value = (split_heads(sequence, self.num_heads) for sequence in (query, key, self.v_proj(x)))
        return self.out_proj(merge_heads(self._attend(query, key, value, padding)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, padding: KeyMask | None) -> Tensor:
        dropout_p = self.dropout if self.training else 0.0
        if self.fused and padding is not None and padding.prepared is not None:
            nothing = query[..., :0], key[..., :0]
            return conditional_attention(
                query, nothing[0], key, nothing[1], value, key_padding_mask=padding, dropout_p=dropout_p
            )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask(padding), dropout_p=dropout_p)


class QuerySelfAttention(nn.Module):
    """Decoder self-attention: content and position of the queries are projected separately, then added.

    Args:
        d_model: width of the model, shared among the heads.
        num_heads: number of heads.
        dropout: dropout of the attention weights.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_content_proj = nn.Linear(d_model, d_model)
        self.q_pos_proj = nn.Linear(d_model, d_model)
        self.k_content_proj = nn.Linear(d_model, d_model)
        self.k_pos_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, query_pos: Tensor, sets: QuerySets | None = None) -> Tensor:
        """Attends from every query to every other of its set: (B, N, d_model) -> (B, N, d_model).

        Args:
            x: (B, N, d_model) decoder embeddings.
            query_pos: (B or 1, N, d_model) object query embeddings.
            sets: how the queries are divided; None for one set.
        """
        query, key, value = project(x, self.q_content_proj, self.k_content_proj, self.v_proj)
        query_place, key_place = project(query_pos, self.q_pos_proj, self.k_pos_proj)
        dropout_p = self.dropout if self.training else 0.0
        query, key = query + query_place, key + key_place
        return self.out_proj(attend_within(query, key, value, self.num_heads, dropout_p, sets))


class ConditionalCrossAttention(nn.Module):
    """Conditional cross-attention: score = content query . content key + spatial query . spatial key (section 3.3).

    In the first decoder layer the content query is still all zeros, so there the query position is added to the content
    query and the spatial key to the content key, as in DETR: (c_q + o_q) . (c_k + p_k) + p_q . p_k. Multiplied out that
    is (c_q + o_q) . c_k + (c_q + o_q + p_q) . p_k, so the keys need no addition and one kernel serves every layer.

    Args:
        d_model: width of the model, shared among the heads.
        num_heads: number of heads.
        dropout: dropout of the attention weights.
        first: whether this is the first decoder layer.
        fused: use :func:`cond_detr_kernels.conditional_attention`, else the reference.

    Attributes:
        fp32_scores: whether the reference computes in fp32 also under autocast, as the kernels do.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, *, first: bool, fused: bool) -> None:
        super().__init__()
        self.fp32_scores = False
        self.num_heads = num_heads
        self.dropout = dropout
        self.fused = fused
        self.q_content_proj = nn.Linear(d_model, d_model)
        self.q_pos_proj = nn.Linear(d_model, d_model) if first else None
        self.q_spatial_proj = nn.Linear(d_model, d_model)
        self.k_content_proj = nn.Linear(d_model, d_model)
        self.k_spatial_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        query_spatial: Tensor,
        memory: Tensor,
        position: ImagePosition,
        padding: KeyMask | None,
    ) -> Tensor:
        """Cross-attention from N queries to S image positions: (B, N, d_model).

        Args:
            x: (B or 1, N, d_model) output of the decoder self-attention.
            query_pos: (B or 1, N, d_model) object query embeddings o_q; used in the first layer.
            query_spatial: (B or 1, N, d_model) spatial queries p_q = lambda(f) * PE(sigmoid(s)).
            memory: (B, S, d_model) encoder output.
            position: embedded positions of the image features.
            padding: mask of the (B, S) padded positions, or None.
        """
        dropout_p = self.dropout if self.training else 0.0
        heads = self._heads(x, query_pos, query_spatial, memory, position)
        if self.fused:
            out = conditional_attention(*heads, key_padding_mask=padding, dropout_p=dropout_p)
        else:
            out = self._reference(heads, padding, dropout_p)
        return self.out_proj(merge_heads(out))

    def _reference(self, heads: list[Tensor], padding: KeyMask | None, dropout_p: float) -> Tensor:
        mask = padded_keys(padding)
        if not self.fp32_scores:
            return conditional_attention_reference(*heads, key_padding_mask=mask, dropout_p=dropout_p)
        with without_autocast(heads[0].device):
            heads = [part.float() for part in heads]
            return conditional_attention_reference(*heads, key_padding_mask=mask, dropout_p=dropout_p)

    def maps(
        self,
        x: Tensor,
        query_pos: Tensor,
        query_spatial: Tensor,
        memory: Tensor,
        position: ImagePosition,
        padding: KeyMask | None,
    ) -> AttentionMaps:
        """Attention weights for the arguments of :meth:`forward`, and those of content and of position alone."""
        heads = self._heads(x, query_pos, query_spatial, memory, position)[:4]
        q_content, q_spatial, k_content, k_spatial = heads
        combined = attention_weights(*heads, key_padding_mask=padded_keys(padding))
        if self.q_pos_proj is not None:  # added so that the keys need not be
            q_spatial = q_spatial - q_content
        scale = (2 * q_content.shape[-1]) ** -0.5
        return AttentionMaps(
            single_weights(q_content, k_content, padding, scale),
            single_weights(q_spatial, k_spatial, padding, scale),
            combined,
        )

    def _heads(
        self, x: Tensor, query_pos: Tensor, query_spatial: Tensor, memory: Tensor, position: ImagePosition
    ) -> list[Tensor]:
        """Content and spatial queries, content and spatial keys, and values: (B, H, N or S, head dim) each."""
        content = self.q_content_proj(x)
        spatial = self.q_spatial_proj(query_spatial)
        if self.q_pos_proj is not None:
            content = content + self.q_pos_proj(query_pos)
            spatial = spatial + content
        key, value = project(memory, self.k_content_proj, self.v_proj)
        sequences = content, spatial, key, position.project(self.k_spatial_proj), value
        return [split_heads(sequence.expand(memory.shape[0], -1, -1), self.num_heads) for sequence in sequences]
