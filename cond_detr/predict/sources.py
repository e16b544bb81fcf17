"""Images given on the command line: files, folders and glob patterns."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cond_detr.config import DataConfig
from cond_detr.data.images import IMAGE_SUFFIXES, InputSize, open_image, resized
from cond_detr.errors import InputError


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Lists the given files, the images in given folders, and the files that match given patterns such as ``a*.jpg``.

    Raises:
        InputError: if a folder has no image, or no file matches a pattern.
    """
    found = []
    for path in arguments:
        if not path.is_dir():
            found += matching(path) if glob.has_magic(str(path)) and not path.exists() else [path]
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not inside:
            raise InputError(f"folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found += inside
    return found


def matching(pattern: Path) -> list[Path]:
    """Lists the files that match a glob pattern which the shell has not expanded.

    Raises:
        InputError: if there are none.
    """
    # pathlib refuses absolute patterns
    paths = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    if not paths:
        raise InputError(f"no file is called {pattern}")
    return paths


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        path: its file.
        image: RGB.
    """

    path: Path
    image: Image.Image


def readable(paths: Sequence[Path], size: InputSize) -> Iterator[Picture | InputError]:
    """Opens images one after the other; yields an error instead of each image that cannot be used.

    Args:
        paths: files of the images.
        size: of the network's input; images that are too narrow for it are refused.
    """
    for path in paths:
        try:
            image = open_image(path, size=size)
        except InputError as error:
            yield error
        else:
            yield Picture(path, image)


def in_batches(
    pictures: Iterable[Picture | InputError], data: DataConfig, batch_size: int
) -> Iterator[list[Picture] | InputError]:
    """Groups consecutive images that have the same size after resizing, so that none is padded; passes errors on.

    Args:
        pictures: images and errors.
        data: image sizes.
        batch_size: largest number of images in a batch.
    """
    batch: list[Picture] = []
    for picture in pictures:
        if batch and (
            isinstance(picture, InputError)
            or len(batch) == batch_size
            or network_size(picture.image, data) != network_size(batch[0].image, data)
        ):
            yield batch
            batch = []
        if isinstance(picture, InputError):
            yield picture
        else:
            batch.append(picture)
    if batch:
        yield batch


def network_size(image: Image.Image, data: DataConfig) -> tuple[int, int]:
    """(width, height) in pixels of an image after resizing for the network."""
    return resized(image.size, data.image_size, data.max_size)
