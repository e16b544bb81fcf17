"""What is given on the command line: files, folders, glob patterns, addresses, videos and cameras."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from cond_detr.data.images import IMAGE_SUFFIXES, InputSize, open_image
from cond_detr.download import is_address, path_at
from cond_detr.errors import InputError
from cond_detr.paths import exists, is_file, is_folder
from cond_detr.predict.search import Picture
from cond_detr.predict.video import VIDEO_SUFFIXES, is_camera

Source = Path | str


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Lists the given files and addresses, what is in given folders, and the files that match patterns like ``a*.jpg``.

    Returns:
        Paths, and addresses as texts, each once.

    Raises:
        InputError: if a folder has neither image nor video, no file matches a pattern, there can be no such address or
            it is of a video, or a source is empty.
    """
    found: list[Source] = []
    for text in arguments:
        path = Path(text)
        if not text:
            raise InputError("a source is empty; expected an image, a video, a folder, a pattern or an address")
        if is_address(text):
            if path_at(text).suffix.lower() in VIDEO_SUFFIXES:
                raise InputError(f"video {text} is at an address; download it, and give the file")
            found.append(text)
        elif is_folder(path):
            found += inside(path)
        elif glob.has_magic(text) and not exists(path):
            found += matching(text)
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def inside(folder: Path) -> list[Path]:
    """Lists the images and videos in a folder, but hidden ones: macOS puts such a file beside each on other disks.

    Raises:
        InputError: if there are none.
    """
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    paths = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes and is_file(path))
    if not paths:
        raise InputError(f"folder {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) and no video")
    return paths


def matching(pattern: str) -> list[Path]:
    """Lists the files that match a glob pattern which the shell has not expanded.

    Raises:
        InputError: if there are none.
    """
    # pathlib refuses absolute patterns
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    if not paths:
        raise InputError(f"no file is called {pattern}")
    return paths


def name_of(source: Source) -> str:
    """What a result of a source is called: its file's name without suffix."""
    if isinstance(source, Path):
        return source.name if is_camera(source) else source.stem
    return path_at(source).stem or "image"


def readable(sources: Sequence[Source], size: InputSize) -> Iterator[Picture | InputError]:
    """Opens images one after the other; yields an error instead of each image that cannot be used.

    Args:
        sources: files and addresses of the images.
        size: of the network's input; images that are too narrow for it are refused.
    """
    for source in sources:
        try:
            image = open_image(source, size=size)
        except InputError as error:
            yield error
        else:
            yield Picture(source, image)
