"""Parts of an HTML page: tables, figures and pictures, all embedded."""

import base64
import html
import io
import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image

# What the longer side of a picture is scaled down to: sharp on a phone, and pages of photos stay small
LARGEST = 960
# Pixels for an inch of a figure: a text of 10 points has 11 pixels, and can be read on a phone
SMALLEST = 80


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table, which scrolls where it is too wide; columns of words are at the left, numbers at the right."""
    words = ["" if all(map(is_number, cells)) else ' class="words"' for _, *cells in zip(head, *rows, strict=True)]

    def line(tag: str, cells: Sequence[str], more: str = "") -> str:
        marked = (f"<{tag}{more}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, words, strict=True))
        return f"<tr>{''.join(marked)}</tr>"

    first, body = line("th", head, ' scope="col"'), "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{first}</thead><tbody>{body}</tbody></table></div>'


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, or a dash for none."""
    return cell == "-" or cell.replace(".", "", 1).isdecimal()


def embedded(image: Image.Image, caption: str) -> str:
    """HTML of an image, embedded as JPEG, with a caption."""
    file = io.BytesIO()
    image = image.convert("RGB")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    image.save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def gallery(figures: Sequence[str]) -> str:
    """HTML of pictures side by side."""
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def drawing(figure: Any, what: str) -> str:
    """HTML of a matplotlib figure, embedded as an SVG document of its own, so that no two parts of a page share an id.

    Args:
        figure: the figure.
        what: what it shows, for those who cannot see it.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that no font here has
        figure.savefig(file, format="svg")
    data = base64.b64encode(file.getvalue()).decode()
    width = f"min-width: {round(SMALLEST * figure.get_figwidth())}px"
    text = html.escape(what)
    return f'<div class="wide"><img alt="{text}" style="{width}" src="data:image/svg+xml;base64,{data}"></div>'


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.1f}"
