"""Bounds of masks in COCO's run-length encoding.

pycocotools computes them too, but in C that trusts what it is given: a height of 0 ends the process, and text that ends
within a number is read and written beyond its end.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cond_detr.errors import InputError

# Of a side, and bits of a length
LONGEST_SIDE = 10**6
MOST_BITS = 60
# A character holds five bits of a length, after the one that says whether it goes on
FIRST, BITS, GOES_ON, NEGATIVE = ord("0"), 5, 0x20, 0x10


def mask_bounds(mask: dict[str, Any]) -> list[float]:
    """The bounds of a mask, [left, top, width, height]; zeros if nothing is in it.

    Args:
        mask: ``size``, (height, width), and ``counts``: the lengths of runs outside and inside of the mask in turns,
            column by column, as a list, as text or as bytes.

    Raises:
        InputError: if it is no mask.
    """
    size, counts = mask.get("size"), mask.get("counts")
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(map(_is_length, size))
        or not 0 < min(size) <= max(size) <= LONGEST_SIDE
    ):
        raise InputError("a mask must have its height and width as size")
    height, width = size
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    lengths = _lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(map(_is_length, lengths)) or sum(lengths) > height * width:
        raise InputError("a mask must have lengths of runs as counts, which together are no longer than the mask")
    return _bounds(lengths, height)


def _is_length(value: Any) -> bool:
    return type(value) is int and value >= 0


def _lengths(text: str) -> list[int]:
    """The lengths in a text. From the fourth on, each is stored as the difference from the one before the last."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - FIRST
        if not 0 <= digit < 2 * GOES_ON or shift > MOST_BITS:
            raise InputError("a mask must have text of COCO's run-length encoding as counts")
        value |= (digit & (GOES_ON - 1)) << shift
        shift += BITS
        if digit & GOES_ON:
            continue
        if digit & NEGATIVE:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError("a mask must have text of COCO's run-length encoding as counts, and this is cut off")
    return lengths


def _bounds(lengths: Sequence[int], height: int) -> list[float]:
    ends = np.cumsum(np.array([*lengths, 0], np.int64))
    begins, ends = ends[:-1][::2], ends[1:][::2]
    inside = ends > begins
    first, last = begins[inside], ends[inside] - 1
    if not len(first):
        return [0.0, 0.0, 0.0, 0.0]
    left, right = first[0] // height, last[-1] // height
    top, bottom = (first % height).min(), (last % height).max()
    if (first // height != last // height).any():  # a run that goes on in the next column
        top, bottom = 0, height - 1
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]
