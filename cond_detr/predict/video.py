"""Videos and cameras: frames one after the other, and videos with boxes, through PyAV."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cond_detr.errors import InputError, need, printable, say, shown
from cond_detr.files import why_no_file
from cond_detr.predict.clock import Clock

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"}
CAMERAS = "/dev/video"
# Formats of libav that hold pictures themselves: playlists, which lead to other files, are none
CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts"
# By which libav is to know that a frame is upright; degrees counterclockwise
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
FRAMES_PER_SECOND = Fraction(25)
# Share of a file's frames, or of its seconds, that may be missing at its end: what files say of them is not exact
MISSING = Fraction(1, 20)
# In a second; libav's unit
MICROSECONDS = 1_000_000
CODECS = ("libx264", "mpeg4")


def is_video(source: object) -> bool:
    """Whether a path is one of a video or a camera, by its name."""
    if not isinstance(source, (str, os.PathLike)) or "://" in str(source):
        return False
    return is_camera(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def is_camera(source: object) -> bool:
    """Whether a path is one of a camera."""
    return str(source).startswith(CAMERAS)


class Frame(NamedTuple):
    """A picture of a video.

    Attributes:
        image: RGB, upright.
        number: 0 for the first.
        time: of its appearance in seconds since the beginning; None if the video does not say.
        duration: in seconds, likewise.
    """

    image: Image.Image
    number: int
    time: Fraction | None
    duration: Fraction | None = None

    @property
    def seconds(self) -> float | None:
        """Its time as JSON has it."""
        return None if self.time is None else round(float(self.time), 6)


class Video:
    """A video file, or a camera, which has no end. To be used in a ``with`` statement.

    Args:
        path: of a file, or ``/dev/video0`` and so on.

    Attributes:
        count: of frames, as the file says; None if it does not.
        rate: frames a second on average.

    Raises:
        InputError: if it is missing, is no video, or PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        need("video", "av")
        import av

        self.name = f"{'camera' if is_camera(path) else 'video'} {printable(os.fspath(path))}"
        if not is_camera(path) and not os.path.isfile(path):  # noqa: PTH113 - False also for what no file can be called
            raise InputError(f"{self.name} {why_no_file(Path(path))}")
        how: dict[str, Any] = {"options": {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}}
        if is_camera(path):
            how = {"format": "v4l2"}
        try:
            self._container = av.open(os.fspath(path), **how)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{self.name} cannot be read: {_reason(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{self.name} has no pictures, only sound")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.count: int | None = self._stream.frames or None
        self.rate: Fraction = self._stream.average_rate or FRAMES_PER_SECOND
        # a film of a screen has frames when something moves; a Matroska file may have a rate all the same
        self._constant = self.rate == self._stream.base_rate == self._stream.guessed_rate
        self._may_pause = "matroska" in self._container.format.name
        # which has times of decoding alone; libav takes them for those of appearance
        self._is_avi = self._container.format.name == "avi"
        self._seconds = self._announced_seconds()

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, one after the other.

        Raises:
            InputError: if the file is damaged from somewhere on, or frames are missing.
        """
        import av

        number = 0
        clock = Clock(1 / self.rate)
        try:
            for frame in self._container.decode(self._stream):
                ticks, unit = frame.dts if self._is_avi else frame.pts, Fraction(frame.time_base)
                duration = frame.duration * unit if frame.duration else None
                time = clock.shows(None if ticks is None else ticks * unit, duration)
                yield Frame(_upright(frame), number, time, duration)
                number += 1
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"{self.name} cannot be read after frame {number}: {_reason(error)}") from None
        if number == 0:
            raise InputError(f"{self.name} has no frame that can be read")
        self._check_whole(number, clock)

    def _check_whole(self, number: int, clock: Clock) -> None:
        """Checks that about as many frames came as the file says, or until about the time that it says it ends at.

        Libav takes the end of a file that was cut off for the end of the film, and goes on behind what is damaged.

        Raises:
            InputError: if some are missing.
        """
        said = f"{self.name} is damaged or was cut off"
        ends = clock.ends
        # by a rate that the film keeps: a telephone's film does so nearly, one of a screen does not
        rate = self.rate if self._constant else max(self.rate, 1 / clock.usual_step)
        expected = round((ends - clock.starts) * rate)
        if self.count is not None:
            # of a film that was shortened without being encoded again, the file counts those before it as well
            whole = expected - number <= _some_of(expected)
            at_the_end = 0 < self._seconds <= ends + max(3 / self.rate, MISSING * self._seconds)
            if self.count - number > _some_of(self.count) and not (whole and at_the_end):
                raise InputError(f"{said}: {number} of {self.count} frames could be read")
        elif self._seconds - ends > max(3 * ends / number, MISSING * self._seconds):
            raise InputError(f"{said}: it ends after {float(ends):.1f} of {float(self._seconds):.1f} seconds")
        elif self._constant and expected - number > _some_of(expected):
            found = f"{number} of about {expected} frames could be read"
            if not self._may_pause:
                raise InputError(f"{self.name} pauses, or is damaged: {found}")
            say(f"warning: {self.name} pauses, or is damaged: {found}")

    def _announced_seconds(self) -> Fraction:
        """When it should end, as the file says; 0 if it does not."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return ((self._stream.start_time or 0) + self._stream.duration) * self._stream.time_base
        # that of the longest stream, which may be the sound
        alone = len(self._container.streams) == 1 and self._container.duration is not None
        return Fraction(self._container.duration, MICROSECONDS) if alone else Fraction(0)


def _some_of(count: int) -> float:
    """How many of so many frames may be missing."""
    return max(2.0, float(MISSING * count))


def images_of(source: Any) -> Iterator[Any]:
    """The frames of a video or camera, or the items of anything else that has items.

    Raises:
        InputError: if a video cannot be read, or the argument has no items.
    """
    if is_video(source):
        with Video(source) as video:
            yield from (frame.image for frame in video)
        return
    try:
        items = iter(source)
    except TypeError:
        raise InputError(f"expected a video or several images, got {shown(source)}") from None
    yield from items


def _reason(error: Exception) -> str:
    """Libav's words without its number and the file's name."""
    return str(getattr(error, "strerror", None) or error).partition(": '")[0]


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    turn = TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


class VideoWriter:
    """Writes a video without sound as MP4, with as many frames as it gets, each at its time. For a ``with`` statement.

    Args:
        file: where to, open for writing bytes.
        rate: frames a second on average.
        name: of the film in messages.

    Raises:
        InputError: when the block ends, if the rest of the film cannot be written.
    """

    # Of a second; what the times of frames are rounded to
    TICK = Fraction(1, 90_000)
    # Ticks between two frames, and of the last one: libav refuses more, or cuts it off without a word
    LONGEST = 2**31 - 1

    def __init__(self, file: IO[bytes], rate: Fraction, name: str = "the film") -> None:
        import av

        self.name = name
        self._container = av.open(file, "w", format="mp4")
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream: Any = self._container.add_stream(codec, rate=rate)
        self._stream.pix_fmt = "yuv420p"
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
        return InputError(f"{self.name} cannot be written with boxes: libav says {_reason(error)!r}")

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
