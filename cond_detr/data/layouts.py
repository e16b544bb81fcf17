"""Image folders of data sets: loading their images, and by which convention these are annotated."""

import io
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from cond_detr.data.annotations import Annotations, ImageRecord
from cond_detr.data.images import ORIENTATION, SIDEWAYS, Size, decode, image_file
from cond_detr.data.shards import Shards, tar_files
from cond_detr.errors import InputError
from cond_detr.paths import exists, is_file, why_no_file

# Images whose headers are looked at to find out a data set's convention
LOOKED_AT = 512


@dataclass(frozen=True)
class FolderLoader:
    """Loads images by file name from a folder, or from tar files in it; refuses names that lead out of it.

    Attributes:
        folder: the folder.
        turn: whether annotations are of images rotated as their EXIF tag says. An image whose annotated size says
            otherwise is taken as that says.
        shards: the tar files that hold the images, if they are in such.
    """

    folder: Path
    turn: bool = True
    shards: Shards | None = None

    def __call__(self, file_name: str, size: Size, at_least: Size | None = None) -> Image.Image:
        """Loads an image.

        Args:
            file_name: path inside the folder.
            size: (width, height) in pixels, as the annotations say.
            at_least: (width, height) in pixels of which it is needed, as of :func:`cond_detr.data.images.decode`.

        Raises:
            InputError: if the image cannot be read, is outside the folder, or has another size.
        """
        source, name = self.source_of(file_name)
        image, own_size = decode(source, self.turn, name, at_least)
        if own_size != size and own_size[::-1] == size:
            image, own_size = decode(source, not self.turn, name, at_least)
        if own_size != size:
            width, height = own_size
            raise InputError(f"{name} is {width}x{height} pixels, but its annotations say {size[0]}x{size[1]}")
        return image

    def source_of(self, file_name: str) -> tuple[Path | io.BytesIO, str]:
        """What :func:`cond_detr.data.images.decode` reads an image from, and what messages call it.

        Raises:
            InputError: if the name leads out of the folder, or the image is in a shard that cannot be read.
        """
        entry = self._entry_of(file_name)
        path = self.path_of(file_name)
        source = io.BytesIO(self.shards.read(entry)) if self.shards and entry is not None else path
        return source, f"image {path}"

    def bytes_of(self, file_name: str) -> bytes:
        """The content of the file of an image.

        Raises:
            InputError: as :meth:`source_of`, or if it cannot be read.
        """
        source, name = self.source_of(file_name)
        if not isinstance(source, Path):
            return source.getvalue()
        if not is_file(source):
            raise InputError(f"{name} {why_no_file(source)}")
        try:
            return source.read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}") from None

    def holds(self, file_name: str) -> bool:
        """Whether there is an image of that name, in the folder or in its shards."""
        return self._entry_of(file_name) is not None or is_file(self.path_of(file_name))

    def _entry_of(self, file_name: str) -> NDArray[Any] | None:
        found = map(self.shards.find, self._spellings(file_name)) if self.shards else ()
        return next((entry for entry in found if entry is not None), None)

    def path_of(self, file_name: str) -> Path:
        """Where an image is: also where its name was written on another system, or with other composed letters.

        Links in the folder are followed; the name itself must not lead out of it.

        Raises:
            InputError: if the name leads out of the folder.
        """
        for spelling in self._spellings(file_name):
            if exists(self.folder / spelling):
                return self.folder / spelling
        return self.folder / file_name

    def _spellings(self, file_name: str) -> list[str]:
        spellings = [file_name, file_name.replace("\\", "/")]
        spellings += [unicodedata.normalize(form, spellings[1]) for form in ("NFC", "NFD")]
        for spelling in spellings:
            relative = PurePosixPath(spelling)
            if relative.is_absolute():
                raise InputError(f"image {file_name} has an absolute path; expected one in its folder, {self.folder}")
            if ".." in relative.parts:
                raise InputError(f"image {file_name} is outside its folder {self.folder}")
        return list(dict.fromkeys(spellings))


def image_files(annotations: Annotations) -> list[str]:
    """The file names of the images, each once."""
    return list(dict.fromkeys(PurePosixPath(name).as_posix() for name in annotations.images.names))


def exif_convention(load: FolderLoader, records: Sequence[ImageRecord], wanted: str) -> tuple[bool, str]:
    """Whether annotations are of images rotated as their EXIF tags say, and a remark where that is not certain.

    The convention belongs to the data set. Images that are rotated sideways tell it by the size that they are
    annotated with; others, such as those that are upside down, cannot.

    Args:
        load: loader of the images.
        records: annotated images, of which at most :data:`LOOKED_AT` are looked at.
        wanted: "turn" or "ignore" if the user says it, else "auto".
    """
    if wanted != "auto":
        return wanted == "turn", ""
    told, silent = Counter[bool](), 0
    for record in records[:: -(-len(records) // LOOKED_AT)]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as where it is loaded
                with image_file(load.source_of(record.file_name)[0]) as image:
                    stored, orientation = image.size, image.getexif().get(ORIENTATION, 1)
        except Exception:  # whoever loads it says what is wrong with it
            continue
        if orientation in SIDEWAYS and stored[0] != stored[1] and record.size in (stored, stored[::-1]):
            told[record.size != stored] += 1
        elif orientation in range(2, 9):
            silent += 1
    turn = told[True] >= told[False]
    if silent and not told:
        return turn, (
            f"{silent} images are rotated by their EXIF tag and keep their size, so that nothing tells whether their "
            "boxes are of the rotated images, as is assumed; if not, set exif to ignore"
        )
    if told[True] and told[False]:
        return turn, f"of the images with an EXIF tag {told[True]} are annotated rotated and {told[False]} as stored"
    return turn, "" if turn else "images are annotated as stored, regardless of their EXIF tags"


def with_loader(annotations: Annotations, folder: Path, exif: str) -> tuple[Annotations, FolderLoader]:
    """What loads the images of a data set by its convention, and the annotations with a remark about that.

    Args:
        annotations: checked annotations.
        folder: the image folder.
        exif: the setting of that name.
    """
    load = FolderLoader(folder, shards=Shards.open(folder))
    if not load.shards and tar_files(folder) and not load.holds(annotations.images.names[0]):
        raise InputError(f"image folder {folder} holds tar files without an index; run cond-detr pack on the data set")
    turn, remark = exif_convention(load, annotations.records, exif)
    return annotations.noting(remark), replace(load, turn=turn)
