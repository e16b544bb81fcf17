"""The criterion against an independent computation: loops, SciPy, textbook formulas, fp64."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cond_detr.boxes import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh
from cond_detr.classes import Classes
from cond_detr.config import LossConfig
from cond_detr.data.batching import Targets, pad_targets
from cond_detr.models.predictions import Predictions
from cond_detr.predict.detections import detections
from cond_detr.train.criterion import Criterion

CASES = {"ragged": [3, 0, 5], "no objects": [0, 0], "one": [1], "more than queries": [25, 2], "over 300": [320]}


def giou(a: list[float], b: list[float]) -> float:
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def textbook(predictions: Predictions, labels: list[Tensor], boxes: list[Tensor], num_boxes: float) -> dict[str, float]:
    """Total over the layers, and the last layer's parts; one prediction and one target at a time."""
    total = 0.0
    for logits, pred in zip(predictions.logits.double(), predictions.boxes.double(), strict=True):
        parts = {"classification": 0.0, "l1": 0.0, "giou": 0.0}
        for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
            p = torch.sigmoid(logits[image]).tolist()
            pred_boxes, true_boxes = pred[image].tolist(), box.tolist()
            cost = np.zeros((len(p), len(label)))
            for q, t in np.ndindex(*cost.shape):
                s = p[q][label[t]]
                focal = -0.25 * (1 - s) ** 2 * math.log(s) + 0.75 * s**2 * math.log(1 - s)
                l1 = sum(abs(x - y) for x, y in zip(pred_boxes[q], true_boxes[t], strict=True))
                cost[q, t] = 2 * focal + 5 * l1 - 2 * giou(pred_boxes[q], true_boxes[t])
            matched = dict(zip(*linear_sum_assignment(cost), strict=True))
            for q, scores in enumerate(p):
                for c, s in enumerate(scores):
                    positive = q in matched and int(label[matched[q]]) == c
                    parts["classification"] += (
                        -0.25 * (1 - s) ** 2 * math.log(s) if positive else -0.75 * s**2 * math.log(1 - s)
                    )
            for q, t in matched.items():
                parts["l1"] += sum(abs(x - y) for x, y in zip(pred_boxes[q], true_boxes[t], strict=True))
                parts["giou"] += 1 - giou(pred_boxes[q], true_boxes[t])
        parts = {k: v / num_boxes for k, v in parts.items()}
        total += 2 * parts["classification"] + 5 * parts["l1"] + 2 * parts["giou"]
    return {"total": total, **parts}


def make(
    counts: list[int], queries: int = 20, classes: int = 4, layers: int = 2
) -> tuple[Predictions, list[Tensor], list[Tensor]]:
    predictions = Predictions(
        torch.randn(layers, len(counts), queries, classes), torch.rand(layers, len(counts), queries, 4) * 0.4 + 0.2
    )
    labels = [torch.randint(0, classes, (n,)) for n in counts]
    boxes = [torch.rand(n, 4) * 0.4 + 0.2 for n in counts]
    return predictions, labels, boxes


@pytest.mark.parametrize("counts", CASES.values(), ids=CASES)
def test_losses_equal_the_textbook(counts: list[int]) -> None:
    predictions, labels, boxes = make(counts)
    num_boxes = torch.tensor(float(max(1, sum(counts))))
    got = Criterion(LossConfig())(predictions, pad_targets(labels, boxes), num_boxes)
    want = textbook(predictions, labels, boxes, float(num_boxes))
    for name, value in want.items():
        assert getattr(got, name).item() == pytest.approx(value, rel=1e-5), name


def unpadded_loss(predictions: Predictions, labels: list[Tensor], boxes: list[Tensor], num_boxes: float) -> Tensor:
    """The total, layer by layer and image by image, nothing padded, differentiable; SciPy assigns."""
    total = torch.zeros((), dtype=torch.float64)
    for logits, predicted in zip(predictions.logits, predictions.boxes, strict=True):
        for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
            p, pred = logits[image].sigmoid(), cxcywh_to_xyxy(predicted[image])
            true = cxcywh_to_xyxy(box)
            pairs = generalized_iou(pred[:, None].expand(-1, len(box), -1), true.expand(len(pred), -1, -1))
            distance = (predicted[image][:, None] - box).abs().sum(-1)
            focal = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
            cost = 2 * focal[:, label] + 5 * distance - 2 * pairs
            query, target = (torch.from_numpy(index) for index in linear_sum_assignment(cost.detach().numpy()))
            positive = torch.zeros_like(p, dtype=torch.bool)
            positive[query, label[target]] = True
            classification = torch.where(positive, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()).sum()
            matched = distance[query, target].sum() * 5 + (1 - pairs[query, target]).sum() * 2
            total = total + (2 * classification + matched) / num_boxes
    return total


@pytest.mark.parametrize("counts", CASES.values(), ids=CASES)
def test_gradients_equal_the_unpadded_reference(counts: list[int]) -> None:
    predictions, labels, boxes = make(counts)
    num_boxes = float(max(1, sum(counts)))
    ours = Predictions(predictions.logits.requires_grad_(), predictions.boxes.requires_grad_())
    theirs = Predictions(*(tensor.detach().double().requires_grad_() for tensor in predictions))
    got = Criterion(LossConfig())(ours, pad_targets(labels, boxes), torch.tensor(num_boxes)).total
    want = unpadded_loss(theirs, labels, [box.double() for box in boxes], num_boxes)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    got.backward()
    want.backward()
    for a, b in zip(ours, theirs, strict=True):
        if b.grad is None:  # no objects, so no boxes in the reference
            assert a.grad is not None
            assert (a.grad == 0).all()
        else:
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-5 * b.grad.abs().max().item())


@pytest.mark.parametrize("counts", CASES.values(), ids=CASES)
def test_padding_changes_nothing(counts: list[int]) -> None:
    predictions, labels, boxes = make(counts)
    targets = pad_targets(labels, boxes)
    wider = Targets(
        torch.cat([targets.labels, torch.full((len(counts), 9), 3)], 1),
        torch.cat([targets.boxes, torch.rand(len(counts), 9, 4)], 1),
        targets.counts,
    )
    criterion = Criterion(LossConfig())
    one = torch.tensor(1.0)
    for a, b in zip(criterion(predictions, targets, one), criterion(predictions, wider, one), strict=True):
        torch.testing.assert_close(a, b)


def test_every_output_is_in_the_graph_without_objects() -> None:
    """Processes whose images hold no objects must still send gradients for every parameter.

    Hangs and wrong means: detr#82, RT-DETR#672, detr#550.
    """
    predictions, labels, boxes = make([0, 0])
    predictions = Predictions(predictions.logits.requires_grad_(), predictions.boxes.requires_grad_())
    Criterion(LossConfig())(predictions, pad_targets(labels, boxes), torch.tensor(1.0)).total.backward()
    assert predictions.logits.grad is not None
    assert predictions.logits.grad.abs().sum() > 0
    assert predictions.boxes.grad is not None
    assert (predictions.boxes.grad == 0).all()


def test_gradients_are_finite_for_degenerate_and_extreme_predictions() -> None:
    logits = torch.tensor([-1e4, 1e4, 0.0]).expand(1, 1, 6, 3).clone().requires_grad_()
    boxes = torch.zeros(1, 1, 6, 4, requires_grad=True)
    targets = pad_targets([torch.tensor([0, 1])], [torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]])])
    Criterion(LossConfig())(Predictions(logits, boxes), targets, torch.tensor(2.0)).total.backward()
    assert logits.grad is not None
    assert boxes.grad is not None
    assert logits.grad.isfinite().all()
    assert boxes.grad.isfinite().all()


def test_box_conversions_are_inverse() -> None:
    boxes = torch.rand(7, 3, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])


def test_generalized_iou() -> None:
    a, b = torch.rand(50, 4) * 0.5 + 0.1, torch.rand(50, 4) * 0.5 + 0.1
    got = generalized_iou(cxcywh_to_xyxy(a.double()), cxcywh_to_xyxy(b.double()))
    assert got.tolist() == pytest.approx(
        [giou(x, y) for x, y in zip(a.double().tolist(), b.double().tolist(), strict=True)]
    )


def test_detections_are_the_best_scores_in_pixels() -> None:
    logits = torch.full((2, 1, 3, 2), -9.0)
    logits[-1, 0, 1, 0], logits[-1, 0, 2, 1] = 2.0, 1.0
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.5, 0.25, 0.2, 0.5], [0.1, 0.9, 0.4, 0.2]]).expand(2, 1, 3, 4)
    (found,) = detections(Predictions(logits, boxes), [(200, 100)], Classes(("cat", "dog"), (4, 9)))
    assert found.names[:2] == ["cat", "dog"]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    torch.testing.assert_close(found.boxes[0], torch.tensor([80.0, 0.0, 120.0, 50.0]))
    torch.testing.assert_close(found.boxes[1], torch.tensor([-20.0, 80.0, 60.0, 100.0]))  # not clamped
    assert len(found) == 3  # as many as there are queries
    assert len(detections(Predictions(logits, boxes), [(200, 100)], Classes(("cat", "dog"), (4, 9)), 100)[0]) == 6
    assert found.above(0.7).names == ["cat", "dog"]
