"""Videos and cameras: frames one after the other, through PyAV."""

import contextlib
import math
import os
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from PIL import Image

from cond_detr.errors import InputError, need, printable, say, shown
from cond_detr.paths import is_file, why_no_file
from cond_detr.predict.clock import Clock

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"}
CAMERAS = "/dev/video"
# Formats of libav that hold pictures themselves: playlists, which lead to other files, are none
CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts"
# Ticks after which a clock of MPEG begins again, and the largest step to a frame that can be across that
WRAP = 2**33
ACROSS = 600 * 90_000
# A clock that begins again is none that has come to its end, which libav would make 26 hours of
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "correct_ts_overflow": "0"}
# How a frame becomes upright, by the signs of its display matrix, which says where x and where y are to go
UPRIGHT: dict[tuple[int, ...], Image.Transpose | None] = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
SIDEWAYS = [turn for (a, *_), turn in UPRIGHT.items() if a == 0]
FRAMES_PER_SECOND = Fraction(25)
# Share of a file's frames, or of its seconds, that may be missing at its end: what files say of them is not exact
MISSING = Fraction(1, 20)
# Bytes behind the last frame that say nothing
PADDING = 1 << 16
# and bytes of a picture
LARGEST_PICTURE = 1 << 20
# In a second; libav's unit
MICROSECONDS = 1_000_000
# As Matroska files have the length of a stream, with hours
CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


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
        pixel_aspect: width of a pixel over its height, in upright frames; known from the first frame on.

    Raises:
        InputError: if it is missing, is no video, or PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        need("video", "av")
        import av

        self.name = f"{'camera' if is_camera(path) else 'video'} {printable(os.fspath(path))}"
        if not is_camera(path) and not is_file(path):
            raise InputError(f"{self.name} {why_no_file(Path(path))}")
        how: dict[str, Any] = {"options": OPTIONS}
        if is_camera(path):
            how = {"format": "v4l2"}
        try:
            self._container = av.open(os.fspath(path), **how)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{self.name} cannot be read: {libav_says(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{self.name} has no pictures, only sound")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.count: int | None = self._stream.frames or None
        self.rate: Fraction = self._stream.average_rate or FRAMES_PER_SECOND
        self.pixel_aspect = Fraction(1)
        # a film of a screen has frames when something moves; a Matroska file may have a rate all the same
        self._constant = self.rate == self._stream.base_rate == self._stream.guessed_rate
        self._may_pause = "matroska" in self._container.format.name
        # which has times of decoding alone; libav takes them for those of appearance
        self._is_avi = self._container.format.name == "avi"
        self._wraps = self._container.format.name in {"mpegts", "mpeg"}
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

        number, before = 0, None
        clock = Clock(1 / self.rate)
        try:
            for frame in self._frames():
                ticks = frame.dts if self._is_avi else frame.pts
                unit = Fraction(frame.time_base or self._stream.time_base)
                if self._wraps and ticks is not None:
                    before = ticks = ticks if before is None else nearest(ticks, before)
                duration = frame.duration * unit if frame.duration else None
                time = clock.shows(None if ticks is None else ticks * unit, duration)
                turn = turn_of(frame)
                if number == 0 and (aspect := self._stream.sample_aspect_ratio):
                    self.pixel_aspect = 1 / aspect if turn in SIDEWAYS else aspect
                image = frame.to_image()
                yield Frame(image if turn is None else image.transpose(turn), number, time, duration)
                number += 1
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"{self.name} cannot be read after frame {number}: {libav_says(error)}") from None
        if number == 0:
            raise InputError(f"{self.name} has no frame that can be read")
        self._check_whole(number, clock)

    def _frames(self) -> Iterator[Any]:
        """What libav decodes. Where another film follows in a stream of its own, a warning says so."""
        import av

        # bytes until the end of what was read of this film, of sound and data, and of other films
        seen, heard, others = 0, 0, 0
        streams = self._container.streams if self._wraps else [self._stream]
        try:
            # where a stream begins on the way, PyAV fails when it is done with those that it knows
            with contextlib.suppress(IndexError):
                for packet in self._container.demux(*streams):
                    end = (packet.pos or 0) + packet.size
                    if packet.stream.index == self._stream.index:  # the packet's own number is 0 at the end
                        yield from packet.decode()
                        seen = max(seen, end)
                    elif packet.stream.type == "video":
                        others = max(others, end)
                    else:
                        heard = max(heard, end)
        except av.error.FFmpegError:
            yield from self._stream.decode(None)  # what the decoder has held back
            if not self._wraps or not self._is_empty_behind(max(seen, heard)):
                raise
        size = self._container.size if self._wraps else 0
        unread = max(others - seen, size - max(seen, heard))
        if unread > max(MISSING * size, PADDING):
            empty = self._is_empty_behind(max(seen, heard, others))
            what = "empty: it was cut off, or space was reserved" if empty else "not of its film, and were not read"
            say(f"warning: the last {unread / size:.0%} of {self.name} are {what}")

    def _is_empty_behind(self, position: int) -> bool:
        """Whether the file ends with zeros from there on, as where a camera has reserved more than it needed.

        They begin behind the last picture, which nothing has pushed out.
        """
        begin = min(position + LARGEST_PICTURE, self._container.size - PADDING)
        if begin < position:
            return False
        with Path(self._container.name).open("rb") as file:
            file.seek(begin)
            return not any(piece.strip(b"\0") for piece in iter(lambda: file.read(LARGEST_PICTURE), b""))

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
        expected = round(clock.length * rate)
        if self.count is not None:
            # of a film that was shortened without being encoded again, the file counts those before it as well
            whole = expected - number <= _some_of(expected)
            at_the_end = 0 < self._seconds <= ends + max(3 / self.rate, MISSING * self._seconds)
            if self.count - number > _some_of(self.count) and not (whole and at_the_end):
                found = f"{number} of {self.count} frames could be read"
                if not (self._is_avi and at_the_end):  # which counts frames that are left out
                    raise InputError(f"{said}: {found}")
                say(f"warning: {self.name} pauses, or is damaged: {found}")
        elif self._seconds - ends > max(3 * ends / number, 3 / self.rate, MISSING * self._seconds):
            raise InputError(f"{said}: it ends after {float(ends):.1f} of {float(self._seconds):.1f} seconds")
        elif self._constant and expected - number > _some_of(expected):
            found = f"{number} of about {expected} frames could be read"
            if not self._may_pause:
                raise InputError(f"{self.name} pauses, or is damaged: {found}")
            say(f"warning: {self.name} pauses, or is damaged: {found}")

    def _announced_seconds(self) -> Fraction:
        """When it should end, as the file says; 0 if it does not."""
        if self._is_avi and self.count:  # without its end, libav guesses from its size
            return self.count / self.rate
        if self._stream.duration is not None and self._stream.time_base is not None:
            return ((self._stream.start_time or 0) + self._stream.duration) * self._stream.time_base
        if self._container.duration is None:
            return Fraction(0)
        # that of the longest stream, which may be the sound
        longest = Fraction(self._container.duration, MICROSECONDS)
        own = CLOCK.fullmatch(self._stream.metadata.get("DURATION", ""))
        if own and (seconds := 3600 * int(own[1]) + 60 * int(own[2]) + Fraction(own[3])) <= longest + 1:
            return seconds
        return longest if len(self._container.streams) == 1 else Fraction(0)


def nearest(ticks: int, before: int) -> int:
    """The time next to another one, of those that a clock of 33 bits shows alike; if none is near, in the same turn."""
    step = (ticks - before + WRAP // 2) % WRAP - WRAP // 2
    return before + step if abs(step) <= ACROSS else before // WRAP * WRAP + ticks


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


def libav_says(error: Exception) -> str:
    """Libav's words without its number and the file's name."""
    return str(getattr(error, "strerror", None) or error).partition(": '")[0]


def turn_of(frame: Any) -> Image.Transpose | None:
    """What makes a frame upright; None: nothing, as for an angle that is no right one."""
    import av

    matrix = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
        return None
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    most = max(map(abs, (a, b, c, d)))
    return UPRIGHT.get(tuple(0 if 10 * abs(part) <= most else int(math.copysign(1, part)) for part in (a, b, c, d)))
