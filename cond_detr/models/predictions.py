"""Output of the network, and post-processing to detections."""

from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy
from cond_detr.classes import Classes
from cond_detr.errors import InputError, shown


class Predictions(NamedTuple):
    """Raw predictions of every decoder layer, the last layer last.

    Attributes:
        logits: (L, B, Q, C) class logits, fp32; scores are their sigmoid. With the softmax loss (L, B, Q, C + 1), the
            last one for no object.
        boxes: (L, B, Q, 4) cxcywh in fractions of the image size without padding, fp32.
    """

    logits: Tensor
    boxes: Tensor


class Detections(NamedTuple):
    """The detections of one image, best first.

    Attributes:
        boxes: (K, 4) xyxy in pixels of the original image; may extend beyond it.
        scores: (K,) in [0, 1].
        labels: (K,) int64 indices of the classes.
        names: K class names.
        category_ids: K category ids, as in the data set that the model was trained on.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    category_ids: list[int]

    def above(self, threshold: float) -> "Detections":
        """The detections with a score of at least ``threshold``."""
        count = int((self.scores >= threshold).sum())  # the best come first
        boxes, scores, labels, names, ids = self
        return Detections(boxes[:count], scores[:count], labels[:count], names[:count], ids[:count])


def check_threshold(threshold: float) -> None:
    """Checks a threshold of scores.

    Raises:
        InputError: if it is not a number in [0, 1].
    """
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a score in [0, 1], got {shown(threshold)}")


def query_scores(logits: Tensor) -> Tensor:
    """Scores of a network trained with softmax: (B, Q, C + 1) logits -> (B, Q, C).

    As in DETR, the most probable class of each query has its probability as score, the others 0.
    """
    scores = logits.softmax(-1)[..., :-1]
    return torch.where(scores == scores.amax(-1, keepdim=True), scores, 0.0)


def ranked(predictions: Predictions, top: int, *, softmax: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The highest scores over all queries and classes of the last layer.

    Args:
        predictions: predictions for B images.
        top: number of scores per image, K if there are as many.
        softmax: as in :func:`detections`.

    Returns:
        Scores, queries and labels, (B, K) each, highest score first.
    """
    scores = query_scores(predictions.logits[-1]) if softmax else predictions.logits[-1].sigmoid()
    num_classes = scores.shape[-1]
    scores, index = scores.flatten(1).topk(min(top, scores[0].numel()), dim=1)
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


def best(predictions: Predictions, top: int = 100, *, softmax: bool = False) -> Ranked:
    """The ``top`` detections with the highest scores of the last layer; ``softmax`` as in :func:`detections`."""
    scores, query, labels = ranked(predictions, top, softmax=softmax)
    boxes = cxcywh_to_xyxy(predictions.boxes[-1]).gather(1, query[..., None].expand(-1, -1, 4))
    return Ranked(scores, labels, boxes)


def in_pixels(found: Ranked, sizes: list[tuple[int, int]], classes: Classes) -> list[Detections]:
    """Converts boxes to pixels, and adds class names and category ids.

    Args:
        found: detections of B images.
        sizes: original (width, height) of each image in pixels.
        classes: the classes.

    Raises:
        InputError: if a box or a score is not finite.
    """
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise InputError(
            "the network's predictions are not finite: its weights are damaged, or too large for its precision"
        )
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
    """Post-processing: the detections with the highest scores of the last layer, boxes in pixels.

    Args:
        predictions: predictions for B images.
        sizes: original (width, height) of each image in pixels.
        classes: the C classes.
        top: largest number of detections per image.
        softmax: whether the network was trained with DETR's softmax loss. Then scores are softmax probabilities, and
            each query has only its most probable class; else scores are sigmoids.
    """
    return in_pixels(best(predictions, top, softmax=softmax), sizes, classes)
