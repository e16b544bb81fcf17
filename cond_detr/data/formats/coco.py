"""COCO's format: in its own folders, in Roboflow's, and as one file for all images."""

import json
import shutil
from functools import partial
from pathlib import Path

from cond_detr.data.annotation_checks import read_annotations
from cond_detr.data.annotations import Annotations
from cond_detr.data.formats.split import NAMES, SPLITS, Split, in_order
from cond_detr.data.layouts import FolderLoader
from cond_detr.errors import InputError
from cond_detr.files import read_json, write_text
from cond_detr.paths import exists, is_file, is_folder, why_no_folder

ROBOFLOW = "_annotations.coco.json"
INSTANCES = "instances_"
# Of an annotation file, what is looked at to see whether it is one
BEGINNING = 1 << 20


def of_coco(folder: Path, split: str) -> Split | None:
    """``DIR/train`` with ``DIR/annotations/instances_train.json``, or COCO's own ``DIR/train2017``, ``DIR/images/...``.

    Raises:
        InputError: if there are annotations, but no images or none for this split.
    """
    place = folder / "annotations"
    # tools write a split's name as its user has; whoever reads a file says if it is none
    there = filter(exists, in_order(place, f"{INSTANCES}*.json"))
    files = {file.stem.lower().removeprefix(INSTANCES): file for file in there}
    found = {each: next((files[name] for name in names_of(each) if name in files), None) for each in SPLITS}
    file = found[split]
    if file is None:
        if any(found.values()):
            raise InputError(f"annotation file {place / f'{INSTANCES}{split}.json'} does not exist")
        return None
    name = file.stem.removeprefix(INSTANCES)
    for images in (folder / name, folder / "images" / name):
        if is_folder(images):
            return in_file(file, images, "COCO")
    raise InputError(f"image folder {folder / name} {why_no_folder(folder / name)}")


def names_of(split: str) -> list[str]:
    """What a split may be called in COCO's folders, COCO's own names last."""
    return [f"{name}{year}" for year in ("", "2017") for name in NAMES[split]]


def of_roboflow(folder: Path, split: str) -> Split | None:
    """``DIR/train/_annotations.coco.json`` beside the images, ``DIR/valid`` for validation."""
    if not exists(folder / "train" / ROBOFLOW):
        return None
    for name in NAMES[split]:
        if exists(folder / name / ROBOFLOW):
            return in_file(folder / name / ROBOFLOW, folder / name, "COCO, Roboflow's folders")
    return None


def in_file(file: Path, images: Path, name: str) -> Split:
    """A split with an annotation file of its own."""
    return Split(name, images, partial(read_annotations, file, others=of_other_splits(file)), annotation_file=file)


def of_other_splits(file: Path) -> list[Path]:
    """The annotation files that lie where those of a data set's other splits do, in COCO's folders or Roboflow's."""
    file = file.absolute()
    if file.name == ROBOFLOW:
        every = file.parent.parent.glob(f"*/{ROBOFLOW}")
    elif file.name.startswith(INSTANCES):
        every = file.parent.glob(f"{INSTANCES}*.json")
    else:
        return []
    return sorted(other for other in every if other != file and is_file(other))


def of_one_file(folder: Path) -> Split | None:
    """One annotation file for all images, in ``DIR`` or ``DIR/annotations``, and the images somewhere in ``DIR``.

    Raises:
        InputError: if there are several, or no folder has the images.
    """
    files = [file for place in (folder, folder / "annotations") for file in sorted(place.glob("*.json"))]
    files = [file for file in files if looks_like_coco(file)]
    if not files:
        return None
    if len(files) > 1:
        names = " and ".join(str(file.relative_to(folder)) for file in files[:2])
        raise InputError(f"{folder} has {len(files)} annotation files, such as {names}; expected one, or one a split")
    name = read_annotations(files[0]).images.names[0]
    places = [folder, folder / "images", folder / "JPEGImages", folder / "data", files[0].with_suffix("")]
    for within in (folder, folder / "images"):  # CVAT's are in images/default
        places += sorted(place for place in within.glob("*") if is_folder(place) and place not in places)
    found = next((place for place in places if FolderLoader(place).holds(name)), None)
    if found is None:
        raise InputError(f"image {name} of {files[0]} is in no folder of {folder}")
    return in_file(files[0], found, "COCO, one file")


def looks_like_coco(file: Path) -> bool:
    """Whether a JSON file begins as one with annotations may."""
    try:
        with file.open("rb") as opened:
            text = opened.read(BEGINNING)
        if len(text) < BEGINNING:
            content = json.loads(text)
            return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()
    except (OSError, ValueError, RecursionError):
        return False
    return any(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))


def write_coco(split: Split, annotations: Annotations, target: Path) -> None:
    """Writes the annotations of a split as a file in COCO's format; a file that is in it already is copied.

    Which categories only group others depends on all splits. If the copy alone would say something else, it gets no
    groups.

    Args:
        split: the split.
        annotations: what it has.
        target: the file.

    Raises:
        InputError: if the file cannot be read.
    """
    if split.annotation_file is None:
        write_text(target, json.dumps(annotations.to_coco()))
        return
    shutil.copyfile(split.annotation_file, target)
    if read_annotations(target).classes != annotations.classes:
        content = read_json(target, "annotation file")
        ids = set(annotations.classes.category_ids)
        used = [category for category in content["categories"] if int(category["id"]) in ids]  # which may be text
        content["categories"] = [{**each, "supercategory": "none"} for each in used]
        write_text(target, json.dumps(content))
