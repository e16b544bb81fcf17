"""The conditional decoder (section 3.3): spatial queries from reference points, scaled by the decoder embedding."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.config import ModelConfig
from cond_detr.models.attention import ConditionalCrossAttention, QuerySelfAttention
from cond_detr.models.mlp import MLP
from cond_detr.models.position_encoding import ImagePosition, point_embedding
from cond_detr.models.predictions import boxes_at
from cond_detr.models.queries import Queries, QuerySets, box_embedding
from cond_detr.models.recompute import Recomputing
from cond_detr.models.spatial_query import SpatialQuery
from cond_detr_kernels import KeyMask


class DecoderLayer(nn.Module):
    """A post-norm decoder layer with any self- and cross-attention: attention, residuals, norms, feed-forward network.

    Args:
        self_attn: attention among queries.
        cross_attn: attention to the image.
        d_model: width of the model.
        ffn_dim: hidden width of the feed-forward network.
        dropout: dropout of the residual branches.
    """

    def __init__(self, self_attn: nn.Module, cross_attn: nn.Module, d_model: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(d_model)
        self.cross_attn = cross_attn
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def attend_to_queries(self, x: Tensor, query_pos: Tensor, sets: QuerySets | None) -> Tensor:
        """Self-attention with residual and norm: x (B or 1, N, d_model) -> the same shape."""
        return self.norm1(x + self.dropout(self.self_attn(x, query_pos, sets)))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the cross-attention and applies the feed-forward network: the layer's output (B or 1, N, d_model).

        Args:
            x: (B or 1, N, d_model) result of :meth:`attend_to_queries`.
            attended: (B or 1, N, d_model) result of the cross-attention.
        """
        x = self.norm2(x + self.dropout(attended))
        hidden = self.dropout(F.relu_(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden)))


class ConditionalDecoder(Recomputing):
    """The decoder stack: each layer scales the embedded reference points by a function of its input (section 3.3).

    Args:
        m: architecture.
    """

    def __init__(self, m: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                QuerySelfAttention(m.d_model, m.num_heads, m.dropout),
                ConditionalCrossAttention(m.d_model, m.num_heads, m.dropout, first=i == 0, fused=m.fused_attn),
                m.d_model,
                m.ffn_dim,
                m.dropout,
            )
            for i in range(m.decoder_layers)
        )
        self.dropout = m.dropout
        self.norm = nn.LayerNorm(m.d_model)
        self.spatial_query = SpatialQuery(m.spatial_query, m.projection, m.d_model, m.num_heads, m.decoder_layers)
        boxes = m.queries == "boxes"
        self.box_position = MLP(2 * m.d_model, m.d_model, m.d_model, num_layers=2) if boxes else None
        self.box_scale = MLP(m.d_model, m.d_model, 2, num_layers=2) if boxes else None

    def forward(
        self, queries: Queries, memory: Tensor, position: ImagePosition, padding: KeyMask | None, box_head: MLP
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes N object queries.

        Args:
            queries: object queries with their reference points, or boxes.
            memory: (B, S, d_model) encoder output.
            position: embedded positions of the image features.
            padding: mask of the (B, S) padded positions, or None.
            box_head: predicts boxes, which become the queries of the next layer if queries are boxes.

        Returns:
            The normalised output of every layer, (L, B, N, d_model); what the box head makes of it, (L, B, N, 4); and
            what that is relative to, the reference points as given or the boxes that each layer has begun with,
            (L, B, N, 4).
        """
        reference, query_pos = queries.reference, queries.embedding
        x = self._first(queries, memory.shape[0])
        embedding = point_embedding(reference[..., :2], x.shape[-1]).to(x.dtype)
        outputs, raw, references = [], [], []
        for i, layer in enumerate(cast("list[DecoderLayer]", self.layers)):
            if self.box_position is not None:
                query_pos = self.box_position(box_embedding(reference, x.shape[-1]))
                embedding = point_embedding(reference[..., :2], x.shape[-1])
            if self.box_scale is not None:
                embedding = scaled_by_size(embedding, self.box_scale(x).float().sigmoid(), reference)
            assert query_pos is not None
            attended = layer.attend_to_queries(x, query_pos, queries.sets)
            spatial = self.spatial_query(embedding, x, attended, first=i == 0)
            found = self.run(layer.cross_attn, attended, query_pos, spatial, memory, position, padding)
            x = layer.finish(attended, found)
            outputs.append(self.norm(x))
            if self.box_position is not None:
                raw.append(box_head(outputs[-1]))
                references.append(reference.expand_as(raw[-1]))
                # each layer learns its own refinement (Deformable DETR)
                reference = boxes_at(raw[-1].detach(), reference.detach())
        stacked = torch.stack(outputs)
        if self.box_position is None:
            return stacked, box_head(stacked), queries.reference
        return stacked, torch.stack(raw), torch.stack(references)

    def _first(self, queries: Queries, batch: int) -> Tensor:
        """The first decoder embeddings (B or 1, N, d_model)."""
        if queries.content is not None:
            return queries.content
        x = self.norm.weight.new_zeros(*queries.reference.shape[:2], len(self.norm.weight))
        if self.training and self.dropout > 0:
            # dropout differs between images; without it, queries are the same for all up to the first cross-attention
            x = x.expand(batch, -1, -1)
        return x


def scaled_by_size(embedding: Tensor, size: Tensor, boxes: Tensor) -> Tensor:
    """Embedded centres, with which queries look as far as boxes are wide and high (DAB-DETR, equation 6).

    Args:
        embedding: (B or 1, N, d_model) embedded centres, the channels of y first.
        size: (B or 1, N, 2) width and height that the query looks for, in [0, 1].
        boxes: (B or 1, N, 4) cxcywh in [0, 1].
    """
    ratio = size / boxes[..., 2:].clamp(min=1e-3)
    y, x = embedding.chunk(2, dim=-1)
    return torch.cat([y * ratio[..., 1:], x * ratio[..., :1]], dim=-1)
