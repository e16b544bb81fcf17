"""When the frames of a film appear, and whether they come at even times."""

from collections import Counter
from fractions import Fraction

# Of a second, to which distances between frames are rounded where they are counted
PRECISION = 10_000


class Clock:
    """Times since a film's first frame, which go on where the film's own begin again, as of two films in one file.

    Args:
        step: seconds from a frame to the next, where the film does not say.

    Attributes:
        ends: latest of the film's own times, with the frame's duration, in seconds.
        length: from the first frame to the end of the last, in seconds.
    """

    def __init__(self, step: Fraction) -> None:
        self.ends, self.length = Fraction(0), Fraction(0)
        self._step = step
        self._ahead: Fraction | None = None  # of the film's own times
        self._last = Fraction(0)
        self._before = 0  # frames until the film says a time
        self._distances: Counter[int] = Counter()

    def shows(self, time: Fraction | None, duration: Fraction | None = None) -> Fraction | None:
        """The time of the next frame.

        Args:
            time: its own, if the film says it; None: a step after the last one's.
            duration: in seconds, if the film says it.

        Returns:
            None as long as the film has not said any.
        """
        if time is None and self._ahead is None:
            self.ends = max(self.ends, duration or Fraction(0))
            self._before += 1
            return None
        if self._ahead is None:
            assert time is not None
            self._last = self._before * self._step
            self._ahead = self._last - time
        else:
            shown = self._last + self._step if time is None else time + self._ahead
            if shown < self._last:  # its own times begin again; equal ones are rounded
                assert time is not None
                shown = self._last + self._step
                self._ahead = shown - time
            self._distances[round((shown - self._last) * PRECISION)] += 1
            self._last = shown
        own = self._last - self._ahead
        self.ends = max(self.ends, own + (duration or 0))
        self.length = self._last + (duration or 0)
        return self._last

    @property
    def usual_step(self) -> Fraction:
        """The median of the distances between frames, in seconds; what was given if there are none."""
        below, half = 0, self._distances.total() / 2
        for distance in sorted(self._distances):
            below += self._distances[distance]
            if below >= half and distance:
                return Fraction(distance, PRECISION)
        return self._step
