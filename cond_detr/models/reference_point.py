"""Reference points of the object queries (section 3.2), or the boxes that they are."""

import torch
from torch import Tensor, nn

from cond_detr.models.full_precision import without_autocast
from cond_detr.models.mlp import MLP


class ReferencePoint(nn.Module):
    """Reference points s of N object queries, before the sigmoid: (1, N, 2), or boxes, (1, N, 4).

    Args:
        kind: "predicted" from the object queries by a small network, "learned" as parameters, or fixed at the "origin"
            s = 0, the centre of the image, as in DETR (section 4.3). Or "boxes": learned cxcywh boxes (DAB-DETR).
        num_queries: number N of object queries.
        d_model: width of the object query embeddings.
    """

    def __init__(self, kind: str, num_queries: int, d_model: int) -> None:
        super().__init__()
        self.head = MLP(d_model, d_model, 2, num_layers=2) if kind == "predicted" else None
        # spread over the image as uniformly as sigmoids are
        self.points = nn.Parameter(torch.logit(torch.rand(num_queries, 2), eps=0.01)) if kind == "learned" else None
        if kind == "boxes":
            centres, sizes = torch.logit(torch.rand(num_queries, 2), eps=0.01), torch.randn(num_queries, 2) - 1
            self.points = nn.Parameter(torch.cat([centres, sizes], dim=1))

    def forward(self, query_pos: Tensor | None) -> Tensor:
        """Points (1, N, 2) fp32, (x, y) before the sigmoid, of object query embeddings (1, N, d_model); or boxes."""
        if self.points is not None:
            return self.points[None]
        assert query_pos is not None
        # in fp32 also under autocast: bf16 would move the points of a large image by pixels
        with without_autocast(query_pos.device):
            if self.head is not None:
                return self.head(query_pos.float())
        return query_pos.new_zeros(1, query_pos.shape[1], 2, dtype=torch.float32)
