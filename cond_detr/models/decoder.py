"""The conditional decoder (section 3.3): spatial queries from reference points, modulated by the decoder embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.models.attention import ConditionalCrossAttention, QuerySelfAttention
from cond_detr.models.mlp import MLP
from cond_detr.models.position_encoding import ImagePosition, point_embedding


class DecoderLayer(nn.Module):
    """Self-attention among queries, conditional cross-attention to the image, feed-forward network; post-norm."""

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float, *, first: bool, fused: bool) -> None:
        super().__init__()
        self.self_attn = QuerySelfAttention(d_model, num_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.cross_attn = ConditionalCrossAttention(d_model, num_heads, dropout, first=first, fused=fused)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        query_spatial: Tensor,
        memory: Tensor,
        position: ImagePosition,
        padding: Tensor | None,
    ) -> Tensor:
        """Takes and gives what :class:`ConditionalCrossAttention` does."""
        x = self.norm1(x + self.dropout(self.self_attn(x, query_pos)))
        attended = self.cross_attn(x, query_pos, query_spatial, memory, position, padding)
        x = self.norm2(x + self.dropout(attended))
        hidden = self.dropout(F.relu_(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden)))


class ConditionalDecoder(nn.Module):
    """The decoder stack.

    A reference point s is predicted from each object query, once for all layers. The spatial query of a layer is
    p_q = lambda(f) * PE(sigmoid(s)) with f the output of the layer before; the first layer has lambda = 1.
    """

    def __init__(
        self, num_layers: int, d_model: int, num_heads: int, ffn_dim: int, dropout: float, *, fused: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, num_heads, ffn_dim, dropout, first=i == 0, fused=fused) for i in range(num_layers)
        )
        self.dropout = dropout
        self.norm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, num_layers=2)
        self.ref_point_head = MLP(d_model, d_model, 2, num_layers=2)

    def forward(
        self, query_pos: Tensor, memory: Tensor, position: ImagePosition, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decodes N object queries.

        Args:
            query_pos: (1, N, d_model) object query embeddings, the same for all images.
            memory: (B, S, d_model) encoder output.
            position: of the image features.
            padding: (B, S) bool, True where padded, or None.

        Returns:
            The normed output of every layer (L, B, N, d_model), and reference points (1, N, 2) in [0, 1].
        """
        # in fp32 also under autocast: bf16 would move the points of a large image by pixels
        with torch.autocast(query_pos.device.type, enabled=False):
            reference = self.ref_point_head(query_pos.float()).sigmoid()
        embedding = point_embedding(reference, query_pos.shape[-1]).to(query_pos.dtype)
        x = torch.zeros_like(query_pos)
        if self.training and self.dropout > 0:
            # dropout draws for each image; without it the queries are the same for all until they have seen them
            x = x.expand(len(memory), -1, -1)
        outputs = []
        for i, layer in enumerate(self.layers):
            spatial = embedding if i == 0 else embedding * self.query_scale(x)
            x = layer(x, query_pos, spatial, memory, position, padding)
            outputs.append(self.norm(x))
        return torch.stack(outputs), reference
