"""Videos with boxes, through PyAV."""

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from cond_detr.errors import InputError
from cond_detr.paths import is_file
from cond_detr.predict.video import OPTIONS, libav_says

CODECS = ("libx264", "mpeg4")
# Under which a film says what has made it
MADE_BY = "comment"
COMMAND = "cond-detr predict"


def is_made_here(path: Path) -> bool:
    """Whether a file is a film that :class:`VideoWriter` has written, and nobody has put sound to."""
    if not is_file(path):
        return False
    with contextlib.suppress(Exception):  # whatever cannot be read is not ours, nor without PyAV
        import av

        with av.open(os.fspath(path), options=OPTIONS) as container:
            return container.metadata.get(MADE_BY) == COMMAND and len(container.streams) == 1
    return False


class VideoWriter:
    """Writes a video without sound as MP4, with as many frames as it gets, each at its time. For a ``with`` statement.

    Args:
        file: where to, open for writing bytes.
        rate: frames a second on average.
        name: of the film in messages.
        pixel_aspect: width of a pixel over its height.

    Raises:
        InputError: when the block ends, if the rest of the film cannot be written.
    """

    # Of a second; what the times of frames are rounded to
    TICK = Fraction(1, 90_000)
    # Ticks between two frames, and of the last one: libav refuses more, or cuts it off without a word
    LONGEST = 2**31 - 1

    def __init__(
        self, file: IO[bytes], rate: Fraction, name: str = "the film", pixel_aspect: Fraction = Fraction(1)
    ) -> None:
        import av

        self.name = name
        self._container = av.open(file, "w", format="mp4")
        self._container.metadata[MADE_BY] = COMMAND
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream: Any = self._container.add_stream(codec, rate=rate)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.sample_aspect_ratio = pixel_aspect
        self._stream.codec_context.max_b_frames = 0  # so that the frame that is encoded last is the last one to see
        self._step = self._ticks(1 / rate)
        self._last: int | None = None
        self._duration = self._step
        self._complete = False
        self._size = (0, 0)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.complete()
        except InputError:
            if error is None:
                raise
        finally:
            self._close()

    def complete(self) -> None:
        """Writes the frames that the encoder has held back; none may follow.

        Raises:
            InputError: as :meth:`write`.
        """
        if self._last is not None and not self._complete:
            self._complete = True
            self._encode(None)

    def _close(self) -> None:
        import av

        try:
            self._container.close()
        except av.error.FFmpegError as error:
            raise self._unwritten(error) from None

    def _encode(self, frame: Any) -> None:
        import av

        try:
            for packet in self._stream.encode(frame):
                # MP4 has distances between frames, and needs the duration of the last
                packet.duration = self._duration
                self._container.mux(packet)
        except av.error.FFmpegError as error:
            self._complete = True
            raise self._unwritten(error) from None

    def _ticks(self, seconds: Fraction) -> int:
        return min(self.LONGEST, max(1, round(seconds / self.TICK)))

    def _unwritten(self, error: Exception) -> InputError:
        return InputError(f"{self.name} cannot be written with boxes: libav says {libav_says(error)!r}")

    def write(self, image: Image.Image, time: Fraction | None, duration: Fraction | None = None) -> None:
        """Appends a frame.

        Args:
            image: RGB; it gets the first one's size, to which a pixel is added where that is odd.
            time: of its appearance in seconds; by default, and where it is not after the last one's, the next.
            duration: in seconds, which counts for the last one; by default that of a frame on average.

        Raises:
            InputError: if the encoder, or the format, cannot have such a frame, such as one that is too large.
        """
        import av

        if self._last is None:
            self._size = image.size
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.codec_context.time_base = self.TICK
        if image.size != self._size:  # a film can become larger on its way
            image = image.resize(self._size)
        size = self._stream.width, self._stream.height
        if image.size != size:
            image = ImageOps.expand(image, (0, 0, size[0] - image.width, size[1] - image.height))
        frame: Any = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
        ticks = None if time is None else round(time / self.TICK)
        following = 0 if self._last is None else self._last + (self._step if ticks is None else 1)
        frame.pts = following if ticks is None else max(following, ticks)
        if self._last is not None and frame.pts - self._last > self.LONGEST:
            hours = (frame.pts - self._last) * self.TICK / 3600
            raise InputError(
                f"{self.name} cannot be written with boxes: MP4 cannot have a pause of {float(hours):.1f} hours"
            )
        self._last = frame.pts
        self._duration = self._ticks(duration) if duration else self._step
        frame.time_base = self.TICK
        self._encode(frame)
