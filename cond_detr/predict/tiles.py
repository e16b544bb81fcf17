"""Large images in overlapping tiles, so that small objects are seen at their own size.

An image is searched as a whole, for its large objects, and in each tile. Objects that a tile cuts are left to the tile
beside it, or to the whole image; what two pieces found is kept once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cond_detr.boxes import iou
from cond_detr.errors import InputError, shown
from cond_detr.predict.detections import MOST_MEASURED, Detections

# Of neighbouring tiles, as a fraction of their side
OVERLAP = 0.2
# Of two boxes of a class from different pieces: from here on they are of the same object
SAME_IOU = 0.5
# Share of the smaller box, if it lies within the other; and how many times its size the other may be, if it is surer
SAME_COVERED = 0.8
SAME_SIZE = 4
# A box that ends so close to a tile's inner edge, in fractions of its side, is cut
AT_EDGE = 0.01
# Pieces of an image: with more, an overlap or a side is a mistake
MOST_PIECES = 10_000
# Detections that are looked at, even if their scores are below the threshold
FIRST = 2000

Place = tuple[int, int, int, int]


class Tiling(NamedTuple):
    """How images are cut.

    Attributes:
        side: of the tiles, in pixels of the image.
        overlap: of neighbours, as a fraction of the side.
    """

    side: int
    overlap: float = OVERLAP

    def check(self, stride: int) -> None:
        """Checks the numbers, or raises InputError; tiles are not smaller than the network's stride."""
        if not isinstance(self.side, int) or isinstance(self.side, bool) or self.side < stride:
            raise InputError(f"tile must be a whole number of pixels of at least {stride}, got {shown(self.side)}")
        if not isinstance(self.overlap, (int, float)) or not 0 <= self.overlap <= 0.9:
            raise InputError(f"tile_overlap must be a number from 0 to 0.9, got {shown(self.overlap)}")

    def places(self, size: tuple[int, int]) -> list[Place]:
        """The whole image and then its tiles, as (left, top, right, bottom) in pixels; alone if it is no larger.

        Raises:
            InputError: if there would be too many.
        """
        whole = (0, 0, *size)
        if max(size) <= self.side:
            return [whole]
        count = self._count(size[0]) * self._count(size[1])
        if count > MOST_PIECES:
            raise InputError(
                f"tile {self.side} with tile_overlap {self.overlap:g} would cut an image of {size[0]}x{size[1]} pixels "
                f"into {count} pieces, more than {MOST_PIECES}"
            )
        columns, rows = (self._intervals(length) for length in size)
        return [whole, *((left, top, right, bottom) for top, bottom in rows for left, right in columns)]

    def _intervals(self, length: int) -> list[tuple[int, int]]:
        """Intervals of equal length that cover a side, and overlap by at least what is wanted."""
        side, count = min(self.side, length), self._count(length)
        return [
            (start, start + side) for start in (round(i * (length - side) / max(1, count - 1)) for i in range(count))
        ]

    def _count(self, length: int) -> int:
        side = min(self.side, length)
        step = max(1, side - round(side * self.overlap))
        return -(-(length - side) // step) + 1


def merged(
    found: Sequence[Detections], places: Sequence[Place], size: tuple[int, int], threshold: float = 0.0
) -> Detections:
    """The detections of an image from those of its pieces.

    Args:
        found: detections of each piece, boxes in its pixels.
        places: of the pieces, as (left, top, right, bottom) in pixels.
        size: (width, height) of the image in pixels.
        threshold: lowest score that is wanted. Of lower ones there are only as many as COCO's evaluation takes.
    """
    if len(found) == 1:
        return found[0]
    whole = [_without_cut(each, place, size) for each, place in zip(found, places, strict=True)]
    piece = torch.cat([torch.full((len(each),), i) for i, each in enumerate(whole)])
    together = Detections.together(whole)
    order = together.scores.argsort(descending=True, stable=True)
    together, piece = together[order], piece[order]
    return together[_found_once(together, piece, threshold)]


def _without_cut(found: Detections, place: Place, size: tuple[int, int]) -> Detections:
    """The detections of a piece in pixels of the image, without those that an inner edge cuts."""
    left, top, right, bottom = place
    boxes = found.boxes + torch.tensor([left, top, left, top], dtype=found.boxes.dtype)
    near = AT_EDGE * max(right - left, bottom - top)
    inner = [left > 0, top > 0, right < size[0], bottom < size[1]]
    beyond = [boxes[:, 0] <= left + near, boxes[:, 1] <= top + near]
    beyond += [boxes[:, 2] >= right - near, boxes[:, 3] >= bottom - near]
    cut = torch.zeros(len(found), dtype=torch.bool)
    for is_inner, over in zip(inner, beyond, strict=True):
        cut |= over & is_inner
    return replace(found, boxes=boxes)[~cut]


def _found_once(found: Detections, piece: Tensor, threshold: float) -> list[int]:
    """Indices of detections, best first; where several pieces found the same object, of the best one."""
    count = max(int((found.scores >= threshold).sum()), FIRST)
    while True:
        kept = _best_of_each(found[:count], piece[:count])
        if len(kept) >= MOST_MEASURED or count >= len(found):
            return kept
        count *= 2


def _best_of_each(found: Detections, piece: Tensor) -> list[int]:
    """Indices of detections, best first, of which no two from different pieces are of the same object."""
    others: list[list[int]] = [[] for _ in range(len(found))]
    for better, worse in _of_same_object(found, piece):
        others[better].append(worse)
    kept, gone = [], bytearray(len(found))
    for i, beaten in enumerate(others):
        if not gone[i]:
            kept.append(i)
            for each in beaten:
                gone[each] = True
    return kept


def _of_same_object(found: Detections, piece: Tensor) -> Iterator[tuple[int, int]]:
    """Pairs of indices of detections, the better one first, that are of different pieces and the same object.

    The centre of the smaller of two such boxes lies in the larger one: so each box is compared with those alone whose
    centres it holds, which are looked up by their x. There may be a hundred thousand.
    """
    boxes, areas = found.boxes, area(found.boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    across, order = centres[:, 0].contiguous().sort()
    first = torch.searchsorted(across, boxes[:, 0].contiguous())
    last = torch.searchsorted(across, boxes[:, 2].contiguous(), right=True)
    for i, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        inside = order[begin:end]
        near = (found.labels[inside] == found.labels[i]) & (piece[inside] != piece[i])
        near &= (centres[inside, 1] >= boxes[i, 1]) & (centres[inside, 1] <= boxes[i, 3])
        inside = inside[near]
        shared = covered(boxes[i], boxes[inside]) >= SAME_COVERED
        # a small object with a higher score than the large one around it is not its part
        ours, theirs = areas[i], areas[inside]
        shared &= torch.where(inside > i, theirs < SAME_SIZE * ours, ours < SAME_SIZE * theirs)
        for j in inside[shared | (iou(boxes[i], boxes[inside]) >= SAME_IOU)].tolist():
            yield (i, j) if i < j else (j, i)


def covered(a: Tensor, b: Tensor) -> Tensor:
    """The share of the smaller of two xyxy boxes that lies within the other: (..., 4), (..., 4) -> (...)."""
    inside = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)
    shared, smaller = area(inside), torch.minimum(area(a), area(b))
    return shared / smaller.clamp(min=torch.finfo(smaller.dtype).tiny)


def area(boxes: Tensor) -> Tensor:
    """Of xyxy boxes, 0 for those that are upside down: (..., 4) -> (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
