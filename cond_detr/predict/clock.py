"""When the frames of a film appear, and whether they come at even times."""

from collections import Counter
from fractions import Fraction

# Of a second, to which distances between frames are rounded where they are counted
PRECISION = 10_000


class Clock:
    """Times since a film's first frame, which go on where the film's own begin again, as of two films in one file.

    Where the second film's clock is later than the first one's, it is not told from a pause.

    Args:
        step: seconds from a frame to the next, where the film does not say.

    Attributes:
        ends: latest of the film's own times, with the frame's duration, in seconds.
    """

    def __init__(self, step: Fraction) -> None:
        self.ends = Fraction(0)
        # of its own times, the first and last of each stretch without a step back
        self._stretches: list[tuple[Fraction, Fraction]] = []
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
            self._stretches.append((time, time))
        else:
            shown = self._last + self._step if time is None else time + self._ahead
            if shown < self._last:  # its own times begin again; equal ones are rounded
                assert time is not None
                shown = self._last + self._step
                self._ahead = shown - time
                self._stretches.append((time, time))
            self._distances[round((shown - self._last) * PRECISION)] += 1
            self._last = shown
        own = self._last - self._ahead
        self.ends = max(self.ends, own + (duration or 0))
        self._stretches[-1] = self._stretches[-1][0], own + (duration or 0)
        return self._last

    @property
    def length(self) -> Fraction:
        """How much time the film's own times cover, in seconds; what they cover twice counts once."""
        covered, until = Fraction(0), None
        for first, last in sorted(self._stretches):
            begins = first if until is None else max(first, until)
            covered += max(last - begins, Fraction(0))
            until = last if until is None else max(last, until)
        return covered

    @property
    def usual_step(self) -> Fraction:
        """The median of the distances between frames, in seconds; what was given if there are none."""
        below, half = 0, self._distances.total() / 2
        for distance in sorted(self._distances):
            below += self._distances[distance]
            if below >= half and distance:
                return Fraction(distance, PRECISION)
        return self._step
