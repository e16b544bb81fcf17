"""The transformers package's cross-attention of Conditional DETR, by :func:`conditional_attention`."""

from typing import Any

from torch import Tensor, nn

from cond_detr_kernels.conditional_attention import conditional_attention


class FusedCrossAttention:
    """Put before the package's module: content and positions stay apart, and are not concatenated.

    Another implementation of attention than "sdpa" stays what it is, as it was asked for: "eager" to have the weights.
    """

    config: Any
    head_dim: int
    attention_dropout: float
    scaling: float
    training: bool
    q_content_proj: nn.Linear
    q_pos_proj: nn.Linear
    q_pos_sine_proj: nn.Linear
    k_content_proj: nn.Linear
    k_pos_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        query_sine_embed: Tensor,
        encoder_position_embeddings: Tensor,
        query_position_embeddings: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the package's: (B, N, C) and (B, S, C) to (B, N, C); mask (B, 1, N, S) bool, True where a key counts."""
        if self.config._attn_implementation != "sdpa":
            return super().forward(  # type: ignore[misc]
                hidden_states,
                encoder_hidden_states,
                query_sine_embed,
                encoder_position_embeddings,
                query_position_embeddings,
                attention_mask,
                **kwargs,
            )
        query, key = self.q_content_proj(hidden_states), self.k_content_proj(encoder_hidden_states)
        key_position = self.k_pos_proj(encoder_position_embeddings)
        if query_position_embeddings is not None:
            query, key = query + self.q_pos_proj(query_position_embeddings), key + key_position
        parts = (query, self.q_pos_sine_proj(query_sine_embed), key, key_position, self.v_proj(encoder_hidden_states))
        out = conditional_attention(
            *(part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts),
            key_padding_mask=None if attention_mask is None else ~attention_mask[:, 0, 0],
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=self.scaling,
        )
        return self.o_proj(out.transpose(1, 2).flatten(2)), None
