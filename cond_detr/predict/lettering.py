"""Text in pictures: fonts that have its characters, colours that stand out, places where labels do not overlap."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Told apart also by those who do not see red or green (M. Okabe and K. Ito, "Color Universal Design", 2008), on dark
# and on bright images; yellow first, which stands out most
PALETTE: tuple[Colour, ...] = (
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (213, 94, 0),
)
# What later rounds of the palette are mixed with, and how much of it
SHADES: tuple[tuple[Colour, float], ...] = ((WHITE, 0.0), (WHITE, 0.55), (BLACK, 0.45))


def class_colour(label: int) -> Colour:
    """An RGB colour for a class: the palette, then lighter, then darker ones, then all over again."""
    towards, share = SHADES[label // len(PALETTE) % len(SHADES)]
    r, g, b = (
        round(own * (1 - share) + other * share)
        for own, other in zip(PALETTE[label % len(PALETTE)], towards, strict=True)
    )
    return r, g, b


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever has more contrast to a background (relative luminance as in WCAG 2)."""
    r, g, b = ((value / 255) ** 2.2 for value in background)
    return BLACK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 else WHITE


@cache
def characters_of(path: str) -> frozenset[int]:
    """The code points that a font file has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@cache
def font_file(characters: frozenset[str]) -> str:
    """DejaVu Sans as installed by matplotlib, or if that lacks any of the characters the font that has most of them."""
    import matplotlib  # here, as it takes a while and only pictures want it
    from matplotlib.font_manager import fontManager

    default = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    wanted = set(map(ord, characters))
    if wanted <= characters_of(default):
        return default
    # "last resort" fonts have a picture of a code point for each
    others = sorted(entry.fname for entry in fontManager.ttflist if "lastresort" not in entry.fname.lower())
    return max([default, *others], key=lambda path: len(wanted & characters_of(path)))


@cache
def font_of(size: int, path: str) -> ImageFont.FreeTypeFont:
    """A font file in a size in pixels."""
    return ImageFont.truetype(path, size)


def font_for(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont:
    """The font that has most of the characters of some texts."""
    return font_of(size, font_file(frozenset("".join(texts)) - {" "}))


def legible(text: str, font: ImageFont.FreeTypeFont) -> str:
    """A text with the code points of characters that a font lacks, instead of empty squares."""
    known = characters_of(str(font.path))
    return "".join(c if ord(c) in known else f"<{ord(c):X}>" for c in text)


def in_figure(text: str) -> str:
    """A text as matplotlib shall write it: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def families(texts: Iterable[str]) -> list[str]:
    """The font families for a figure with some texts."""
    from matplotlib.font_manager import FontProperties

    path = font_file(frozenset("".join(texts)) - {" "})
    return ["DejaVu Sans", FontProperties(fname=path).get_name()]


def place_label(
    box: Box, size: tuple[float, float], taken: NDArray[np.float64], canvas: tuple[int, int]
) -> tuple[float, ...]:
    """Where the label of a box goes: at its corners, outside before inside, where fewest of the others are.

    Args:
        box: what is labelled, xyxy.
        size: width and height of the label.
        taken: (n, 4) places of other labels, xyxy.
        canvas: width and height of the picture, which no label leaves.
    """
    (left, top, right, bottom), (width, height) = box, size
    places = []
    for y in (top - height, bottom, top, bottom - height):
        for x in (left, right - width):
            inside_x = min(max(x, 0.0), max(0.0, canvas[0] - width))
            inside_y = min(max(y, 0.0), max(0.0, canvas[1] - height))
            places.append((inside_x, inside_y, inside_x + width, inside_y + height))
    each = np.array(places)[:, None]
    sides = np.minimum(each[..., 2:], taken[:, 2:]) - np.maximum(each[..., :2], taken[:, :2])
    # the first of those that cover least
    return places[int(sides.clip(min=0).prod(-1).sum(-1).argmin())]
