"""Object queries as the decoder takes them. Training can have more of them, in sets that do not see each other."""

from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.models.position_encoding import point_embedding


class QuerySets(NamedTuple):
    """How the queries of a training step are divided; self-attention stays within a set.

    A copy of a target does not see the object queries, as DN-DETR would let it: they know nothing of the targets.

    First come ``groups`` sets of ``size`` object queries (Group DETR), then ``denoising`` sets of T queries made from
    the T padded targets (DN-DETR).

    Attributes:
        groups: number of sets of object queries.
        size: number of queries in each of those.
        denoising: number of sets made from targets.
        real: (B, T) bool, True where there is a target; None without denoising.
    """

    groups: int
    size: int
    denoising: int = 0
    real: Tensor | None = None


class Queries(NamedTuple):
    """Object queries, for all images or for each.

    Attributes:
        embedding: (B or 1, N, d_model) object query embeddings; None if the decoder makes them from boxes.
        reference: (B or 1, N, 2) points or (B or 1, N, 4) cxcywh boxes in [0, 1], fp32.
        content: (B, N, d_model) first decoder embeddings; None for zeros.
        sets: how they are divided; None for one set.
    """

    embedding: Tensor | None
    reference: Tensor
    content: Tensor | None = None
    sets: QuerySets | None = None


def box_embedding(boxes: Tensor, dim: int) -> Tensor:
    """Embeds boxes (..., 4), cxcywh in [0, 1], as (..., 2 * dim): the centre, then height and width."""
    return torch.cat([point_embedding(boxes[..., :2], dim), point_embedding(boxes[..., 2:], dim)], dim=-1)
