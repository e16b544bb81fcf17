"""YOLO's format: ``data.yaml`` with folders and class names, and a text file of labels for each image."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar

import yaml

from cond_detr.data.formats.split import NAMES, Split, files_below, in_order
from cond_detr.data.formats.yolo_labels import CLASSES, Labelling, label_files, read_labels
from cond_detr.data.images import IMAGE_SUFFIXES
from cond_detr.errors import InputError, shown
from cond_detr.files import read_text
from cond_detr.paths import exists, is_file, is_folder

NAMED = "data.yaml"
# Entries of all tables, each counted as often as it is merged into another: a few lines can ask for any number
MOST_ENTRIES = 100_000
# Folders that somebody has divided images into
OF_A_SPLIT = re.compile(r"train|val|test", re.IGNORECASE)
# Keys of a data set's description that mean something here
READ = {"names", "nc", "path", "kpt_shape", *(name for names in NAMES.values() for name in names)}
MERGE = "tag:yaml.org,2002:merge"
# How YAML spells that there is nothing, or no such split
NOTHING = ("", "~", "null", "Null", "NULL", "false", "False", "FALSE")


class Table(dict[Any, Any]):
    """A table of a YAML file.

    Attributes:
        twice: keys that are there more than once, of which the last counts, with the line of that.
    """

    def __init__(self, entries: dict[Any, Any], twice: dict[str, int]) -> None:
        super().__init__(entries)
        self.twice = twice


class AsWritten(yaml.BaseLoader):
    """Values as they are written: YAML would read a class "no" as False, and "010" as 8. Merge keys are followed."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}
    entries = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Makes a table. Of merged entries with one key the first counts, if the table has none of its own."""
        self._count(len(node.value))
        pairs = [(key, value) for key, value in node.value if key.tag != MERGE]
        own = super().construct_mapping(yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark), deep)
        seen: set[str] = set()
        twice: dict[str, int] = {}
        for key, _ in pairs if len(own) < len(pairs) else []:
            if key.value in seen:
                twice[key.value] = key.start_mark.line + 1
            seen.add(key.value)
        table: dict[Any, Any] = {}
        for merged in (value for key, value in node.value if key.tag == MERGE):
            for source in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                if not isinstance(source, yaml.MappingNode):
                    problem = "expected a table, or a list of them, to merge"
                    raise yaml.constructor.ConstructorError(None, None, problem, source.start_mark)
                entries = self.construct_object(source, deep=True)
                self._count(1 + len(entries))
                for key, value in entries.items():
                    table.setdefault(key, value)
        return Table({**table, **own}, twice)

    def _count(self, entries: int) -> None:
        self.entries += entries
        if self.entries > MOST_ENTRIES:
            raise yaml.YAMLError(f"tables have more than {MOST_ENTRIES} entries, with what is merged into them")


def of_yolo(folder: Path, split: str) -> Split | None:
    """``DIR/data.yaml``, or another YAML file with names and a folder for training.

    Raises:
        InputError: if it says what cannot be.
    """
    for file in [folder / NAMED, *in_order(folder, "*.y*ml")]:
        if content := settings(file) if file.name == NAMED else settings_of_any(file):
            entry = next((content[name] for name in NAMES[split] if content.get(name)), None)
            if entry is None:
                return None
            images = list(dict.fromkeys(images_of(file, content, entry)))
            if not images:
                raise InputError(f"{file}: expected images in {shown(entry)}, found none")
            names = class_names(file, content["names"], content.get("nc"))
            alone = isinstance(entry, str) and not entry.endswith(".txt")
            return labelled(Labelling(file, names, keypoints_of(file, content.get("kpt_shape"))), images, alone)
    return None


def labelled(about: Labelling, images: Sequence[Path], alone: bool) -> Split:
    """A split of these images."""
    place = common_folder(images)
    return Split("YOLO", place, partial(read_labels, about, place, images), alone)


def of_label_studio(folder: Path) -> Split | None:
    """``DIR/images`` and ``DIR/labels`` with class names in ``DIR/classes.txt``, as Label Studio exports them."""
    if not is_file(folder / CLASSES) or not all(is_folder(folder / name) for name in ("images", "labels")):
        return None
    names = [line.strip() for line in read_text(folder / CLASSES, "list of classes").split("\n") if line.strip()]
    images = files_below(folder / "images", IMAGE_SUFFIXES)
    # folders of splits are somebody else's, and so are labels of another kind
    inside = {image.parent.relative_to(folder / "images").parts[:1] for image in images}
    divided = any(OF_A_SPLIT.match(name) for parts in inside for name in parts)
    if not names or divided or not any(map(is_file, label_files(images))):
        return None
    return labelled(Labelling(folder / CLASSES, names), images, alone=True)


def check_descriptions(folder: Path) -> None:
    """Checks all YAML files of a folder, where no data set is found.

    Raises:
        InputError: if one of them is no YAML.
    """
    for file in in_order(folder, "*.y*ml"):
        settings(file)


def settings_of_any(file: Path) -> dict[str, Any] | None:
    """As :func:`settings`, of a file that may be about something else, and then may be no YAML."""
    with contextlib.suppress(InputError):
        return settings(file)
    return None


def settings(file: Path) -> dict[str, Any] | None:
    """The content of a YAML file, if it is there and about a data set.

    Raises:
        InputError: if it is no YAML, or says something twice.
    """
    if not is_file(file):
        return None
    text = read_text(file, "data set's description")
    try:
        content = yaml.load(text, AsWritten)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise InputError(f"{file} is no YAML: {what_is_wrong(error)}") from None
    if not isinstance(content, dict):
        return None
    # tools write a split's name as its user has
    known = {key.lower() if isinstance(key, str) and key.lower() in READ else key: content[key] for key in content}
    known |= content  # where it is there as it should be, that counts
    if "names" not in known or "train" not in known:
        return None
    for table, keys in ((content, READ), (known["names"], None)):
        for key, line in table.twice.items() if isinstance(table, Table) else ():
            if keys is None or key in keys:
                raise InputError(f"{file} line {line}: {shown(key)} is there twice")
    return {key: None if key != "names" and value in NOTHING else value for key, value in known.items()}


def what_is_wrong(error: Exception) -> str:
    """What a YAML parser says, with the line that it says it of."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def class_names(file: Path, names: Any, count: Any = None) -> list[str]:
    """The class names of a list, or of a table from 0 on.

    Raises:
        InputError: if they are neither, or not as many as the file says.
    """
    if isinstance(names, dict) and all(isinstance(key, str) and key.isdecimal() and len(key) < 10 for key in names):
        numbered = {int(key): name for key, name in names.items()}
        if numbered.keys() == set(range(len(names))):
            names = [numbered[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"{file}: names must be a list of class names, or a table of them from 0 on, got {shown(names)}"
        )
    if count is not None and not is_number(count, len(names)):
        raise InputError(f"{file}: nc must be the number of names, {len(names)}, got {shown(count)}")
    return names


def keypoints_of(file: Path, shape: Any) -> int:
    """How many keypoints come behind a box; 0 if nothing is said.

    Files have been seen that say three numbers for each and have two, so that this number is not asked for.

    Raises:
        InputError: if it is no shape: without it, boxes with keypoints could be the corners of polygons.
    """
    if not shape:
        return 0
    points = shape[0] if isinstance(shape, list) and len(shape) == 2 else None
    if not isinstance(points, str) or not points.isdecimal() or len(points) > 4 or shape[1] not in ("2", "3"):
        raise InputError(f"{file}: kpt_shape must be a number of keypoints, and 2 or 3, got {shown(shape)}")
    return int(points)


def is_number(text: Any, number: int) -> bool:
    """Whether a text is a number."""
    with contextlib.suppress(TypeError, ValueError):
        return float(text) == number
    return False


def images_of(file: Path, content: dict[str, Any], entry: Any) -> Iterator[Path]:
    """The images of an entry: a folder, a text file with a path in each line, or a list of these.

    Raises:
        InputError: if it is neither.
    """
    for each in entry if isinstance(entry, list) else [entry]:
        if not isinstance(each, str):
            raise InputError(f"{file}: expected a folder, or a text file with images, got {shown(each)}")
        place = existing(file, content, each)
        if is_folder(place):
            yield from files_below(place, IMAGE_SUFFIXES)
        else:
            lines = read_text(place, "list of images").split("\n")
            yield from (existing(place, content, line.strip()) for line in lines if line.strip())


def existing(file: Path, content: dict[str, Any], name: str) -> Path:
    """A path that a file names: from its folder, or from "path" in the data set's description.

    Exports say "../train/images" of a folder beside the description, where they mean "train/images", and "data/a.jpg"
    in lists, where they mean "a.jpg". Links are not followed, as labels may lie beside what they lead to, or beside
    them.

    Raises:
        InputError: if there is nothing.
    """
    root = content.get("path")
    bases = [file.parent / root, file.parent, Path(root)] if isinstance(root, str) else [file.parent]
    candidates = (base / spelling for base in bases for spelling in spellings(name))
    for candidate in candidates:
        if exists(candidate):
            plain = Path(os.path.abspath(candidate))  # noqa: PTH100 - resolve() follows links
            return plain if exists(plain) and plain.samefile(candidate) else candidate.resolve()
    raise InputError(f"{file}: {shown(name)} does not exist in {file.parent}")


def spellings(name: str) -> list[str]:
    """What a path in a list or a description can mean, the likeliest first."""
    found = []
    for each in (name, name.replace("\\", "/")):
        parts = PurePath(each).parts
        inside = [part for part in parts if part != ".."]
        found += [*([str(PurePath(*inside))] if inside else []), each]
        if inside[:1] == ["data"] and inside[1:]:
            found.append(str(PurePath(*inside[1:])))
    return list(dict.fromkeys(found))


def common_folder(images: Sequence[Path]) -> Path:
    """The deepest folder that all images are in."""
    return Path(os.path.commonpath({image.parent for image in images}))
