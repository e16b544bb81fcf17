"""The conditional decoder (section 3.3): spatial queries from reference points, scaled by the decoder embedding."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.config import ModelConfig
from cond_detr.models.attention import ConditionalCrossAttention, QuerySelfAttention
from cond_detr.models.position_encoding import ImagePosition, point_embedding
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

    def attend_to_queries(self, x: Tensor, query_pos: Tensor) -> Tensor:
        """Self-attention with residual and norm: x (B or 1, N, d_model) -> the same shape."""
        return self.norm1(x + self.dropout(self.self_attn(x, query_pos)))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the cross-attention and applies the feed-forward network: the layer's output (B or 1, N, d_model).

        Args:
            x: (B or 1, N, d_model) result of :meth:`attend_to_queries`.
            attended: (B or 1, N, d_model) result of the cross-attention.
        """
        x = self.norm2(x + self.dropout(attended))
        hidden = self.dropout(F.relu_(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden)))


class ConditionalDecoder(nn.Module):
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

    def forward(
        self, query_pos: Tensor, reference: Tensor, memory: Tensor, position: ImagePosition, padding: KeyMask | None
    ) -> Tensor:
        """Decodes N object queries; returns the normalised output of every layer, (L, B, N, d_model).

        Args:
            query_pos: (1, N, d_model) object query embeddings, the same for all images.
            reference: (1, N, 2) reference points (x, y) in [0, 1].
            memory: (B, S, d_model) encoder output.
            position: embedded positions of the image features.
            padding: mask of the (B, S) padded positions, or None.
        """
        embedding = point_embedding(reference, query_pos.shape[-1]).to(query_pos.dtype)
        x = torch.zeros_like(query_pos)
        if self.training and self.dropout > 0:
            # dropout differs between images; without it, queries are the same for all up to the first cross-attention
            x = x.expand(memory.shape[0], -1, -1)
        outputs = []
        for i, layer in enumerate(cast("list[DecoderLayer]", self.layers)):
            attended = layer.attend_to_queries(x, query_pos)
            spatial = self.spatial_query(embedding, x, attended, first=i == 0)
            x = layer.finish(attended, layer.cross_attn(attended, query_pos, spatial, memory, position, padding))
            outputs.append(self.norm(x))
        return torch.stack(outputs)
