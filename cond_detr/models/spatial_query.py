"""The spatial query of a decoder layer, with all variants of the paper (section 3.3, Table 3, Figure 5)."""

from torch import Tensor, nn

from cond_detr.models.mlp import MLP


def transformation_size(projection: str, d_model: int, num_heads: int) -> int:
    """Number of elements of a transformation T of the position embedding, by the form of T."""
    sizes = {
        "identity": 0,
        "scalar": 1,
        "diagonal": d_model,
        "block": d_model * d_model // num_heads,
        "full": d_model * d_model,
    }
    return sizes[projection]


def transform(embedding: Tensor, numbers: Tensor, projection: str, num_heads: int) -> Tensor:
    """Transforms position embeddings p to T p.

    Args:
        embedding: (B or 1, N, d_model) embeddings p.
        numbers: (B, N, transformation_size) elements of T for each query.
        projection: form of T, but not "identity".
        num_heads: number of heads, the blocks of the form "block".

    Returns:
        (B, N, d_model).
    """
    d_model = embedding.shape[-1]
    if projection in {"scalar", "diagonal"}:
        return embedding * numbers
    if projection == "block":
        head_dim = d_model // num_heads
        blocks = numbers.view(*numbers.shape[:-1], num_heads, head_dim, head_dim)
        return (blocks @ embedding.view(*embedding.shape[:-1], num_heads, head_dim, 1)).flatten(-3)
    return (numbers.view(*numbers.shape[:-1], d_model, d_model) @ embedding[..., None])[..., 0]


class SpatialQuery(nn.Module):
    """Spatial queries p_q = T p_s: embedded reference points, transformed by a function of the decoder embedding.

    Args:
        scheme: "csq": T(f) p_s with f the output of the previous layer; "csq-t": the transformation alone, lambda(f);
            "csq-p": p_s alone; "csq-c": f alone; "csq-i": T(c) p_s with c the output of this layer's self-attention.
        projection: form of T: "identity", a "scalar", the "diagonal" lambda of the paper, a "block" for each head, or
            "full".
        d_model: width of the model.
        num_heads: number of heads.
        num_layers: number of decoder layers.
    """

    def __init__(self, scheme: str, projection: str, d_model: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.scheme = scheme
        self.projection = projection
        self.num_heads = num_heads
        transforms = scheme == "csq-t" or (scheme in {"csq", "csq-i"} and num_layers > 1)
        size = transformation_size(projection, d_model, num_heads) if transforms else 0
        self.query_scale = MLP(d_model, d_model, size, num_layers=2) if size else None

    def forward(self, embedding: Tensor, x: Tensor, attended: Tensor, *, first: bool) -> Tensor:
        """Spatial queries (B or 1, N, d_model) of one layer.

        Args:
            embedding: (B or 1, N, d_model) embedded reference points p_s.
            x: (B or 1, N, d_model) output f of the previous layer.
            attended: (B or 1, N, d_model) output c of this layer's self-attention.
            first: whether this is the first layer. Its f is still zero, so T is the identity there, but for "csq-t".
        """
        if self.scheme == "csq-c":
            return x
        if self.query_scale is None or (first and self.scheme != "csq-t"):
            return embedding
        numbers = self.query_scale(attended if self.scheme == "csq-i" else x)
        if self.scheme == "csq-t":
            return numbers
        return transform(embedding, numbers, self.projection, self.num_heads)
