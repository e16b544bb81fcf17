"""Where results of prediction go, and what they must not replace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cond_detr.predict.detections import Detections
from cond_detr.predict.drawing import draw_detections
from cond_detr.predict.sources import Source, name_of

# What a run writes under the same name each time
RESULTS = ("predictions.json", "coco_results.json")


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
    """The names of what is in an output folder and must not be overwritten.

    What an earlier run has left there may be; but not in a folder with sources, where photos lie beside it, and not
    in one that no run has written to.
    """
    paths = [each for each in sources if isinstance(each, Path)]
    with_sources = {place for path in paths for place in (path.parent.resolve(), path.resolve().parent)}
    earlier = any((folder / name).exists() for name in RESULTS) or any(folder.glob("*.jsonl"))
    if earlier and folder.resolve() not in with_sources:
        return set()
    return {path.name for path in folder.iterdir()}
