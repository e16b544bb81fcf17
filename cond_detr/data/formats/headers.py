"""Sizes of images, from their headers, for formats that do not tell them."""

import warnings
from pathlib import Path

from cond_detr.data.images import ORIENTATION, SIDEWAYS, Size, image_file
from cond_detr.errors import InputError
from cond_detr.paths import is_file, why_no_file


def size_of(path: Path) -> Size:
    """(width, height) in pixels of an image as it is seen, turned as its EXIF tag says.

    Raises:
        InputError: if it is missing or no image.
    """
    if not is_file(path):
        raise InputError(f"image {path} {why_no_file(path)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file that can be read
            with image_file(path) as image:
                width, height = image.size
                return (height, width) if image.getexif().get(ORIENTATION, 1) in SIDEWAYS else (width, height)
    except Exception as error:  # Pillow raises anything at damaged files
        raise InputError(f"image {path} cannot be read: {error}") from None
