"""Where results of prediction go, and what they must not replace."""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any

from PIL import Image

from cond_detr.errors import InputError
from cond_detr.files import read_json
from cond_detr.paths import is_file
from cond_detr.pictures import is_made_by
from cond_detr.predict.detections import Detections
from cond_detr.predict.drawing import draw_detections
from cond_detr.predict.sources import Source, name_of
from cond_detr.predict.video_writer import is_made_here

PREDICTIONS, COCO_RESULTS = "predictions.json", "coco_results.json"
# How a file with the detections of a video begins, and how much of it must be read to see that
FIRST_FRAME = re.compile(
    rb'\{"picture": ("(?:[^"\\]|\\.)*\.mp4"), "frame": 0, "seconds": [^,"]+, '
    rb'"width": \d+, "height": \d+, "detections": \['
)
# and how one begins with what COCO's evaluation reads: others have more in an entry, or all in one line
COCO_BEGINNING = re.compile(
    rb'\[\]\n|\[\{"image_id": (?:-?\d+|"(?:[^"\\]|\\.)*"), "category_id": -?\d+, '
    rb'"bbox": \[[^{}\[\]]*\], "score": [^,{}]+\}(?:,|\])\n'
)
# What entries of predictions.json have, and detections in them
ENTRY = {"file": str, "picture": str, "width": int, "height": int, "detections": list}
DETECTION = {"class", "category_id", "score", "box"}
LONGEST_BEGINNING = 4096
# Bytes of a file's name, on all usual file systems
LONGEST_NAME = 255
# of them, those that no suffix and no number takes the place of
SURE = LONGEST_NAME - 20


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

    def paths(self, source: Source, *suffixes: str) -> list[Path]:
        """Files for the results of a source: of its name, with the same number if one of them is taken."""
        stem = name_of(source)
        for number in itertools.count(1):
            ending = f"-{number}" if number > 1 else ""
            chosen = [named(stem, f"{ending}{suffix}") for suffix in suffixes]
            if self.taken.isdisjoint(chosen):
                break
        self.taken.update(chosen)
        return [self.folder / name for name in chosen]

    def drawn(self, image: Image.Image, found: Detections) -> Image.Image:
        """An image with its detections."""
        return draw_detections(image, found, labels=self.labels)

    def check_lists(self) -> None:
        """Checks that predictions.json and coco_results.json, if they are there, are of an earlier run.

        Raises:
            InputError: if they are of somebody else.
        """
        ours = {PREDICTIONS: bool(pictures_written(self.folder))}
        ours[COCO_RESULTS] = ours[PREDICTIONS] and bool(begins(self.folder / COCO_RESULTS, COCO_BEGINNING))
        for name, is_ours in ours.items():
            path = self.folder / name
            if os.path.lexists(path) and not is_ours:
                raise InputError(f"{path} is not of an earlier run of predict; choose another --output-dir")


def named(stem: str, ending: str) -> str:
    """A file's name, of which the stem is cut if it would be too long."""
    room = LONGEST_NAME - len(ending)
    encoded = os.fsencode(stem)
    if len(encoded) > room:
        stem = encoded[:room].decode(errors="ignore")
    return stem + ending


def begins(path: Path, how: re.Pattern[bytes]) -> re.Match[bytes] | None:
    """How a file begins, if it is a file and begins like that."""
    if not is_file(path):
        return None
    try:
        with path.open("rb") as file:
            return how.match(file.read(LONGEST_BEGINNING))
    except OSError:
        return None


def to_be_kept(folder: Path, sources: Sequence[Source]) -> set[str]:
    """The names of what is in an output folder and must not be overwritten: all but what an earlier run has written.

    In a folder with sources that is kept as well, as it may be among them.
    """
    paths = [each for each in sources if isinstance(each, Path)]
    # not Path.resolve, which raises at links that lead to themselves
    with_sources = {place for path in paths for place in (realpath(path.parent), str(Path(realpath(path)).parent))}
    written = set() if realpath(folder) in with_sources else written_earlier(folder)
    return {path.name for path in folder.iterdir()} - written


def written_earlier(folder: Path) -> set[str]:
    """The names of the pictures and videos in a folder that an earlier run has written, as its results say.

    A picture or a film that does not say that it is ours, as somebody else has put it there since, is not among them.
    """
    names = {name for name in pictures_written(folder) if is_made_by(folder / name, "predict")}
    for lines in folder.glob("*.jsonl"):
        if beginning := begins(lines, FIRST_FRAME):
            with contextlib.suppress(ValueError):  # what looks like ours, but is no JSON
                film: str = json.loads(beginning[1])
                # very long names are cut, each for its own suffix
                if os.fsencode(Path(film).stem)[:SURE] == os.fsencode(lines.stem)[:SURE] and (
                    is_made_here(folder / film) or not os.path.lexists(folder / film)
                ):
                    names |= {lines.name, film}
    return names


def pictures_written(folder: Path) -> set[str]:
    """The names of the pictures of an earlier run, as its predictions.json says; none if that is somebody else's."""
    try:
        entries: Any = read_json(folder / PREDICTIONS, "predictions")
    except InputError:
        return set()
    if not isinstance(entries, list) or not all(map(_is_ours, entries)):
        return set()
    return {entry["picture"] for entry in entries}


def _is_ours(entry: Any) -> bool:
    """Whether an entry of a predictions.json has what :func:`~cond_detr.predict.results.detections_dict` writes."""
    if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != ENTRY:
        return False
    return all(isinstance(found, dict) and found.keys() == DETECTION for found in entry["detections"])
