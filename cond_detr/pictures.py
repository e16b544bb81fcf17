"""Writing pictures, which say who has made them, so that those of others are not replaced."""

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
    if not path.is_symlink() and not path.exists():
        return
    try:
        with Image.open(path) as picture:
            if picture.info.get(MADE_BY) == OURS:
                return
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    raise InputError(f"{path} is there already, and not of cond-detr; choose another --output-dir")


def _made_by_us() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(MADE_BY, OURS)
    return info
