"""The transformer encoder of DETR: post-norm layers over the flattened feature map."""

import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.models.attention import SelfAttention
from cond_detr.models.recompute import Recomputing
from cond_detr_kernels import KeyMask


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each with dropout, residual and layer norm.

    Args:
        d_model: width of the model.
        num_heads: number of heads.
        ffn_dim: hidden width of the feed-forward network.
        dropout: dropout of the attention weights and of the residual branches.
        fused: use the fused kernels for padded sequences.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float, *, fused: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d_model, num_heads, dropout, fused=fused)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, padding: KeyMask | None) -> Tensor:
        """Encodes (B, S, d_model) features.

        Args:
            x: (B, S, d_model) features.
            position: (B or 1, S, d_model) position embeddings.
            padding: mask of the (B, S) padded positions, or None.
        """
        x = self.norm1(x + self.dropout(self.self_attn(x, position, padding)))
        hidden = self.dropout(F.relu_(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class Encoder(Recomputing):
    """A stack of encoder layers without a final norm: (B, S, d_model) -> (B, S, d_model).

    Args:
        num_layers: number of layers; with 0 the encoder is the identity.
        d_model: width of the model.
        num_heads: number of heads.
        ffn_dim: hidden width of the feed-forward networks.
        dropout: dropout of the layers.
        fused: use the fused kernels for padded sequences.
    """

    def __init__(
        self, num_layers: int, d_model: int, num_heads: int, ffn_dim: int, dropout: float, *, fused: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, num_heads, ffn_dim, dropout, fused=fused) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, position: Tensor, padding: KeyMask | None) -> Tensor:
        """Encodes (B, S, d_model) features.

        Args:
            x: (B, S, d_model) features, row by row.
            position: (B or 1, S, d_model) position embeddings.
            padding: mask of the (B, S) padded positions, or None.
        """
        for layer in self.layers:
            x = self.run(layer, x, position, padding)
        return x
