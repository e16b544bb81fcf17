"""Writing pictures. PNG files say who has made them, so that those of others are not replaced."""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

from PIL import PngImagePlugin

from cond_detr.errors import InputError
from cond_detr.files import replacing
from cond_detr.paths import is_file

# Pillow's names of formats, by suffix, where they are not the suffix
FORMATS = {".jpg": "JPEG", ".tif": "TIFF"}
# Under which a PNG file says what has made it
MADE_BY = "Software"


def write_picture(path: Path, picture: Any, command: str, **options: Any) -> None:
    """Writes a picture, completely or not at all.

    Args:
        path: the file, whose suffix says the format.
        picture: PIL image, or matplotlib figure.
        command: what makes it, such as "predict", which may replace it later.
        options: of the picture's own ``save`` or ``savefig``.

    Raises:
        OSError: if it cannot be written; a file at ``path`` is then left as it was.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        made_by = f"cond-detr {command}"
        options |= {"metadata": {MADE_BY: made_by}} if hasattr(picture, "savefig") else {"pnginfo": _made_by(made_by)}
    save = getattr(picture, "savefig", None) or picture.save
    with replacing(path) as file:
        save(file, format=FORMATS.get(suffix, suffix[1:].upper()), **options)


def is_made_by(path: Path, command: str) -> bool:
    """Whether a file is a PNG picture that :func:`write_picture` has made for a command."""
    if is_file(path):
        # whatever cannot be read is not ours; Pillow warns of large pictures, of which only the header is read
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PngImagePlugin.PngImageFile(path) as picture:  # Image.open() refuses very large ones
                return bool(picture.info.get(MADE_BY) == f"cond-detr {command}")
    return False


def check_replaceable(path: Path, command: str) -> None:
    """Checks that there is nothing at ``path``, or a picture that :func:`write_picture` has made for a command.

    Raises:
        InputError: if there is anything else.
    """
    if os.path.lexists(path) and not is_made_by(path, command):
        raise InputError(f"{path} is there already, and not of cond-detr {command}; choose another --output-dir")


def _made_by(name: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(MADE_BY, name)
    return info
