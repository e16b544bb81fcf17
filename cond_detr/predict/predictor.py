"""The methods of what detects objects: of detectors, and of those in exported files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

from typing_extensions import Unpack

from cond_detr.classes import Classes
from cond_detr.data.images import ImageLike, InputSize, is_one, no_image
from cond_detr.errors import InputError, shown
from cond_detr.predict.detections import Detections
from cond_detr.predict.search import Detect, Search, SearchSettings, opened, searched
from cond_detr.predict.video import images_of, is_video


class Means(NamedTuple):
    """What a search is done with.

    Attributes:
        detect: finds objects of any score in images of equal size.
        size: of the network's input.
        classes: those that are found.
        threshold: lowest score to report by default.
    """

    detect: Detect
    size: InputSize
    classes: Classes
    threshold: float


class Predictor:
    """Detects objects in images and videos."""

    def means(self) -> Means:
        """What searches are done with."""
        raise NotImplementedError

    @overload  # a string is a sequence of strings, but not meant
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, threshold: float | None = None, **how: Unpack[SearchSettings]
    ) -> Detections: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], threshold: float | None = None, **how: Unpack[SearchSettings]
    ) -> list[Detections]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: float | None = None,
        **how: Unpack[SearchSettings],
    ) -> Detections | list[Detections]:
        """Detects objects in images of any size; batches are of equal sizes, so that padding never changes a result.

        Args:
            images: a path, https address, the bytes or file of an image, PIL image, uint8 array (H, W, 3) in the order
                RGB, (H, W, 4) or (H, W), or tensor (3, H, W), (4, H, W), (1, H, W) or (H, W), uint8 or floats in
                [0, 1]; or a sequence of these. They are rotated as their EXIF tags say.
            threshold: lowest score to report, in [0, 1]; by default the one at which F1 was highest in validation, or
                0.3 if the model was not trained here.
            how: ``classes``, names of those to report (default: all); ``batch_size``, consecutive images or tiles of
                equal size per forward pass (1); ``tile``, the side in pixels of tiles in which large images are
                searched as well, for small objects (None), and ``tile_overlap``, a fraction of it (0.2).

        Returns:
            The detections of each image, highest score first: a list for a sequence, else a single item.

        Raises:
            InputError: if an image cannot be read or is too small, an argument cannot have its value, or the weights
                are not fp32.
        """
        search = self._search(threshold, how)
        if is_one(images):
            return next(self._found([images], search))
        try:
            several = iter(images)
        except TypeError:
            raise no_image(images) from None
        return list(self._found(several, search))

    def stream(
        self,
        source: str | Path | Iterable[ImageLike],
        threshold: float | None = None,
        **how: Unpack[SearchSettings],
    ) -> Iterator[Detections]:
        """Detects objects in images one after the other, or in the frames of a video, without keeping them.

        Args:
            source: path of a video, a camera such as ``"/dev/video0"``, or images as for :meth:`predict`, which may be
                without end. Videos need the extra ``video``.
            threshold: as for :meth:`predict`.
            how: as for :meth:`predict`.

        Yields:
            The detections of each image. Those of a video's frame have it as ``image``, a PIL image.

        Raises:
            InputError: as :meth:`predict`; if a video cannot be read, or is damaged from somewhere on.
        """
        if not is_video(source) and is_one(source):
            raise InputError(f"stream takes a video or several images, got {shown(source)}; predict takes one image")
        return self._found(images_of(source), self._search(threshold, how))

    def _search(self, threshold: float | None, how: SearchSettings) -> Search:
        means = self.means()
        search = Search.of(means.threshold if threshold is None else threshold, how)
        search.check(means.classes, means.size.stride)
        return search

    def _found(self, images: Iterable[ImageLike], search: Search) -> Iterator[Detections]:
        means = self.means()
        for found in searched(opened(images, means.size), means.detect, means.size, search):
            if isinstance(found, InputError):
                raise found
            yield search.kept(found[1])
