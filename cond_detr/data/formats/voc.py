"""Pascal VOC's format: an XML file for each image."""

import codecs
import contextlib
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cond_detr.data.annotations import Annotations
from cond_detr.data.formats.headers import size_of
from cond_detr.data.formats.split import EVERY, NAMES, Objection, Split, checked, in_order
from cond_detr.data.images import IMAGE_SUFFIXES, Size
from cond_detr.errors import InputError, shown
from cond_detr.files import read_bytes, read_text
from cond_detr.paths import is_file, is_folder

DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z][\w.-]*)""")
# Python's names of what text is written in; it has others, which take hours for a file, or are none of text
ENCODINGS = re.compile(
    r"ascii|utf-(7|8|16|32).*|hp-roman8|iso8859-\d+|cp\d+|mac-\w+|koi8-\w|tis-620|ptcp154|kz1048"
    r"|gb\w+|big5\w*|shift_jis\w*|euc_\w+|johab|iso2022_\w+|hz"
)
# Those whose text can be taken for UTF-8, and then says something else
SEVEN_BITS = re.compile(r"iso2022_\w+|hz|utf-7")
# Those whose characters of two bytes can look like UTF-8's letters of two; these, however, go with ASCII's
TWO_BYTES = re.compile(r"gb\w+|big5\w*|shift_jis\w*|euc_\w+|cp9\d\d|johab")
AMONG_LETTERS = re.compile(r"[A-Za-z][\x80-\u07ff]|[\x80-\u07ff][A-Za-z]")
# An image's name in a list with what may be behind it: whether a class is in it, and other numbers
FLAGGED = [re.compile(r"(.+?)\s+(-1|0|1)"), re.compile(r"(\S+)(\s+-?[\d.]+)+")]
# Where lists of images are
LISTS = "ImageSets/Main"
# Lists of images that are not divided into those for training and those for validation
UNDIVIDED = ("trainval", "default")
# Bytes of an XML file: what an image's boxes never need
LONGEST = 1 << 24
# Of an annotation, one of which there always is
ABOUT_AN_IMAGE = ("filename", "size", "object")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FLAGS = dict.fromkeys(("", "0", "0.0", "false", "no", "unspecified"), 0)
FLAGS |= dict.fromkeys(("1", "1.0", "true", "yes"), 1)


def of_voc(folder: Path, split: str) -> Split | None:
    """``DIR/Annotations`` and ``DIR/JPEGImages`` with lists in ``ImageSets/Main``; or ``DIR/train`` with both.

    Where there are lists, the images may be in ``DIR/images``.

    Raises:
        InputError: if a list names what is not there.
    """
    annotations, images = folder / "Annotations", folder / "JPEGImages"
    if is_folder(folder / LISTS) and not is_folder(images):
        images = folder / "images"
    if is_folder(annotations) and is_folder(images):
        return _in_lists(folder, annotations, images, split)
    every = [file for name in EVERY for file in in_order(folder / name, "*.xml")]
    for name in NAMES[split]:
        if files := in_order(folder / name, "*.xml"):
            return _split(folder / name, files, every, (folder / name, folder / name), alone=True)
    return None


def voc_of_label_studio(folder: Path) -> Split | None:
    """``DIR/Annotations`` and ``DIR/images``, which are not divided."""
    annotations, images = folder / "Annotations", folder / "images"
    if is_folder(annotations) and is_folder(images):
        return _in_lists(folder, annotations, images, "train")
    return None


def _in_lists(folder: Path, annotations: Path, images: Path, split: str) -> Split | None:
    lists = {each.stem.lower(): each for each in in_order(folder / LISTS, "*.txt")}
    wanted = [name for name in NAMES[split] if name in lists]
    if split == "train" and not any(name in lists for name in (*NAMES["train"], *NAMES["val"])):
        wanted = [name for name in UNDIVIDED if name in lists]
    lying = in_order(annotations, "*.xml")
    folders, listed = (annotations, images), {}
    for name in (*EVERY, *UNDIVIDED):
        if name in lists:
            with contextlib.suppress(*[] if name in wanted[:1] else [InputError]):  # whoever asks for it hears of it
                listed[name] = _listed(folders, lists[name])
    every = [*lying, *(file for files in listed.values() for file in files if is_file(file))]
    if wanted:
        return _split(lists[wanted[0]], listed[wanted[0]], every, folders, alone=False)
    if split == "train" and lying and not lists:
        return _split(folder, lying, every, (annotations, images), alone=False)
    return None


def _listed(folders: tuple[Path, Path], file: Path) -> list[Path]:
    """The annotation files of the images in a list, whose names may have spaces, and flags behind them."""
    lines = [line.strip() for line in read_text(file, "list of images").split("\n") if line.strip()]
    return list(dict.fromkeys(_annotation_file(*folders, line) for line in lines))


def _annotation_file(annotations: Path, images: Path, line: str) -> Path:
    whole = annotations / f"{line}.xml"
    if is_file(whole) or any(is_file(image) for image in _called(images, line)):
        return whole
    names = [match[1] for pattern in FLAGGED if (match := pattern.fullmatch(line))]
    files = [annotations / f"{name}.xml" for name in names]
    return next((file for file in files if is_file(file)), files[0] if files else whole)


def _called(images: Path, name: str) -> list[Path]:
    """What an image of a name can be called."""
    suffixes = sorted(IMAGE_SUFFIXES)
    return [images / f"{name}{suffix}" for suffix in (*suffixes, *(each.upper() for each in suffixes))]


def _split(
    where: Path, files: Sequence[Path], every: Sequence[Path], folders: tuple[Path, Path], *, alone: bool
) -> Split:
    if not files:
        raise InputError(f"{where} (Pascal VOC): expected annotations, found none")
    return Split("Pascal VOC", folders[1], partial(read_files, where, files, every, folders), alone)


def read_files(
    where: Path, files: Sequence[Path], every: Sequence[Path], folders: tuple[Path, Path], object_to: Objection
) -> Annotations:
    """Reads XML files.

    Args:
        where: what messages call the data set.
        files: those of a split.
        every: those of all splits, whose classes are numbered in alphabetical order.
        folders: that of the annotations, and that of the images, with the same folders in it.
        object_to: takes sentences about objects that cannot be used. Those marked difficult are treated as crowds.

    Raises:
        InputError: if a file cannot be read or an image is missing, or ``object_to`` raises it.
    """
    roots = {file: parsed(file) for file in dict.fromkeys((*files, *every))}
    names = sorted({name for root in roots.values() for each in root.iterfind("object") if (name := name_of(each))})
    numbers = {name: i for i, name in enumerate(names)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, file in enumerate(files):
        check_about_an_image(roots[file], file)
        image = image_of(roots[file], file, folders)
        width, height = size_in(roots[file]) or size_of(image)
        entries.append({"file_name": image.relative_to(folders[1]).as_posix(), "width": width, "height": height})
        for number, each in enumerate(roots[file].iterfind("object"), 1):
            corners = [_number(each.findtext(f"bndbox/{corner}")) for corner in CORNERS]
            if not name_of(each) or None in corners:
                object_to(f"{file}: object {number} must have a name and a bndbox of {', '.join(CORNERS)}")
                continue
            difficult = (each.findtext("difficult") or "").strip().lower()
            if difficult not in FLAGS:
                object_to(f"{file}: object {number} has difficult {shown(difficult)}; expected 0 or 1")
                continue
            left, top, right, bottom = (value or 0.0 for value in corners)
            annotations.append(
                {
                    "id": f"{_inside(file, folders[0])} object {number}",
                    "image_id": i,
                    "category_id": numbers[name_of(each)],
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": FLAGS[difficult],
                }
            )
    return checked(f"{where} (Pascal VOC)", entries, annotations, names, object_to)


def name_of(each: ElementTree.Element) -> str:
    """The class name of an object."""
    return (each.findtext("name") or "").strip()


def size_in(root: ElementTree.Element) -> Size | None:
    """(width, height) as the file says; many tools leave them out, or write 0."""
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    return (int(width), int(height)) if width and height and min(width, height) >= 1 else None


def check_about_an_image(root: ElementTree.Element, file: Path) -> None:
    """Checks that XML is an annotation; of an image without objects it may have nothing more.

    Raises:
        InputError: if it is about something else.
    """
    if root.tag != "annotation" and all(root.find(name) is None for name in ABOUT_AN_IMAGE):
        raise InputError(
            f"annotation file {file} is about something else: <{root.tag}> has none of {', '.join(ABOUT_AN_IMAGE)}"
        )


class _WithoutEntities(ElementTree.TreeBuilder):
    """Refuses document types, in which entities are declared."""

    def doctype(self, *_: Any) -> None:
        raise ValueError("it declares a document type, which annotations do not need")


def parsed(file: Path) -> ElementTree.Element:
    """The root of an XML file; one that declares entities is refused.

    Raises:
        InputError: if it is missing, too long or no XML.
    """
    content = read_bytes(file, "annotation file")
    if len(content) > LONGEST:
        raise InputError(f"annotation file {file} has {len(content)} bytes, more than {LONGEST}")
    try:
        root = ElementTree.fromstring(decoded(content), ElementTree.XMLParser(target=_WithoutEntities()))
    except ElementTree.ParseError as error:
        raise InputError(f"annotation file {file} is no XML: {error}") from None
    except (ValueError, LookupError) as error:
        raise InputError(f"annotation file {file} cannot be used: {error}") from None
    return root


def decoded(content: bytes) -> str | bytes:
    """The text of an XML file; where its beginning says the encoding, or nothing does, the content as it is.

    It is UTF-16 if it begins so, and UTF-8 if it can be, whatever it declares: many tools declare another. But where
    it declares one of two bytes a character, and UTF-8 would have letters of two bytes alone, none beside one of
    ASCII's, it is what it declares. Else Python knows more encodings than the parser.

    Raises:
        LookupError: if the declared encoding is none that such files have.
        ValueError: if it is another one.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    declared = DECLARED.match(content)
    encoding = ""
    with contextlib.suppress(LookupError):
        encoding = codecs.lookup(declared[1].decode()).name if declared else ""
    for each in (encoding, "utf-8-sig") if SEVEN_BITS.fullmatch(encoding) else ("utf-8-sig",):
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(each)
            if "\0" not in text and not (TWO_BYTES.fullmatch(encoding) and _rather_is(encoding, text, content)):
                return text
    if not declared:
        return content
    if not ENCODINGS.fullmatch(encoding):
        raise LookupError(f"unknown encoding {shown(declared[1].decode())}")
    return content.decode(encoding)


def _rather_is(encoding: str, text: str, content: bytes) -> bool:
    """Whether content is in an encoding of two bytes a character, though it can be this text in UTF-8."""
    if not "\x7f" < max(text, default="") < "\u0800" or AMONG_LETTERS.search(text):
        return False
    with contextlib.suppress(UnicodeDecodeError):
        return bool(content.decode(encoding))
    return False


def image_of(root: ElementTree.Element, file: Path, folders: tuple[Path, Path]) -> Path:
    """The image that an annotation file is about: that it names, or that of its own name.

    Args:
        root: the file's content.
        file: the file.
        folders: that of the annotations and that of the images.

    Raises:
        InputError: if there is none.
    """
    images = folders[1] / _inside(file, folders[0]).parent
    named = (root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
    candidates = [folder / named for folder in (images, folders[1]) if named]
    candidates += _called(images, file.stem)
    found = next((path for path in candidates if is_file(path)), None)
    if found is None:
        raise InputError(f"{file}: image {shown(named or file.stem)} is not in {images}")
    return found


def _inside(file: Path, folder: Path) -> Path:
    """The path of a file in a folder; its name if it is in another one, as a list may say."""
    return file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)


def _number(text: str | None) -> float | None:
    """What a text says, if that is a number."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
