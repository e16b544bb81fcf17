"""The criteria of the transformers package's detectors, with one matching and each loss once for all layers.

Each class here is put before the package's criterion of the same family and replaces its ``forward``, which computes
the losses that the family has. Settings, weights and names are the package's. Nothing reads a value from the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cond_detr_kernels.assignment.hungarian_matcher import sorted_pairs
from cond_detr_kernels.boxes import cxcywh_to_xyxy, generalized_iou, iou
from cond_detr_kernels.transformers import classification, matching
from cond_detr_kernels.transformers.classification import SparseLoss
from cond_detr_kernels.transformers.edge_losses import EdgeBins, edge_losses
from cond_detr_kernels.transformers.layers import Layers, Outputs, Pairs, Targets

try:
    from accelerate import PartialState
    from accelerate.utils import reduce
except ImportError:  # then nobody's processes are its
    PartialState = None

Losses = dict[str, Tensor]


def box_losses(boxes: Tensor, targets: Targets, pairs: Pairs) -> Losses:
    """L1 and GIoU losses of the pairs, summed in each layer: (L,) each."""
    found, wanted = pairs.of_queries(boxes), pairs.of_targets(targets.boxes)
    giou = generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    return {"loss_bbox": pairs.total((found - wanted).abs().sum(-1)), "loss_giou": pairs.total(1 - giou)}


@torch.no_grad()
def overlaps(boxes: Tensor, targets: Targets, pairs: Pairs) -> Tensor:
    """IoU (L, B, P) of the pairs; 0 where there is none."""
    found, wanted = pairs.of_queries(boxes), pairs.of_targets(targets.boxes)
    return pairs.counted(iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted)))


def cardinality_error(objects: Tensor, targets: Targets) -> Tensor:
    """(L,) how far the numbers of queries that see an object, (L, B, Q) bool, are from those of the targets."""
    return (objects.sum(-1) - targets.counts).abs().float().mean(-1)


def processes_mean(count: int, device: torch.device) -> Tensor | float:
    """A number of boxes, at least 1; with several processes of torch.distributed their mean."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return float(max(count, 1))
    total = torch.full((), float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / torch.distributed.get_world_size()).clamp(min=1)


def by_layer(values: Mapping[str, Tensor], suffixes: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Names with their values, layer by layer, of values (L,)."""
    split = {name: each.unbind() for name, each in values.items()}
    for i, suffix in enumerate(suffixes):
        yield from ((name + suffix, each[i]) for name, each in split.items())


class WithoutTensors:
    """Takes a criterion's weights and constants off it: the host would wait until they are copied to the device.

    Attributes:
        constants: their values by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        tensors = [*self.named_parameters(), *self.named_buffers()]  # type: ignore[attr-defined]
        self.constants: dict[str, list[float]] = {name: each.tolist() for name, each in tensors}
        for name in self.constants:
            delattr(self, name)


class SharedCriterion(WithoutTensors):
    """What DETR's criterion and its descendants have in common: classes, boxes, cardinality, and masks."""

    matcher: Any
    losses: Sequence[str]
    groups: int = 1

    def forward(self, outputs: Outputs, targets: Sequence[Mapping[str, Tensor]]) -> Losses:
        """The losses of a batch, with the names of the package."""
        auxiliary = outputs.get("auxiliary_outputs", ())
        named = [("", outputs), *((f"_{i}", each) for i, each in enumerate(auxiliary))]
        if "enc_outputs" in outputs:
            named.append(("_enc", outputs["enc_outputs"]))
        layers, wanted = Layers.of(named), Targets.of(targets)
        found = self.matched(layers, wanted)
        count = self.normaliser(sum(wanted.sizes) * self.groups, layers.logits.device)
        values = self.layer_losses(layers, wanted, Pairs.of(found), count)
        losses = dict(by_layer(values, layers.suffixes))
        if "masks" in self.losses:  # of the last layer alone
            pairs = sorted_pairs(found[:1, :, 0], wanted.sizes, layers.logits.shape[2])
            losses |= self.loss_masks(outputs, targets, pairs, count)  # type: ignore[attr-defined]
        return losses

    def matched(self, layers: Layers, targets: Targets) -> Tensor:
        """(L, B, G, T) the query of each target in each of G groups of queries."""
        return matching.by_class(self.matcher, layers, targets)[:, :, None]

    def normaliser(self, count: int, device: torch.device) -> Tensor | float:
        """What sums over boxes are divided by, as the package finds it: it knows accelerate's processes only."""
        if PartialState is None or not PartialState._shared_state:
            return float(max(count, 1))
        mean = reduce(torch.full((1,), float(count), device=device))[0]
        return (mean / PartialState().num_processes).clamp(min=1)

    def layer_losses(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Losses:
        """Losses by name, (L,) each."""
        boxes = box_losses(layers.boxes, targets, pairs)
        return {
            "loss_ce": self.class_loss(layers, targets, pairs, count),
            **{name: total / count for name, total in boxes.items()},
            "cardinality_error": cardinality_error(self.objects(layers.logits.detach()), targets),
        }

    def class_loss(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Tensor:
        """The classification loss of each layer, (L,)."""
        quality = overlaps(layers.boxes, targets, pairs)
        return self.sparse_loss()(layers.logits, targets.labels, quality, pairs) / count

    def sparse_loss(self) -> SparseLoss:
        """The family's classification loss."""
        raise NotImplementedError

    @staticmethod
    def objects(logits: Tensor) -> Tensor:
        """(L, B, Q) whether a query sees an object."""
        return logits.amax(-1).sigmoid() > 0.5


class SoftmaxCriterion(SharedCriterion):
    """DETR, YOLOS and Table Transformer."""

    eos_coef: float

    def class_loss(self, layers: Layers, targets: Targets, pairs: Pairs, _: Tensor | float) -> Tensor:  # noqa: D102
        return classification.softmax(layers.logits, targets.labels, pairs, self.eos_coef)

    @staticmethod
    def objects(logits: Tensor) -> Tensor:  # noqa: D102
        return logits[..., :-1].amax(-1) >= logits[..., -1]


class FocalCriterion(SharedCriterion):
    """Deformable, Conditional and DAB-DETR."""

    focal_alpha: float

    def sparse_loss(self) -> SparseLoss:  # noqa: D102
        return classification.focal(self.focal_alpha)


class GroupCriterion(SharedCriterion):
    """LW-DETR and RF-DETR: groups of queries, each matched on its own; an IoU-aware loss."""

    group_detr: int
    focal_alpha: float

    def forward(self, outputs: Outputs, targets: Sequence[Mapping[str, Tensor]]) -> Losses:  # noqa: D102
        self.groups = self.group_detr if self.training else 1  # type: ignore[attr-defined]
        return super().forward(outputs, targets)

    def matched(self, layers: Layers, targets: Targets) -> Tensor:  # noqa: D102
        size = layers.logits.shape[2] // self.groups

        def as_layers(values: Tensor) -> Tensor:
            groups = values[:, :, : size * self.groups].unflatten(2, (self.groups, size))
            return groups.transpose(1, 2).flatten(0, 1)

        apart = layers._replace(logits=as_layers(layers.logits.detach()), boxes=as_layers(layers.boxes.detach()))
        found = matching.by_class(self.matcher, apart, targets).unflatten(0, (-1, self.groups)).transpose(1, 2)
        first = size * torch.arange(self.groups, device=found.device)[:, None]
        return torch.where(found >= 0, found + first, found)

    def normaliser(self, count: int, device: torch.device) -> Tensor | float:  # noqa: D102
        return processes_mean(count, device)

    def sparse_loss(self) -> SparseLoss:  # noqa: D102
        return classification.iou_aware(self.focal_alpha)


class TokenCriterion(SharedCriterion):
    """Grounding DINO: logits of text tokens, several for a class."""

    focal_alpha: float

    def forward(self, outputs: Outputs, targets: Sequence[Mapping[str, Tensor]]) -> Losses:  # noqa: D102
        return super().forward(up_to(outputs, end_of_text(outputs)), targets)

    def matched(self, layers: Layers, targets: Targets) -> Tensor:  # noqa: D102
        return matching.by_tokens(self.matcher, layers, targets)[:, :, None]

    def class_loss(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Tensor:  # noqa: D102
        loss, text = classification.focal(self.focal_alpha), layers.outputs[0]["text_mask"].expand_as(layers.logits)
        # beyond the end of a text logits are -inf
        logits = layers.logits.where(text, 0.0)
        nothing = loss.negative(logits).where(text, 0.0).sum((1, 2, 3))
        matched, wanted = pairs.of_queries(logits), self.wanted_tokens(layers, targets, pairs) & pairs.of_queries(text)
        correction = loss.positive(matched, wanted) - loss.negative(matched)
        return (nothing + pairs.total(correction.where(wanted, 0.0).sum(-1))) / count

    def wanted_tokens(self, layers: Layers, targets: Targets, pairs: Pairs) -> Tensor:
        """(L, B, P, C) the tokens of each pair's class."""
        maps = layers.outputs[0]["label_maps"]
        # as the package finds a class's row among those of all images: right where all texts have as many classes
        rows = torch.stack([labels + (len(maps[i]) if i else 0) for i, labels in enumerate(targets.labels)])
        return pairs.of_targets(F.pad(torch.cat(list(maps)), (0, 0, 0, 1))[rows].bool())


def end_of_text(outputs: Outputs) -> int:
    """Where the tokens of texts and classes end, if looking costs nothing: on the CPU. Else how many there can be."""
    text = outputs["text_mask"]
    if text.device.type != "cpu" or torch.compiler.is_compiling():
        return int(text.shape[-1])
    masks = [each.numpy().reshape(-1, text.shape[-1]) for each in (text, *outputs["label_maps"])]
    used = np.flatnonzero(np.any([mask.any(0) for mask in masks], axis=0))
    return int(used[-1]) + 1 if len(used) else 1


def up_to(outputs: Outputs, end: int) -> dict[str, Any]:
    """Outputs without the tokens from there on, whose logits are -inf."""
    kept = {**outputs, "logits": outputs["logits"][..., :end], "text_mask": outputs["text_mask"][..., :end]}
    kept["label_maps"] = [each[:, :end] for each in outputs["label_maps"]]
    if "auxiliary_outputs" in outputs:
        kept["auxiliary_outputs"] = [up_to(each, end) for each in outputs["auxiliary_outputs"]]
    return kept


class RTDetrCriterion(WithoutTensors):
    """RT-DETR and RT-DETRv2: varifocal loss, denoising queries; the base of D-FINE's and DEIMv2's."""

    matcher: Any
    alpha: float
    gamma: float
    weight_dict: Mapping[str, float]

    def forward(self, outputs: Outputs, targets: Sequence[Mapping[str, Tensor]]) -> Losses:
        """The losses of a batch, weighted, with the names of the package."""
        auxiliary = outputs.get("auxiliary_outputs", ())
        named = [("", outputs), *((f"_aux_{i}", each) for i, each in enumerate(auxiliary))]
        wanted = Targets.of(targets)
        count = float(max(sum(wanted.sizes), 1))
        losses: Losses = {}
        # up to release 5.17 the last layer has its denoising queries still
        for _, alike in groupby(named, lambda each: each[1]["logits"].shape):
            layers = Layers.of(list(alike))
            found = matching.by_class(self.matcher, layers, wanted)
            losses |= self.matched_losses(layers, wanted, found, count)
        if "dn_auxiliary_outputs" in outputs:
            noised = Layers.of([(f"_dn_{i}", each) for i, each in enumerate(outputs["dn_auxiliary_outputs"])])
            made_from = outputs["denoising_meta_values"]
            pairs = denoising_pairs(made_from, wanted, len(noised.outputs))
            losses |= self.pair_losses(noised, wanted, pairs, count * made_from["dn_num_group"])
        return losses

    def matched_losses(self, layers: Layers, targets: Targets, found: Tensor, count: float) -> Losses:
        """Losses of the object queries, by the query (L, B, T) of each target."""
        return self.pair_losses(layers, targets, Pairs.of(found), count)

    def pair_losses(self, layers: Layers, targets: Targets, pairs: Pairs, count: float) -> Losses:
        """All losses of given pairs."""
        return self.class_losses(layers, targets, pairs, count) | self.place_losses(layers, targets, pairs, count)

    def class_losses(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Losses:
        """Classification losses."""
        total = classification.varifocal(self.alpha, self.gamma)(
            layers.logits, targets.labels, overlaps(layers.boxes, targets, pairs), pairs
        )
        return self.weighted({"loss_vfl": total / count}, layers)

    def place_losses(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Losses:
        """Losses of the boxes."""
        totals = box_losses(layers.boxes, targets, pairs)
        return self.weighted({name: total / count for name, total in totals.items()}, layers)

    def weighted(self, values: Mapping[str, Tensor], layers: Layers) -> Losses:
        """Losses (L,) with their weights, layer by layer."""
        return dict(by_layer({name: each * self.weight_dict[name] for name, each in values.items()}, layers.suffixes))


def denoising_pairs(made_from: Mapping[str, Any], targets: Targets, layers: int) -> Pairs:
    """The pairs of denoising queries, which are known from how they were made.

    Raises:
        ValueError: if they were made from other targets.
    """
    device, groups = targets.labels.device, made_from["dn_num_group"]
    made, expected = [len(each) for each in made_from["dn_positive_idx"]], [size * groups for size in targets.sizes]
    if made != expected:
        raise ValueError(f"expected {expected} denoising queries of the images' targets, got {made}")
    wanted = [torch.arange(size, device=device).tile(groups) for size in targets.sizes]
    query = pad_sequence(list(made_from["dn_positive_idx"]), batch_first=True, padding_value=-1)
    query, target = (each.expand(layers, -1, -1) for each in (query, pad_sequence(wanted, batch_first=True)))
    return Pairs(query.clamp(min=0), target, query >= 0)


class DFineCriterion(RTDetrCriterion):
    """D-FINE: the edges of boxes as distributions."""

    max_num_bins: int
    reg_scale: float

    def place_losses(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Losses:  # noqa: D102
        losses = super().place_losses(layers, targets, pairs, count)
        with_edges = [i for i, each in enumerate(layers.outputs) if "pred_corners" in each]
        if with_edges:
            layers, pairs = layers.some(with_edges), pairs.some(with_edges)
            quality = overlaps(layers.boxes, targets, pairs)
            bins = EdgeBins(self.max_num_bins, self.reg_scale, *self.constants["up"])
            values = edge_losses(layers, targets, pairs, quality, bins, count)
            losses |= self.weighted(values, layers)
        return losses


class Deimv2Criterion(DFineCriterion):
    """DEIMv2: the matchability-aware loss; boxes learn from the pairs of all layers."""

    mal_alpha: float | None
    use_dense_one_to_one: bool

    def class_losses(self, layers: Layers, targets: Targets, pairs: Pairs, count: Tensor | float) -> Losses:  # noqa: D102
        total = classification.matchability_aware(self.mal_alpha, self.gamma)(
            layers.logits, targets.labels, overlaps(layers.boxes, targets, pairs), pairs
        )
        return self.weighted({"loss_mal": total / count}, layers)

    def matched_losses(self, layers: Layers, targets: Targets, found: Tensor, count: float) -> Losses:  # noqa: D102
        if not self.use_dense_one_to_one:
            return super().matched_losses(layers, targets, found, count)
        losses = self.class_losses(layers, targets, Pairs.of(found), count)
        united = pairs_of_all_layers(found, layers.logits.shape[2])
        united_count = united.valid[0].sum().clamp(min=1)
        return losses | self.place_losses(layers, targets, united, united_count)


def pairs_of_all_layers(found: Tensor, queries: int) -> Pairs:
    """For each query the target that most layers match it with, the first of several; for all layers alike.

    Args:
        found: (L, B, T) int64 query of each target, -1 where there is none.
        queries: Q.

    Returns:
        (L, B, Q) pairs.
    """
    layers, batch, targets = found.shape
    if not targets:
        return Pairs.of(found)
    slot = found.where(found >= 0, queries).permute(1, 2, 0)  # (B, T, L)
    votes = found.new_zeros(batch, targets, queries + 1).scatter_add(2, slot, torch.ones_like(slot))[..., :queries]
    # the more votes the better, then the smaller the index
    order = torch.arange(targets, 0, -1, device=found.device)[:, None]
    most = (votes * (targets + 1) + order).amax(1)
    query = torch.arange(queries, device=found.device).expand(layers, batch, -1)
    target = targets - most % (targets + 1)
    return Pairs(query, target.expand(layers, -1, -1), (most > targets).expand(layers, -1, -1))
