"""What the network puts out, and the detections made of it."""

from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy
from cond_detr.classes import Classes
from cond_detr.errors import InputError


class Predictions(NamedTuple):
    """Raw predictions of every decoder layer, the last layer last.

    Attributes:
        logits: (L, B, Q, C) class logits, fp32; sigmoid gives scores. Trained by softmax (L, B, Q, C + 1), the last one
            for no object.
        boxes: (L, B, Q, 4) cxcywh in fractions of the image size without padding, fp32.
    """

    logits: Tensor
    boxes: Tensor


class Detections(NamedTuple):
    """The detections of one image, best first.

    Attributes:
        boxes: (K, 4) xyxy in pixels of the original image; may reach over its edges.
        scores: (K,) in [0, 1].
        labels: (K,) int64, index of the class.
        names: K class names.
        category_ids: K ids of the classes in the data set that the model learnt from.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    category_ids: list[int]

    def above(self, threshold: float) -> "Detections":
        """Those with at least this score."""
        count = int((self.scores >= threshold).sum())  # the best come first
        boxes, scores, labels, names, ids = self
        return Detections(boxes[:count], scores[:count], labels[:count], names[:count], ids[:count])


def check_threshold(threshold: float) -> None:
    """Raises the sentence for what no score can reach."""
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a score in [0, 1], got {threshold!r}")


def query_scores(logits: Tensor) -> Tensor:
    """(B, Q, C + 1) -> (B, Q, C): the probability of the likeliest class of each query, 0 for the others."""
    scores = logits.softmax(-1)[..., :-1]
    return torch.where(scores == scores.amax(-1, keepdim=True), scores, 0.0)


def ranked(predictions: Predictions, top: int, *, softmax: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The ``top`` highest scores over queries and classes of the last layer, queries and labels: (B, K) each."""
    scores = query_scores(predictions.logits[-1]) if softmax else predictions.logits[-1].sigmoid()
    num_classes = scores.shape[-1]
    scores, index = scores.flatten(1).topk(min(top, scores[0].numel()), dim=1)
    return scores, index // num_classes, index % num_classes


class Ranked(NamedTuple):
    """The best detections of B images, best first; what an exported model puts out.

    Attributes:
        scores: (B, K) in [0, 1].
        labels: (B, K) int64, index of the class.
        boxes: (B, K, 4) xyxy in fractions of the image size.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


def best(predictions: Predictions, top: int = 100, *, softmax: bool = False) -> Ranked:
    """The ``top`` best detections of the last layer; ``softmax`` as in :func:`detections`."""
    scores, query, labels = ranked(predictions, top, softmax=softmax)
    boxes = cxcywh_to_xyxy(predictions.boxes[-1]).gather(1, query[..., None].expand(-1, -1, 4))
    return Ranked(scores, labels, boxes)


def in_pixels(found: Ranked, sizes: list[tuple[int, int]], classes: Classes) -> list[Detections]:
    """Detections with boxes in pixels, class names and ids: one for each (width, height)."""
    scale = torch.tensor([[w, h, w, h] for w, h in sizes], dtype=found.boxes.dtype, device=found.boxes.device)
    boxes = found.boxes * scale[:, None]
    return [
        Detections(b, s, c, [classes.names[i] for i in c.tolist()], [classes.category_ids[i] for i in c.tolist()])
        for b, s, c in zip(boxes.cpu(), found.scores.cpu(), found.labels.cpu(), strict=True)
    ]


def detections(
    predictions: Predictions,
    sizes: list[tuple[int, int]],
    classes: Classes,
    top: int = 100,
    *,
    softmax: bool = False,
) -> list[Detections]:
    """Post-processing: the best of the last layer, boxes in pixels.

    Args:
        predictions: of B images.
        sizes: original (width, height) of each.
        classes: the C classes.
        top: most detections per image.
        softmax: how scores are made of logits; then, as in DETR, each query has its likeliest class only.
    """
    return in_pixels(best(predictions, top, softmax=softmax), sizes, classes)
