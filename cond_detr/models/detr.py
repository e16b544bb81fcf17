"""Plain DETR, the paper's baseline (Carion et al., ECCV 2020): in cross-attention content and position are added."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.config import Config, ModelConfig, as_detr, preset
from cond_detr.models.attention import (
    AttentionMaps,
    HeadProjections,
    SelfAttention,
    attention_mask,
    merge_heads,
    single_weights,
    split_heads,
)
from cond_detr.models.decoder import DecoderLayer
from cond_detr.models.detector import Detector
from cond_detr.models.position_encoding import ImagePosition
from cond_detr_kernels import KeyMask


class AddedCrossAttention(HeadProjections):
    """Multi-head attention to the image: score = (content query + object query) . (content key + spatial key)."""

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, position: ImagePosition, padding: KeyMask | None
    ) -> Tensor:
        """As :class:`cond_detr.models.attention.ConditionalCrossAttention`, without a spatial query."""
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
        """The weights that the same arguments lead to, and those of content and of position alone."""

        def weights(query: Tensor, key: Tensor) -> Tensor:
            q, k = self.q_proj(query).expand(memory.shape[0], -1, -1), self.k_proj(key).expand(len(memory), -1, -1)
            return single_weights(split_heads(q, self.num_heads), split_heads(k, self.num_heads), padding)

        dense = position.dense()
        return AttentionMaps(weights(x, memory), weights(query_pos, dense), weights(x + query_pos, memory + dense))


class DETRDecoder(nn.Module):
    """The decoder stack. Reference points play no part in it."""

    def __init__(self, m: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                SelfAttention(m.d_model, m.num_heads, m.dropout),
                AddedCrossAttention(m.d_model, m.num_heads, m.dropout),
                m.d_model,
                m.ffn_dim,
                m.dropout,
            )
            for _ in range(m.decoder_layers)
        )
        self.norm = nn.LayerNorm(m.d_model)

    def forward(
        self, query_pos: Tensor, reference: Tensor, memory: Tensor, position: ImagePosition, padding: KeyMask | None
    ) -> Tensor:
        """As :class:`cond_detr.models.decoder.ConditionalDecoder`."""
        x = torch.zeros_like(query_pos).expand(memory.shape[0], -1, -1)
        outputs = []
        for layer in cast("list[DecoderLayer]", self.layers):
            attended = layer.attend_to_queries(x, query_pos)
            x = layer.finish(attended, layer.cross_attn(attended, query_pos, memory, position, padding))
            outputs.append(self.norm(x))
        return torch.stack(outputs)


class DETR(Detector):
    """Plain DETR. Its settings can be changed to the rows of Table 4: reference points, offsets, focal loss."""

    kind = "detr"
    decoder_class = DETRDecoder

    @staticmethod
    def adapt(name: str) -> Config:
        """The preset of that name with DETR's settings."""
        return as_detr(preset(name))
