"""Writing pictures. PNG files say who has made them, so that those of others are not replaced."""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from cond_detr.errors import InputError
from cond_detr.files import replacing

# Pillow's names of formats, by suffix, where they are not the suffix
FORMATS = {".jpg": "JPEG", ".tif": "TIFF"}
# What a PNG file of ours says has made it, under PNG's own name for that
MADE_BY = "Software"
OURS = "cond-detr"


def write_picture(path: Path, picture: Any, **options: Any) -> None:
    """Writes a picture, completely or not at all.

    Args:
        path: the file, whose suffix says the format.
        picture: PIL image, or matplotlib figure.
        options: of the picture's own ``save`` or ``savefig``.

    Raises:
        OSError: if it cannot be written; a file at ``path`` is then left as it was.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        options |= {"metadata": {MADE_BY: OURS}} if hasattr(picture, "savefig") else {"pnginfo": _made_by_us()}
    save = getattr(picture, "savefig", None) or picture.save
    with replacing(path) as file:
        save(file, format=FORMATS.get(suffix, suffix[1:].upper()), **options)


def check_replaceable(path: Path) -> None:
    """Checks that there is nothing at ``path``, or a picture that :func:`write_picture` has made.

    Raises:
        InputError: if there is anything else.
    """
    if not os.path.lexists(path):
        return
    if os.path.isfile(path):  # noqa: PTH113 - a pipe would wait for its writer
        # whatever cannot be read is not ours, nor is a picture so large that Pillow warns of it
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path) as picture:
                if picture.info.get(MADE_BY) == OURS:
                    return
    raise InputError(f"{path} is there already, and not of cond-detr; choose another --output-dir")


def _made_by_us() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(MADE_BY, OURS)
    return info
