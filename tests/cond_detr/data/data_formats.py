"""Writes a data set in COCO's format in the other formats that are known."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

from cond_detr.data.formats.coco import ROBOFLOW

SPLITS = {"train": "train", "val": "valid"}


def content_of(coco: Path, split: str) -> dict[str, Any]:
    """The annotations of a split."""
    return json.loads((coco / "annotations" / f"instances_{split}.json").read_text())  # type: ignore[no-any-return]


def by_image(content: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image with its objects."""
    return [
        (image, [each for each in content["annotations"] if each["image_id"] == image["id"]])
        for image in content["images"]
    ]


def class_names(content: dict[str, Any]) -> dict[int, str]:
    return {each["id"]: each["name"] for each in content["categories"]}


def write_roboflow(coco: Path, target: Path) -> Path:
    """Images and annotations of a split in one folder."""
    for split, name in SPLITS.items():
        shutil.copytree(coco / split, target / name)
        shutil.copy(coco / "annotations" / f"instances_{split}.json", target / name / ROBOFLOW)
    return target


def write_yolo(coco: Path, target: Path) -> Path:
    """``data.yaml`` as Roboflow writes it, images and labels in folders of their own."""
    for split, name in SPLITS.items():
        content = content_of(coco, split)
        numbers = {category: i for i, category in enumerate(class_names(content))}
        shutil.copytree(coco / split, target / name / "images")
        (target / name / "labels").mkdir()
        for image, objects in by_image(content):
            lines = []
            for each in objects:
                left, top, width, height = each["bbox"]
                across, down = image["width"], image["height"]
                numbers_of = ((left + width / 2) / across, (top + height / 2) / down, width / across, height / down)
                lines.append(" ".join([str(numbers[each["category_id"]]), *(f"{number:.6f}" for number in numbers_of)]))
            (target / name / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    names = list(class_names(content).values())
    yaml = f"train: ../train/images\nval: ../valid/images\n\nnc: {len(names)}\nnames: {json.dumps(names)}\n"
    (target / "data.yaml").write_text(yaml)
    return target


def xml_of(image: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]) -> str:
    """An annotation file of Pascal VOC."""
    parts = [f"<filename>{escape(image['file_name'])}</filename>"]
    parts.append(f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>")
    for each in objects:
        left, top, width, height = each["bbox"]
        corners = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
        box = "".join(f"<{name}>{value!r}</{name}>" for name, value in corners.items())
        name = escape(names[each["category_id"]])
        parts.append(
            f"<object><name>{name}</name><difficult>{each['iscrowd']}</difficult><bndbox>{box}</bndbox></object>"
        )
    return f"<annotation>{''.join(parts)}</annotation>"


def write_voc(coco: Path, target: Path) -> Path:
    """``JPEGImages``, ``Annotations`` and lists."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (target / folder).mkdir(parents=True)
    for split in SPLITS:
        content = content_of(coco, split)
        listed = []
        for image, objects in by_image(content):
            name = f"{split}_{image['file_name']}"  # names are unique in one folder
            shutil.copy(coco / split / image["file_name"], target / "JPEGImages" / name)
            text = xml_of({**image, "file_name": name}, objects, class_names(content))
            (target / "Annotations" / name).with_suffix(".xml").write_text(text)
            listed.append(Path(name).stem)
        (target / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return target


def write_voc_folders(coco: Path, target: Path) -> Path:
    """Images and annotations of a split in one folder, as labelling tools leave them."""
    for split, name in SPLITS.items():
        content = content_of(coco, split)
        shutil.copytree(coco / split, target / name)
        for image, objects in by_image(content):
            path = (target / name / image["file_name"]).with_suffix(".xml")
            path.write_text(xml_of(image, objects, class_names(content)))
    return target


def write_one_file(coco: Path, target: Path) -> Path:
    """The training images alone, with one annotation file."""
    shutil.copytree(coco / "train", target / "photos")
    shutil.copy(coco / "annotations" / "instances_train.json", target / "labels.json")
    return target


WRITERS = {
    "COCO": lambda coco, target: Path(shutil.copytree(coco, target)),
    "COCO, Roboflow's folders": write_roboflow,
    "YOLO": write_yolo,
    "Pascal VOC": write_voc,
    "Pascal VOC in folders": write_voc_folders,
}


def one_image(folder: Path) -> Path:
    """A data set of YOLO with an image for each split."""
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        Image.new("RGB", (80, 60)).save(folder / "images" / split / "x.jpg")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    return folder


def voc(folder: Path, names: list[str], lists: Mapping[str, str]) -> Path:
    """As CVAT writes it."""
    for name in names:
        image, file = folder / "JPEGImages" / f"{name}.jpg", folder / "Annotations" / f"{name}.xml"
        image.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(image)
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        thing = f"<object><name>cat</name>{box}</object>"
        file.write_text(f"<annotation><filename>{name}.jpg</filename>{thing}</annotation>")
    for name, text in lists.items():
        file = folder / "ImageSets" / "Main" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder
