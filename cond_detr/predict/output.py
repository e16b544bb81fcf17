"""Where results of prediction go, and what they must not replace."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cond_detr.predict.detections import Detections
from cond_detr.predict.drawing import draw_detections
from cond_detr.predict.sources import Source, name_of

PREDICTIONS = "predictions.json"
# How a file with the detections of a video begins
FRAME = b'{"frame":'


@dataclass
class Output:
    """Where results go.

    Attributes:
        folder: the output folder.
        taken: names of files in it that must not be overwritten.
        labels: whether pictures have names and scores.
    """

    folder: Path
    taken: set[str]
    labels: bool

    @classmethod
    def of(cls, folder: Path, sources: Sequence[Source], *, labels: bool) -> "Output":
        """An output folder, which exists, for the results of some sources."""
        return cls(folder, to_be_kept(folder, sources), labels)

    def path(self, source: Source, suffix: str) -> Path:
        """A file for a result of a source: of its name, with a number if that is taken."""
        name = name_of(source)
        chosen, i = f"{name}{suffix}", 2
        while chosen in self.taken:
            chosen, i = f"{name}-{i}{suffix}", i + 1
        self.taken.add(chosen)
        return self.folder / chosen

    def drawn(self, image: Image.Image, found: Detections) -> Image.Image:
        """An image with its detections."""
        return draw_detections(image, found, labels=self.labels)


def to_be_kept(folder: Path, sources: Sequence[Source]) -> set[str]:
    """The names of what is in an output folder and must not be overwritten: all but what an earlier run has written.

    In a folder with sources that is kept as well, as it may be among them.
    """
    paths = [each for each in sources if isinstance(each, Path)]
    with_sources = {place for path in paths for place in (path.parent.resolve(), path.resolve().parent)}
    written = set() if folder.resolve() in with_sources else written_earlier(folder)
    return {path.name for path in folder.iterdir()} - written


def written_earlier(folder: Path) -> set[str]:
    """The names of the pictures and videos in a folder that an earlier run has written, as its results say."""
    names: set[str] = set()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # not what a run has written
        names |= {str(entry["picture"]) for entry in json.loads((folder / PREDICTIONS).read_bytes())}
    for lines in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError), lines.open("rb") as file:
            if file.read(len(FRAME)) == FRAME:
                names |= {lines.name, lines.with_suffix(".mp4").name}
    return names
