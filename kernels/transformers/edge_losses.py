"""Losses of box edges that are predicted as distributions over distances (D-FINE: Peng et al., ICLR 2025)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cond_detr_kernels.boxes import cxcywh_to_xyxy
from cond_detr_kernels.transformers.layers import Layers, Pairs, Targets, at_least_fp32

# Of the distillation
TEMPERATURE = 5


class EdgeBins(NamedTuple):
    """The distances that an edge's distribution is over (equation 2).

    Attributes:
        number: N, an even number; there are N + 1 distances.
        scale: c, the larger the flatter.
        up: a, which bounds them.
    """

    number: int
    scale: float
    up: float

    def distances(self, device: torch.device) -> Tensor:
        """(N + 1,) the distances W(n), ascending."""
        bound = torch.full((1,), abs(self.up), device=device) * abs(self.scale)
        step = (bound + 1) ** (2 / (self.number - 2))
        powers = step ** torch.arange(1, self.number // 2, device=device)
        return torch.cat([-2 * bound, (1 - powers).flip(0), torch.zeros_like(bound), powers - 1, 2 * bound])

    def place(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Where offsets lie: the bin below (int64), and the fraction of the way to the bin above.

        What is out of bounds lies on the outermost bin.
        """
        distances = self.distances(offsets.device)
        below = (torch.searchsorted(distances, offsets.contiguous(), right=True) - 1).clamp(0, self.number - 1)
        low, high = distances[below], distances[below + 1]
        return below, ((offsets - low) / (high - low)).clamp(0, 1)


def edge_losses(
    layers: Layers, targets: Targets, pairs: Pairs, quality: Tensor, bins: EdgeBins, count: Tensor | float
) -> dict[str, Tensor]:
    """Fine-grained localization and decoupled distillation focal losses (equations 4 and 5), (L,) each.

    Args:
        layers: with "pred_corners" (B, Q, 4 (N + 1)), "ref_points" (B, Q, 4), and the last layer's "teacher_corners"
            and "teacher_logits".
        targets: the objects.
        pairs: queries and targets.
        quality: (L, B, P) their IoU, detached.
        bins: the distances.
        count: what the first loss is divided by.
    """
    logits = layers.stacked("pred_corners").unflatten(-1, (4, bins.number + 1))
    below, fraction = bins.place(offsets(layers, targets, pairs, bins.scale))
    log_p = pairs.of_queries(logits).log_softmax(-1)
    at, above = (log_p.gather(-1, index[..., None]).squeeze(-1) for index in (below, below + 1))
    localization = -(at * (1 - fraction) + above * fraction).sum(-1)
    return {
        "loss_fgl": pairs.total(localization * quality) / count,
        "loss_ddf": distillation(layers, logits, pairs, quality),
    }


@torch.no_grad()
def offsets(layers: Layers, targets: Targets, pairs: Pairs, scale: float) -> Tensor:
    """(L, B, P, 4) how far the targets' edges are outside those of the reference boxes, in units of their size."""
    scale = abs(scale)
    points = pairs.of_queries(layers.stacked("ref_points"))
    centre, size = points[..., :2], points[..., 2:] / scale + 1e-16
    edges = pairs.of_targets(cxcywh_to_xyxy(targets.boxes))
    return torch.cat([(centre - edges[..., :2]) / size, (edges[..., 2:] - centre) / size], -1) - 0.5 * scale


def distillation(layers: Layers, logits: Tensor, pairs: Pairs, quality: Tensor) -> Tensor:
    """(L,) divergence from the last layer's distributions; matched and other queries weigh by their number's root.

    Args:
        layers: with "teacher_corners" and "teacher_logits", alike in all of them.
        logits: (L, B, Q, 4, N + 1).
        pairs: queries and targets.
        quality: (L, B, P) their IoU.
    """
    teacher = at_least_fp32(layers.outputs[0]["teacher_corners"]).detach().reshape(1, *logits.shape[1:])
    divergence = F.kl_div(
        (logits / TEMPERATURE).log_softmax(-1), (teacher / TEMPERATURE).softmax(-1), reduction="none"
    ).sum((-1, -2))
    queries = logits.shape[2]
    confidence = (
        at_least_fp32(layers.outputs[0]["teacher_logits"]).detach().sigmoid().amax(-1).expand(len(logits), -1, -1)
    )
    slot = pairs.query.where(pairs.valid, queries)
    # a place more, for what is no pair
    weight = F.pad(confidence, (0, 1)).scatter(2, slot, quality.to(confidence.dtype))[..., :queries]
    matched = torch.zeros_like(F.pad(confidence, (0, 1)), dtype=torch.bool).scatter(2, slot, True)[..., :queries]
    each = weight * TEMPERATURE**2 * divergence / 4
    zero = torch.zeros((), dtype=each.dtype, device=each.device)
    of_both, roots = [], []
    for which in (matched, ~matched):
        number = which.sum((1, 2))
        roots.append((4 * number / logits.shape[1]).sqrt())
        of_both.append(roots[-1] * each.where(which, zero).sum((1, 2)) / number.clamp(min=1))
    return (of_both[0] + of_both[1]) / (roots[0] + roots[1])
