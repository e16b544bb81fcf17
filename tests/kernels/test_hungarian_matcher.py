"""The matcher with DETR's interface, against SciPy with costs written out as DETR's and Deformable DETR's papers do."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cond_detr_kernels import HungarianMatcher

WEIGHTS = (2.0, 5.0, 1.5)


def corners(boxes: Tensor) -> Tensor:
    x, y, w, h = boxes.unbind(-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def giou(a: Tensor, b: Tensor) -> float:
    (ax, ay, aX, aY), (bx, by, bX, bY) = a.tolist(), b.tolist()  # noqa: N806
    inter = max(0.0, min(aX, bX) - max(ax, bx)) * max(0.0, min(aY, bY) - max(ay, by))
    union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inter
    hull = (max(aX, bX) - min(ax, bx)) * (max(aY, bY) - min(ay, by))
    return inter / union - (hull - union) / hull


def cost_of(logits: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """(Q, n) in fp64."""
    logits, boxes, wanted = logits.double(), boxes.double(), wanted.double()
    if kind == "softmax":
        classes = -logits.softmax(-1)[:, labels]
    else:
        p = logits.sigmoid()
        classes = (0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log())[:, labels]
    l1 = torch.cdist(boxes, wanted, p=1)
    overlap = [[giou(a, b) for b in corners(wanted)] for a in corners(boxes)]
    return WEIGHTS[0] * classes + WEIGHTS[1] * l1 - WEIGHTS[2] * torch.tensor(overlap, dtype=torch.float64).view_as(l1)


def problem(queries: int, counts: list[int]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    batch = len(counts)
    outputs = {"pred_logits": torch.randn(batch, queries, 5), "pred_boxes": torch.rand(batch, queries, 4) * 0.4 + 0.3}
    targets = [{"labels": torch.randint(0, 5, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3} for n in counts]
    return outputs, targets


@pytest.mark.parametrize("kind", ["softmax", "focal"])
@pytest.mark.parametrize("queries", [1, 6, 40])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("more", [False, True], ids=["costs alone", "with others"])
def test_pairs_are_scipys(kind: str, queries: int, groups: int, more: bool) -> None:
    outputs, targets = problem(queries * groups, [3, 0, 9, 1])
    matcher = HungarianMatcher(*WEIGHTS, classification=kind)  # type: ignore[arg-type]
    added = [torch.rand(queries * groups, len(target["labels"])) for target in targets] if more else None
    found = matcher(outputs, targets, groups, more_cost=added)
    assert len(found) == len(targets)
    for i, ((query, target), wanted) in enumerate(zip(found, targets, strict=True)):
        cost = cost_of(outputs["pred_logits"][i], outputs["pred_boxes"][i], wanted["labels"], wanted["boxes"], kind)
        if added is not None:
            cost = cost + added[i]
        rows, columns = [], []
        for first in range(0, queries * groups, queries):
            row, column = linear_sum_assignment(cost[first : first + queries].numpy())
            rows += (row + first).tolist()
            columns += column.tolist()
        assert query.tolist() == rows
        assert target.tolist() == columns
        assert query.dtype == target.dtype == torch.int64


def test_names_of_the_transformers_package() -> None:
    outputs, targets = problem(6, [2, 3])
    renamed = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    wanted = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    matcher = HungarianMatcher()
    for (a, b), (c, d) in zip(matcher(renamed, wanted), matcher(outputs, targets), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_is_a_module_without_parameters() -> None:
    assert not list(HungarianMatcher().parameters())
    assert HungarianMatcher(1, 5, 2).weights[:3] == (1, 5, 2)


def test_errors() -> None:
    outputs, targets = problem(6, [2])
    with pytest.raises(ValueError, match="are all 0"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="classification must be softmax or focal, got 'x'"):
        HungarianMatcher(classification="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group_detr must divide the number of queries, got 4 and 6 queries"):
        HungarianMatcher()(outputs, targets, group_detr=4)
    with pytest.raises(ValueError, match=r"more_cost\[0\] must be \(Q, n\)"):
        HungarianMatcher()(outputs, targets, more_cost=[torch.zeros(2, 6)])
    with pytest.raises(ValueError, match=r"pred_logits must be \(B, Q, C\)"):
        HungarianMatcher()(outputs, targets * 2)


def test_what_is_no_cost_is_an_error() -> None:
    """Or, if so wished, a large one."""
    outputs, targets = problem(6, [2, 1])
    targets[1]["labels"][0] = 7
    with pytest.raises(ValueError, match=r"invalid numeric entries .*image 1"):
        HungarianMatcher()(outputs, targets)
    assert [len(query) for query, _ in HungarianMatcher(strict=False)(outputs, targets)] == [2, 1]
    outputs, targets = problem(6, [2, 1])
    outputs["pred_logits"][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"invalid numeric entries .*image 0"):
        HungarianMatcher(classification="focal")(outputs, [{**targets[0], "labels": torch.tensor([0, 1])}, targets[1]])
