"""Plain DETR, the paper's baseline (Carion et al., ECCV 2020): in cross-attention content and position are added."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.config import ModelConfig
from cond_detr.models.attention import (
    AttentionMaps,
    HeadProjections,
    attend_within,
    attention_mask,
    merge_heads,
    project,
    single_weights,
    split_heads,
)
from cond_detr.models.decoder import DecoderLayer
from cond_detr.models.mlp import MLP
from cond_detr.models.network import Network
from cond_detr.models.position_encoding import ImagePosition
from cond_detr.models.queries import Queries, QuerySets
from cond_detr.models.recompute import Recomputing
from cond_detr_kernels import KeyMask


class AddedQuerySelfAttention(HeadProjections):
    """Multi-head self-attention among object queries, which are added to queries and keys, not to values."""

    def forward(self, x: Tensor, query_pos: Tensor, sets: QuerySets | None = None) -> Tensor:
        """Attends from every query to every other of its set, as QuerySelfAttention of Conditional DETR."""
        query, key = project(x + query_pos, self.q_proj, self.k_proj)
        dropout_p = self.dropout if self.training else 0.0
        return self.out_proj(attend_within(query, key, self.v_proj(x), self.num_heads, dropout_p, sets))


class AddedCrossAttention(HeadProjections):
    """Multi-head attention to the image: score = (content query + object query) . (content key + spatial key)."""

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, position: ImagePosition, padding: KeyMask | None
    ) -> Tensor:
        """Cross-attention from N queries to S image positions: (B, N, d_model).

        Args:
            x: (B or 1, N, d_model) output of the decoder self-attention.
            query_pos: (B or 1, N, d_model) object query embeddings.
            memory: (B, S, d_model) encoder output.
            position: embedded positions of the image features.
            padding: mask of the (B, S) padded positions, or None.
        """
        out = F.scaled_dot_product_attention(
            split_heads(self.q_proj(x + query_pos).expand(memory.shape[0], -1, -1), self.num_heads),
            split_heads(self.k_proj(memory + position.dense()), self.num_heads),
            split_heads(self.v_proj(memory), self.num_heads),
            attn_mask=attention_mask(padding),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(merge_heads(out))

    def maps(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, position: ImagePosition, padding: KeyMask | None
    ) -> AttentionMaps:
        """Attention weights for the arguments of :meth:`forward`, and those of content and of position alone."""

        def weights(query: Tensor, key: Tensor) -> Tensor:
            q, k = self.q_proj(query).expand(memory.shape[0], -1, -1), self.k_proj(key).expand(len(memory), -1, -1)
            return single_weights(split_heads(q, self.num_heads), split_heads(k, self.num_heads), padding)

        dense = position.dense()
        return AttentionMaps(weights(x, memory), weights(query_pos, dense), weights(x + query_pos, memory + dense))


class DETRDecoder(Recomputing):
    """The decoder stack of DETR, which does not use reference points.

    Args:
        m: architecture.
    """

    def __init__(self, m: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                AddedQuerySelfAttention(m.d_model, m.num_heads, m.dropout),
                AddedCrossAttention(m.d_model, m.num_heads, m.dropout),
                m.d_model,
                m.ffn_dim,
                m.dropout,
            )
            for _ in range(m.decoder_layers)
        )
        self.norm = nn.LayerNorm(m.d_model)

    def forward(
        self, queries: Queries, memory: Tensor, position: ImagePosition, padding: KeyMask | None, box_head: MLP
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes N object queries as :meth:`cond_detr.models.decoder.ConditionalDecoder.forward`."""
        assert queries.embedding is not None
        query_pos = queries.embedding
        x = torch.zeros_like(query_pos) if queries.content is None else queries.content
        x = x.expand(memory.shape[0], -1, -1)
        outputs = []
        for layer in cast("list[DecoderLayer]", self.layers):
            attended = layer.attend_to_queries(x, query_pos, queries.sets)
            x = layer.finish(attended, self.run(layer.cross_attn, attended, query_pos, memory, position, padding))
            outputs.append(self.norm(x))
        stacked = torch.stack(outputs)
        return stacked, box_head(stacked), queries.reference


class DETRNetwork(Network):
    """DETR's network. Settings turn it into the variants of Table 4: reference points, offsets, focal loss."""

    kind = "detr"
    decoder_class = DETRDecoder
