"""The spatial query of a decoder layer, in all forms that the paper compares (section 3.3, Table 3, Figure 5)."""

from torch import Tensor, nn

from cond_detr.models.mlp import MLP


def transformation_size(projection: str, d_model: int, num_heads: int) -> int:
    """How many numbers make a transformation T of the position embedding, of a form."""
    sizes = {
        "identity": 0,
        "scalar": 1,
        "diagonal": d_model,
        "block": d_model * d_model // num_heads,
        "full": d_model * d_model,
    }
    return sizes[projection]


def transform(embedding: Tensor, numbers: Tensor, projection: str, num_heads: int) -> Tensor:
    """T p: the embedding (1, N, d) transformed by matrices made of ``numbers`` (B, N, transformation_size)."""
    d_model = embedding.shape[-1]
    if projection in {"scalar", "diagonal"}:
        return embedding * numbers
    if projection == "block":
        head_dim = d_model // num_heads
        blocks = numbers.view(*numbers.shape[:-1], num_heads, head_dim, head_dim)
        return (blocks @ embedding.view(*embedding.shape[:-1], num_heads, head_dim, 1)).flatten(-3)
    return (numbers.view(*numbers.shape[:-1], d_model, d_model) @ embedding[..., None])[..., 0]


class SpatialQuery(nn.Module):
    """p_q, from the embedding p_s of the reference points and what the decoder knows.

    Args:
        scheme: "csq": T(f) p_s with f the output of the layer before; "csq-t": the transformation alone, lambda(f);
            "csq-p": p_s alone; "csq-c": f alone; "csq-i": T(c) p_s with c the output of this layer's self-attention.
        projection: form of T: "identity", a "scalar", the "diagonal" lambda of the paper, a "block" for each head, or
            "full".
        d_model, num_heads, num_layers: of the decoder.
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
        """Spatial queries (B or 1, N, d_model).

        Args:
            embedding: (1, N, d_model) p_s.
            x: (B or 1, N, d_model) output f of the layer before.
            attended: (B or 1, N, d_model) output c of this layer's self-attention.
            first: whether this is the first layer, which has nothing to transform by: there T is the identity.
        """
        if self.scheme == "csq-c":
            return x
        if self.query_scale is None or (first and self.scheme != "csq-t"):
            return embedding
        numbers = self.query_scale(attended if self.scheme == "csq-i" else x)
        if self.scheme == "csq-t":
            return numbers
        return transform(embedding, numbers, self.projection, self.num_heads)
