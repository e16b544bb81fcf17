"""YOLO's format: ``data.yaml`` with folders and class names, and a text file of labels for each image."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar

import yaml

from cond_detr.data.annotations import Annotations
from cond_detr.data.formats.headers import size_of
from cond_detr.data.formats.split import NAMES, Objection, Split, checked, in_order
from cond_detr.data.images import IMAGE_SUFFIXES
from cond_detr.errors import InputError, shown
from cond_detr.files import read_text
from cond_detr.paths import exists, is_file, is_folder

NAMED = "data.yaml"
# Decimals of a box in pixels, as COCO has them; six digits of a fraction are exact to that
DIGITS = 2
# Fractions of the image size beyond this are pixels, or something else
LARGEST = 2.0
# Entries of all tables, each counted as often as it is merged into another: a few lines can ask for any number
MOST_ENTRIES = 100_000
# Keys of a data set's description that mean something here
READ = {"names", "nc", "path", *(name for names in NAMES.values() for name in names)}
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
            place = common_folder(images)
            read = partial(read_labels, file, class_names(file, content["names"], content.get("nc")), place, images)
            return Split("YOLO", place, read, alone=isinstance(entry, str) and not entry.endswith(".txt"))
    return None


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
    if not isinstance(content, dict) or "names" not in content or "train" not in content:
        return None
    for table, keys in ((content, READ), (content["names"], None)):
        for key, line in table.twice.items() if isinstance(table, Table) else ():
            if keys is None or key in keys:
                raise InputError(f"{file} line {line}: {shown(key)} is there twice")
    return {key: None if key != "names" and value in NOTHING else value for key, value in content.items()}


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
            yield from (path for path in in_order(place, "**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
        else:
            lines = read_text(place, "list of images").split("\n")
            yield from (existing(place, content, line.strip()) for line in lines if line.strip())


def existing(file: Path, content: dict[str, Any], name: str) -> Path:
    """A path that a file names: from its folder, or from "path" in the data set's description.

    Exports say "../train/images" of a folder beside the description; they mean "train/images". Links are not followed,
    as labels may lie beside what they lead to, or beside them.

    Raises:
        InputError: if there is nothing.
    """
    root = content.get("path")
    bases = [file.parent / root, Path(root)] if isinstance(root, str) else []
    inside = PurePath(*(part for part in PurePath(name).parts if part != ".."))
    candidates = [base / spelling for base in [*bases, file.parent] for spelling in (name, inside)]
    for candidate in candidates:
        if exists(candidate):
            plain = Path(os.path.abspath(candidate))  # noqa: PTH100 - resolve() follows links
            return plain if exists(plain) and plain.samefile(candidate) else candidate.resolve()
    raise InputError(f"{file}: {shown(name)} does not exist in {file.parent}")


def common_folder(images: Sequence[Path]) -> Path:
    """The deepest folder that all images are in."""
    return Path(os.path.commonpath({image.parent for image in images}))


def label_file(image: Path) -> Path:
    """Where the labels of an image are: in ``labels`` where it is in ``images``, or beside it."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts)


def label_files(images: Sequence[Path]) -> list[Path]:
    """Where the labels of images are: beside them as they are named; or beside what their folder, or they, lead to.

    One of these holds for all images of a folder: an image without labels is not to get those of another data set.
    """
    places: Sequence[Callable[[Path], Path]] = (
        label_file,
        lambda image: label_file(image.parent.resolve() / image.name),
        lambda image: label_file(image.resolve()),
    )
    folders: dict[Path, list[Path]] = {}
    for image in images:
        folders.setdefault(image.parent, []).append(image)
    place_of = {
        folder: next((place for place in places if any(exists(place(image)) for image in inside)), label_file)
        for folder, inside in folders.items()
    }
    return [place_of[image.parent](image) for image in images]


def read_labels(
    file: Path, names: list[str], folder: Path, images: Sequence[Path], object_to: Objection
) -> Annotations:
    """Reads the labels of images; those without a file have no objects.

    Raises:
        InputError: if an image or a file cannot be read, or ``object_to`` raises it.
    """
    entries, annotations = [], []
    for i, (image, path) in enumerate(zip(images, label_files(images), strict=True)):
        width, height = size_of(image)
        name = image.relative_to(folder).as_posix()
        entries.append({"file_name": name, "width": width, "height": height})
        if not exists(path):
            continue
        for number, line in enumerate(read_text(path, "labels").split("\n"), 1):
            if not line.strip():
                continue
            where = f"{os.path.relpath(path, file.parent)} line {number}"
            found = parsed(line, len(names))
            if isinstance(found, str):
                object_to(f"{file}: {where} {found}")
                continue
            label, box = found
            scaled = [round(v * side, DIGITS) for v, side in zip(box, (width, height) * 2, strict=True)]
            annotations.append({"id": where, "image_id": i, "category_id": label, "bbox": scaled})
    return checked(f"{file} (YOLO)", entries, annotations, names, object_to)


def parsed(line: str, classes: int) -> tuple[int, tuple[float, float, float, float]] | str:
    """Class and box (left, top, width, height in fractions) of a line, or what is wrong with it.

    After the class come centre, width and height; or the corners of a polygon or of a turned box.
    """
    words = line.split()
    try:
        label, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        return f"must be a class and numbers, got {shown(line.strip())}"
    if not 0 <= label < classes:
        return f"has class {label}, but there are {classes}, from 0 on"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"must have 4 numbers after the class, or the corners of a polygon, got {len(values)}"
    if not all(math.isfinite(value) and abs(value) <= LARGEST for value in values):
        return f"must have fractions of the image size, got {shown(line.strip())}"
    if len(values) == 4:
        x, y, width, height = values
        return label, (x - width / 2, y - height / 2, width, height)
    across, down = values[::2], values[1::2]
    return label, (min(across), min(down), max(across) - min(across), max(down) - min(down))
