"""Output of the network, and the best of it."""

from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy


class Predictions(NamedTuple):
    """Raw predictions of every decoder layer, the last layer last.

    Attributes:
        logits: (L, B, Q, C) class logits, fp32; scores are their sigmoid. With the softmax loss (L, B, Q, C + 1), the
            last one for no object.
        boxes: (L, B, Q, 4) cxcywh in fractions of the image size without padding, fp32.
    """

    logits: Tensor
    boxes: Tensor


def boxes_at(raw: Tensor, reference: Tensor) -> Tensor:
    """Boxes (..., 4) in [0, 1]: offsets from reference points or boxes before the sigmoid (equation 1).

    Args:
        raw: (..., 4) output of the box head.
        reference: (..., 2) or (..., 4) in [0, 1], of a shape that broadcasts; what it lacks is no offset.
    """
    known = reference.shape[-1]
    raw = raw.float()
    return torch.cat([raw[..., :known] + torch.logit(reference, eps=1e-5), raw[..., known:]], dim=-1).sigmoid()


def query_scores(logits: Tensor) -> Tensor:
    """Scores of a network trained with softmax: (B, Q, C + 1) logits -> (B, Q, C).

    As in DETR, the most probable class of each query has its probability as score, the others 0.
    """
    scores = logits.softmax(-1)[..., :-1]
    return torch.where(scores == scores.amax(-1, keepdim=True), scores, 0.0)


def ranked(predictions: Predictions, top: int | None = None, *, softmax: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The highest scores over all queries and classes of the last layer.

    Args:
        predictions: predictions for B images.
        top: number of scores per image, K if there are as many.
        softmax: as in :func:`cond_detr.predict.detections.detections`.

    Returns:
        Scores, queries and labels, (B, K) each, highest score first.
    """
    scores = query_scores(predictions.logits[-1]) if softmax else predictions.logits[-1].sigmoid()
    num_classes = scores.shape[-1]
    count = scores.shape[1] if top is None else min(top, scores.shape[1] * num_classes)
    scores, index = scores.flatten(1).topk(count, dim=1)
    return scores, index // num_classes, index % num_classes


class Ranked(NamedTuple):
    """The best detections of B images, highest score first; the output of an exported model.

    Attributes:
        scores: (B, K) in [0, 1].
        labels: (B, K) int64 indices of the classes.
        boxes: (B, K, 4) xyxy in fractions of the image size.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


def best(predictions: Predictions, top: int | None = None, *, softmax: bool = False) -> Ranked:
    """The ``top`` detections with the highest scores of the last layer, by default as many as there are queries.

    Args:
        predictions: predictions for B images.
        top: number of detections of each image.
        softmax: as in :func:`cond_detr.predict.detections.detections`.
    """
    scores, query, labels = ranked(predictions, top, softmax=softmax)
    boxes = cxcywh_to_xyxy(predictions.boxes[-1]).gather(1, query[..., None].expand(-1, -1, 4))
    return Ranked(scores, labels, boxes)
