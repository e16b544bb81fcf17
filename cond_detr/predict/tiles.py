"""Large images in overlapping tiles, so that small objects are seen at their own size.

An image is searched as a whole, for its large objects, and in each tile. Objects that a tile cuts are left to the tile
beside it, or to the whole image; what two pieces found is kept once.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from cond_detr.boxes import iou
from cond_detr.errors import InputError, shown
from cond_detr.predict.detections import MOST_MEASURED, Detections

# Of neighbouring tiles, as a fraction of their side
OVERLAP = 0.2
# Of two boxes of a class from different pieces: from here on they are of the same object
SAME_IOU = 0.5
# Share of the smaller box, if it lies within the other
SAME_COVERED = 0.8
# A box that ends so close to a tile's inner edge, in fractions of its side, is cut
AT_EDGE = 0.01
# Pieces of an image: with more, an overlap or a side is a mistake
MOST_PIECES = 10_000
# Detections that are compared with the better ones at once
BLOCK = 1000

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


def _found_once(found: Detections, piece: torch.Tensor, threshold: float) -> torch.Tensor:
    """Indices of detections, best first, without those that a better one of another piece is of the same object."""
    kept = torch.zeros(0, dtype=torch.int64)
    for block in torch.arange(len(found)).split(BLOCK):
        if len(kept) >= MOST_MEASURED and found.scores[block[0]] < threshold:
            break
        new = block[~_of_same_object(found, piece, block, kept).any(1)]
        among, chosen = _of_same_object(found, piece, new, new).numpy(), np.ones(len(new), dtype=bool)
        for i in range(len(new)):
            if chosen[i]:
                chosen[i + 1 :] &= ~among[i, i + 1 :]
        kept = torch.cat([kept, new[torch.from_numpy(chosen)]])
    return kept


def _of_same_object(found: Detections, piece: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(rows, columns) bool: which pairs of detections, given by index, are of different pieces and the same object."""
    one, other = found.boxes[rows][:, None], found.boxes[columns][None]
    same = (iou(one, other) >= SAME_IOU) | (covered(one, other) >= SAME_COVERED)
    same &= found.labels[rows][:, None] == found.labels[columns][None]
    return same & (piece[rows][:, None] != piece[columns][None])


def covered(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The share of the smaller of two xyxy boxes that lies within the other: (..., 4), (..., 4) -> (...)."""
    inside = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)
    shared, smaller = area(inside), torch.minimum(area(a), area(b))
    return shared / smaller.clamp(min=torch.finfo(smaller.dtype).tiny)


def area(boxes: torch.Tensor) -> torch.Tensor:
    """Of xyxy boxes, 0 for those that are upside down: (..., 4) -> (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
