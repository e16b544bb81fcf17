"""What the criteria work on: padded targets, the outputs of all layers, and pairs of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cond_detr_kernels.assignment.hungarian_matcher import on_device

Outputs = Mapping[str, Any]


class Targets(NamedTuple):
    """The objects of B images, padded to the most that one of them has, T.

    Attributes:
        labels: (B, T) int64.
        boxes: (B, T, 4) cxcywh in fractions of the image size.
        counts: (B,) int64, on the device.
        sizes: the same numbers on the host.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, targets: Sequence[Mapping[str, Tensor]]) -> "Targets":
        """Pads the targets of the package: "class_labels" (n,) and "boxes" (n, 4), or (0,), for each image."""
        labels = [target["class_labels"] for target in targets]
        sizes = tuple(len(each) for each in labels)
        return cls(
            pad_sequence(labels, batch_first=True),
            pad_sequence([target["boxes"].reshape(-1, 4) for target in targets], batch_first=True),
            on_device(sizes, labels[0].device),
            sizes,
        )


class Layers(NamedTuple):
    """Predictions of L layers for B images.

    Attributes:
        suffixes: what the names of each layer's losses end with.
        outputs: of each layer, as the package has them.
        logits: (L, B, Q, C), at least fp32.
        boxes: (L, B, Q, 4) cxcywh in fractions of the image size, likewise.
    """

    suffixes: tuple[str, ...]
    outputs: tuple[Outputs, ...]
    logits: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, named: Sequence[tuple[str, Outputs]]) -> "Layers":
        """Stacks outputs, given with the suffix of their losses."""
        suffixes, outputs = zip(*named, strict=True)
        return cls(
            suffixes,
            outputs,
            at_least_fp32(torch.stack([each["logits"] for each in outputs])),
            at_least_fp32(torch.stack([each["pred_boxes"] for each in outputs])),
        )

    def some(self, which: Sequence[int]) -> "Layers":
        """Those of given numbers."""
        return Layers(
            tuple(self.suffixes[i] for i in which),
            tuple(self.outputs[i] for i in which),
            torch.stack([self.logits[i] for i in which]),
            torch.stack([self.boxes[i] for i in which]),
        )

    def stacked(self, key: str) -> Tensor:
        """Another output of all layers, (L, ...)."""
        return at_least_fp32(torch.stack([each[key] for each in self.outputs]))


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precision as fp32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class Pairs(NamedTuple):
    """P pairs of a query and a target for each layer and image, padded.

    Attributes:
        query: (L, B, P) int64 index of the query; any where there is no pair.
        target: (L, B, P) int64 index of the target; likewise.
        valid: (L, B, P) bool, True where there is a pair.
    """

    query: Tensor
    target: Tensor
    valid: Tensor

    @classmethod
    def of(cls, pred_index: Tensor) -> "Pairs":
        """From the query of each target (L, B, T), or (L, B, G, T) of G groups; -1 where there is none."""
        target = torch.arange(pred_index.shape[-1], device=pred_index.device).expand_as(pred_index)
        flat = pred_index.flatten(2)
        return cls(flat.clamp(min=0), target.flatten(2), flat >= 0)

    def some(self, which: Sequence[int]) -> "Pairs":
        """Those of the layers of given numbers."""
        return Pairs(*(torch.stack([part[i] for i in which]) for part in self))

    def of_queries(self, values: Tensor) -> Tensor:
        """Values (L, B, Q, ...) of the queries of the pairs: (L, B, P, ...)."""
        return _taken(values, self.query)

    def of_targets(self, values: Tensor) -> Tensor:
        """Values (B, T, ...) of the targets of the pairs: (L, B, P, ...)."""
        return _taken(values.expand(len(self.target), *values.shape), self.target)

    def counted(self, values: Tensor) -> Tensor:
        """Values (L, B, P) of the pairs, and 0 where there is none."""
        return values.where(self.valid, torch.zeros((), dtype=values.dtype, device=values.device))

    def total(self, values: Tensor) -> Tensor:
        """(L,) sum of values (L, B, P) over the pairs."""
        return self.counted(values).sum((1, 2))


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Entries of (L, B, N, ...) along N by (L, B, P)."""
    rest = values.shape[3:]
    return values.gather(2, index.reshape(*index.shape, *[1] * len(rest)).expand(*index.shape, *rest))
