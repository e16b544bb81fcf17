"""DETR's matcher as a module with the call that its users know, to put in the place of theirs."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cond_detr_kernels.assignment.functional import linear_sum_assignment, match
from cond_detr_kernels.assignment.reference import MatchWeights, match_cost
from cond_detr_kernels.checks import check_shape

Pairs: TypeAlias = list[tuple[Tensor, Tensor]]


class HungarianMatcher(nn.Module):
    """Matches predictions with targets, with the interface of DETR's ``HungarianMatcher``.

    Costs and assignments of all images are computed in one call, on the device of the predictions.

    Args:
        cost_class: weight of the classification cost.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of their generalised IoU.
        classification: "softmax", minus the probability of the class, as in DETR; or "focal", as in Deformable and
            Conditional DETR and most since.
        focal_alpha: alpha of the focal cost.
        focal_gamma: gamma of the focal cost.
        strict: raise an error if predictions are not finite or a label is none of the classes, for which the host waits
            for the device once. If not, it never waits, and such costs are replaced by a large one.

    Raises:
        ValueError: if all costs are 0, or ``classification`` is something else.
    """

    def __init__(
        self,
        cost_class: float = 1.0,
        cost_bbox: float = 1.0,
        cost_giou: float = 1.0,
        *,
        classification: Literal["softmax", "focal"] = "softmax",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        strict: bool = True,
    ) -> None:
        super().__init__()
        if classification not in ("softmax", "focal"):
            raise ValueError(f"classification must be softmax or focal, got {classification!r}")
        if not (cost_class or cost_bbox or cost_giou):
            raise ValueError("cost_class, cost_bbox and cost_giou are all 0")
        self.strict = strict
        softmax = classification == "softmax"
        self.weights = MatchWeights(cost_class, cost_bbox, cost_giou, focal_alpha, focal_gamma, softmax)

    @torch.no_grad()
    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        group_detr: int = 1,
        *,
        more_cost: Sequence[Tensor] | None = None,
    ) -> Pairs:
        """Matches the predictions for B images.

        Args:
            outputs: "pred_logits", or "logits" as in the transformers package, (B, Q, C); and "pred_boxes" (B, Q, 4),
                cxcywh in fractions of the image size.
            targets: for each image "labels", or "class_labels" as in the transformers package, (n,) int64; and "boxes"
                (n, 4), like those of the outputs.
            group_detr: number of sets of queries that are matched on their own (Group DETR); Q is a multiple of it.
            more_cost: for each image (Q, n) costs to add, such as those of masks; each image is then solved on its
                own, and the host waits for each.

        Returns:
            For each image indices of queries, in ascending order within a set, and of their targets: (k,) int64 each,
            with k = min(Q, n), or the sum of that over the sets.

        Raises:
            ValueError: if the shape, dtype or device of an argument does not fit; if ``strict``, or with ``more_cost``,
                also if costs are not finite.
            KeyError: if outputs or targets lack one of these.
        """
        logits, boxes = outputs["logits" if "logits" in outputs else "pred_logits"], outputs["pred_boxes"]
        check_shape("pred_logits", logits, "(B, Q, C)", (len(targets), None, None))
        queries = logits.shape[1]
        if group_detr < 1 or queries % group_detr:
            raise ValueError(f"group_detr must divide the number of queries, got {group_detr} and {queries} queries")
        if more_cost is not None:
            return self._one_by_one(logits, boxes, targets, more_cost, group_detr)
        labels = [labels_of(target) for target in targets]
        counts = [len(each) for each in labels]
        pred_index, _ = match(
            logits.unflatten(1, (group_detr, -1)).transpose(0, 1),
            boxes.unflatten(1, (group_detr, -1)).transpose(0, 1),
            pad_sequence(labels, batch_first=True),
            pad_sequence([target["boxes"].reshape(-1, 4) for target in targets], batch_first=True),
            on_device(counts, logits.device),
            weights=self.weights,
            strict=self.strict,
        )
        return sorted_pairs(pred_index, counts, queries // group_detr)

    def _one_by_one(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        more_cost: Sequence[Tensor],
        groups: int,
    ) -> Pairs:
        found = []
        for i, (target, more) in enumerate(zip(targets, more_cost, strict=True)):
            labels = labels_of(target)
            check_shape(f"more_cost[{i}]", more, "(Q, n)", (logits.shape[1], len(labels)))
            cost = match_cost(
                logits[i].float(), boxes[i].float(), labels, target["boxes"].reshape(-1, 4), self.weights
            ).T
            size = len(cost) // groups
            pairs = [linear_sum_assignment(part) for part in (cost + more).split(size)]
            query = torch.cat([rows + size * number for number, (rows, _) in enumerate(pairs)])
            found.append((query, torch.cat([columns for _, columns in pairs])))
        return found


def on_device(counts: Sequence[int], device: torch.device) -> Tensor:
    """Numbers as an int64 tensor on a device, without waiting for it."""
    tensor = torch.tensor(counts, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def labels_of(target: Mapping[str, Tensor]) -> Tensor:
    """Class indices (n,) of the targets of an image, by either name."""
    return target["class_labels" if "class_labels" in target else "labels"]


def sorted_pairs(pred_index: Tensor, counts: Sequence[int], queries: int) -> Pairs:
    """The result of :func:`match` as index pairs of each image, by query; the sets one after the other.

    Args:
        pred_index: (G, B, T) int64 query of each target in each of G sets, -1 where there is none.
        counts: number of targets of each image.
        queries: number of queries in a set.
    """
    groups = len(pred_index)
    query, target = pred_index.where(pred_index >= 0, queries).sort(-1)  # what is not matched comes last
    query = query + queries * torch.arange(groups, device=query.device)[:, None, None]
    kept = [min(count, queries) for count in counts]
    return [(query[:, i, :k].flatten(), target[:, i, :k].flatten()) for i, k in enumerate(kept)]
