"""Searching images one after the other, in pieces and in batches, without holding more than are at work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

from PIL import Image

from cond_detr.classes import Classes
from cond_detr.data.images import ImageLike, InputSize, is_one, open_image
from cond_detr.download import is_address
from cond_detr.errors import InputError, nearest, shown
from cond_detr.predict.detections import Detections, check_threshold
from cond_detr.predict.tiles import OVERLAP, Place, Tiling, merged

# Classes that a message lists
MOST_NAMED = 8
# Detects objects in RGB images that have the same size for the network
Detect = Callable[[Sequence[Image.Image]], list[Detections]]


class SearchSettings(TypedDict, total=False):
    """Keywords of ``predict``; see :meth:`cond_detr.Detector.predict`."""

    classes: Sequence[str] | None
    batch_size: int
    tile: int | None
    tile_overlap: float


@dataclass(frozen=True)
class Search:
    """What is wanted of detections.

    Attributes:
        threshold: lowest score to report.
        classes: names of those to report; None: all.
        batch_size: images or tiles of equal size per forward pass, so that none is padded.
        tiling: how large images are cut; None: they are not.
    """

    threshold: float
    classes: tuple[str, ...] | None = None
    batch_size: int = 1
    tiling: Tiling | None = None

    @classmethod
    def of(cls, threshold: float, settings: SearchSettings) -> "Search":
        """Makes it of keywords.

        Raises:
            InputError: if there is no such keyword, or a text is given where names are wanted.
        """
        for name in settings:
            if name not in SearchSettings.__annotations__:
                raise InputError(
                    f"predict has no argument {shown(name)}; it has {', '.join(SearchSettings.__annotations__)}"
                )
        classes, tile = settings.get("classes"), settings.get("tile")
        if isinstance(classes, str):
            raise InputError(f"classes must be several names, such as [{classes!r}], got {shown(classes)}")
        if classes is not None and not isinstance(classes, Iterable):
            raise InputError(f"classes must be several names, got {shown(classes)}")
        if tile is None and "tile_overlap" in settings:
            raise InputError("tile_overlap is of tiles; give tile as well")
        tiling = None if tile is None else Tiling(tile, settings.get("tile_overlap", OVERLAP))
        return cls(threshold, None if classes is None else tuple(classes), settings.get("batch_size", 1), tiling)

    def check(self, classes: Classes, stride: int) -> None:
        """Checks all of it.

        Args:
            classes: those of the detector.
            stride: of its network, in pixels.

        Raises:
            InputError: if the threshold is not in [0, 1], a class or its name is unknown, or a number is none.
        """
        check_threshold(self.threshold)
        for name in self.classes or ():
            if name not in classes.names:
                meant = nearest(name, classes.names) if isinstance(name, str) else None
                some = ", ".join(classes.names[:MOST_NAMED]) + ", ..." * (len(classes.names) > MOST_NAMED)
                hint = f"did you mean {meant}?" if meant else f"it has {some}"
                raise InputError(f"the detector has no class {shown(name)}; {hint}")
        if not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise InputError(f"batch_size must be a whole number of at least 1, got {shown(self.batch_size)}")
        if self.tiling:
            self.tiling.check(stride)

    def kept(self, found: Detections) -> Detections:
        """Those of the wanted classes and scores."""
        found = found if self.classes is None else found.of_classes(*self.classes)
        return found.above(self.threshold)


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        source: what it was decoded from.
        image: RGB.
    """

    source: Any
    image: Image.Image


class _Piece(NamedTuple):
    picture: Picture
    place: Place
    image: Image.Image
    is_last: bool


def opened(sources: Iterable[ImageLike], size: InputSize) -> Iterator[Picture]:
    """Opens images one after the other; those that are too narrow for the network are refused.

    Raises:
        InputError: if an image cannot be read.
    """
    for source in sources:
        yield Picture(source, open_image(source, size=size))


def searched(
    pictures: Iterable[Picture | InputError], detect: Detect, size: InputSize, how: Search, most: int | None = None
) -> Iterator[tuple[Picture, Detections] | InputError]:
    """Detections of all scores and classes in images one after the other; passes errors on.

    Args:
        pictures: images and errors.
        detect: finds objects.
        size: of the network's input.
        how: the size of batches, and how images are cut.
        most: of the detections in each tile of an image that has several; None: all.
    """
    pieces = _all_pieces(pictures, how.tiling)
    found: list[tuple[Place, Detections]] = []
    for batch in _batches(pieces, size, how.batch_size):
        if isinstance(batch, InputError):
            yield batch
            continue
        for piece, detections in zip(batch, detect([piece.image for piece in batch]), strict=True):
            found.append((piece.place, detections))
            if piece.is_last:
                if len(found) > 1:
                    found = [(place, part[:most]) for place, part in found]
                places, parts = zip(*found, strict=True)
                whole = merged(parts, places, piece.picture.image.size, how.threshold)
                found = []
                yield piece.picture, replace(whole, image=_again(piece.picture))


def _again(picture: Picture) -> ImageLike:
    """What a picture can be drawn on: its source, or the image where that is an address or a video's frame."""
    source: ImageLike = picture.source
    return picture.image if not is_one(source) or (isinstance(source, str) and is_address(source)) else source


def _all_pieces(pictures: Iterable[Picture | InputError], tiling: Tiling | None) -> Iterator[_Piece | InputError]:
    for each in pictures:
        if isinstance(each, InputError):
            yield each
            continue
        try:
            places = tiling.places(each.image.size) if tiling else [(0, 0, *each.image.size)]
        except InputError as error:
            yield error
        else:
            yield from _pieces(each, places)


def _pieces(picture: Picture, places: Sequence[Place]) -> Iterator[_Piece]:
    image = picture.image
    whole = (0, 0, *image.size)
    for number, place in enumerate(places, 1):
        part = image if place == whole else image.crop(place)
        yield _Piece(picture, place, part, number == len(places))


def _batches(
    pieces: Iterable[_Piece | InputError], size: InputSize, batch_size: int
) -> Iterator[list[_Piece] | InputError]:
    """Groups consecutive pieces of equal size for the network; passes errors on."""
    batch: list[_Piece] = []
    for piece in pieces:
        if batch and (
            isinstance(piece, InputError)
            or len(batch) == batch_size
            or size.of(piece.image.size) != size.of(batch[0].image.size)
        ):
            yield batch
            batch = []
        if isinstance(piece, InputError):
            yield piece
        else:
            batch.append(piece)
    if batch:
        yield batch
