"""Data sets as labelling tools and their users leave them: whose links, lists and names are not those of a textbook."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cond_detr import InputError
from cond_detr.check_data.findings import check_split
from cond_detr.config import DataConfig
from cond_detr.data.annotations import Annotations
from cond_detr.data.formats import find_split
from cond_detr.data.layouts import with_loader
from tests.cond_detr.data.data_formats import voc
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
FRACTION = DataConfig.val_fraction
LABEL = "0 .5 .5 .2 .2\n"


def read(folder: Path, split: str = "train", fraction: float = FRACTION) -> Annotations:
    """The annotations, all of whose images can be loaded."""
    found = find_split(folder, split, fraction)
    annotations, load = with_loader(found.annotations(), found.folder, "auto")
    for record in annotations.records:
        load(record.file_name, record.size)
    return annotations


def labelled(folder: Path, names: str = "x", split: str = "train") -> None:
    """Images and labels in a folder of YOLO's."""
    for name in names:
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(folder / split / "images" / f"{name}.jpg")
        (folder / split / "labels" / f"{name}.txt").write_text(LABEL)


def described(folder: Path, text: str = "") -> Path:
    """With an image for validation."""
    labelled(folder, "d", "val")
    (folder / "data.yaml").write_text(f"train: train/images\nval: val/images\nnames: [cat]\n{text}")
    return folder


@pytest.mark.parametrize(("points", "each"), [(4, 2), (4, 3), (17, 3)])
def test_boxes_of_poses(points: int, each: int, tmp_path: Path) -> None:
    """An even number of numbers could be the corners of a polygon."""
    folder = described(tmp_path, f"kpt_shape: [{points}, {each}]\n")
    labelled(folder)
    file = folder / "train/labels/x.txt"
    file.write_text("0 .5 .5 .1 .1" + " .45" * points * each + "\n0 .5 .5 .2 .2\n")
    assert read(folder).objects.boxes.tolist() == [[36, 27, 8, 6], [32, 24, 16, 12]]


@pytest.mark.parametrize("shape", ["[17]", "[a, 2]", "17", "[17, 4]", "{a: 1}", "[[17], 3]"])
def test_numbers_of_keypoints_that_are_none(shape: str, tmp_path: Path) -> None:
    """Without one, boxes and their keypoints could be taken for polygons."""
    folder = described(tmp_path, f"kpt_shape: {shape}\n")
    labelled(folder)
    with pytest.raises(InputError, match=r"kpt_shape must be a number of keypoints, and 2 or 3, got "):
        read(folder)


@pytest.mark.parametrize("shape", ["[]", "null", "[0, 3]"])
def test_no_keypoints(shape: str, tmp_path: Path) -> None:
    folder = described(tmp_path, f"kpt_shape: {shape}\n")
    labelled(folder)
    (folder / "train/labels/x.txt").write_text("0 .1 .1 .2 .1 .2 .2\n")
    assert read(folder).objects.boxes.tolist() == [[8, 6, 8, 6]]


def test_labels_of_images_and_of_links_in_one_folder(tmp_path: Path) -> None:
    folder = described(tmp_path / "data")
    labelled(folder, "a")
    labelled(tmp_path / "other", "bc")
    for name in "bc":
        (folder / f"train/images/{name}.jpg").symlink_to(tmp_path / f"other/train/images/{name}.jpg")
    annotations = read(folder)
    assert annotations.counts.tolist() == [1, 1, 1]
    assert annotations.notes[0].startswith("2 images are links and have labels of elsewhere, such as b.jpg those in ")


def test_folders_that_are_links(tmp_path: Path) -> None:
    folder = described(tmp_path / "data")
    labelled(folder, "a")
    labelled(tmp_path / "other", "bc")
    (folder / "train/images/part").symlink_to(tmp_path / "other/train/images")
    (folder / "train/images/circle").symlink_to(folder / "train")
    annotations = read(folder)
    assert list(annotations.images.names) == ["a.jpg", "part/b.jpg", "part/c.jpg"]
    assert annotations.counts.tolist() == [1, 1, 1]


def test_labels_beside_the_images_of_a_folder_in_one_called_images(tmp_path: Path) -> None:
    folder = tmp_path / "images/set"
    folder.mkdir(parents=True)
    (folder / "data.yaml").write_text("train: train\nval: train\nnames: [cat]\n")
    (folder / "train").mkdir()
    Image.new("RGB", (80, 60)).save(folder / "train/x.jpg")
    (folder / "train/x.txt").write_text(LABEL)
    assert read(folder).counts.tolist() == [1]


def test_labels_that_are_links_to_nothing(tmp_path: Path) -> None:
    folder = described(tmp_path)
    labelled(folder, "ab")
    (folder / "train/labels/a.txt").unlink()
    (folder / "train/labels/a.txt").symlink_to("/old/disk/a.txt")
    with pytest.raises(InputError, match=r"labels .*train/labels/a\.txt does not exist"):
        read(folder)


def test_labels_of_no_image_and_images_without_any(tmp_path: Path) -> None:
    """Photos of a telephone, which cannot be read."""
    folder = described(tmp_path)
    labelled(folder, "abc")
    (folder / "train/images/c.jpg").rename(folder / "train/images/c.heic")
    (folder / "train/labels/classes.txt").write_text("cat\n")
    (folder / "val/labels/d.txt").unlink()
    label = folder / "train/labels/c.txt"
    assert read(folder).notes == (f"1 label files belong to no image that can be read, such as {label}",)
    assert not read(folder, "val").notes
    assert check_split(folder, "val").problems == ["no image has an object"]


@pytest.mark.parametrize("name", ["../train/images", "train\\images", "data/train/images"])
def test_the_folder_beside_the_description(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one of the same name above it, or in the current folder."""
    folder = tmp_path / "cells"
    labelled(folder, "abc")
    labelled(tmp_path, "x")
    labelled(tmp_path / "other/cells", "xy")
    monkeypatch.chdir(tmp_path / "other")
    (folder / "data.yaml").write_text(f"path: cells\ntrain: '{name}'\nval: '{name}'\nnames: [cat]\n")
    assert len(read(folder).images) == 3
    (folder / "list.txt").write_text(f"{name}/a.jpg\n{name}/b.jpg\n")
    (folder / "data.yaml").write_text("Train: list.txt\nVal: list.txt\nnames: [cat]\n")
    assert len(read(folder).images) == 2


def test_label_studio(tmp_path: Path) -> None:
    """It does not divide the images, and writes no data.yaml; its Pascal VOC has another name for images."""
    labelled(tmp_path / "yolo", "abcd", ".")
    (tmp_path / "yolo/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "yolo/notes.json").write_text('{"categories": []}')
    found = [read(tmp_path / "yolo", split, 0.25) for split in ("train", "val")]
    assert [each.counts.tolist() for each in found] == [[1, 1, 1], [1]]
    assert list(found[0].classes.names) == ["cat", "dog"]
    folder = voc(tmp_path / "voc", ["a", "b"], {})
    (folder / "JPEGImages").rename(folder / "images")
    assert [len(read(folder, split, 0.5).images) for split in ("train", "val")] == [1, 1]


def test_cvat_in_coco_format(tmp_path: Path) -> None:
    """Images in a folder of the split's name, which may be of any case, or of none at all."""
    source = write_dataset(tmp_path / "source", train=4, val=2)
    folder = tmp_path / "cvat"
    for split, name in (("train", "Train"), ("val", "Validation")):
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / split, folder / "images" / name)
        shutil.copy(source / f"annotations/instances_{split}.json", folder / f"annotations/instances_{name}.json")
    assert [len(read(folder, split).images) for split in ("train", "val")] == [4, 2]
    for name in ("Validation", "Train"):
        shutil.move(folder / f"annotations/instances_{name}.json", folder / "annotations/instances_default.json")
    shutil.move(folder / "images/Train", folder / "images/default")
    assert [len(read(folder, split, 0.25).images) for split in ("train", "val")] == [3, 1]


@pytest.mark.parametrize(
    "spell", [lambda name: f"sub\\{name}", lambda name: f"sub/{unicodedata.normalize('NFD', name)}"]
)
def test_names_of_other_systems_in_one_file(spell: Any, tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", train=4, val=2)
    shutil.copytree(source / "train", tmp_path / "data/photos/sub")
    content = json.loads((source / "annotations/instances_train.json").read_text())
    for image in content["images"]:
        (tmp_path / "data/photos/sub" / image["file_name"]).rename(tmp_path / f"data/photos/sub/é{image['file_name']}")
        image["file_name"] = spell(f"é{image['file_name']}")
    (tmp_path / "data/labels.json").write_text(json.dumps(content))
    (tmp_path / "data/photos/sub/._x.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    assert len(read(tmp_path / "data", fraction=0.25).images) == 3


def test_images_that_are_listed_by_another_spelling(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", train=4, val=2)
    file = folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    (folder / "train/é").mkdir()
    for image in content["images"]:
        (folder / "train" / image["file_name"]).rename(folder / "train/é" / image["file_name"])
        image["file_name"] = f"{unicodedata.normalize('NFD', 'é')}\\{image['file_name']}"
    file.write_text(json.dumps(content))
    (folder / "train/._x.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    assert not [each for each in check_split(folder, "train").problems if "not in the annotations" in each]


def test_a_list_names_an_image_that_is_not_annotated(tmp_path: Path) -> None:
    folder = voc(tmp_path, ["photo", "other"], {"train": "other 1 0\n", "val": "photo (1)\n"})
    with pytest.raises(InputError, match=r"Annotations/photo \(1\)\.xml does not exist"):
        read(folder, "val")
    (folder / "ImageSets/Main/val.txt").write_text("photo 1\n")
    assert list(read(folder, "val").images.names) == ["photo.jpg"]
    Image.new("RGB", (80, 60)).save(folder / "JPEGImages/photo 1.jpg")
    with pytest.raises(InputError, match=r"Annotations/photo 1\.xml does not exist"):
        read(folder, "val")


@pytest.mark.parametrize("content", ["café\n".encode("latin-1"), b"x" * 300 + b"\n", None])
def test_lists_of_other_splits_that_cannot_be_used(content: bytes | None, tmp_path: Path) -> None:
    folder = voc(tmp_path, ["a", "b"], {"train": "a\n", "val": "b\n"})
    for name in ("test", "trainval"):
        list_of = folder / f"ImageSets/Main/{name}.txt"
        if content is None:
            list_of.symlink_to("/old/disk/list.txt")
        else:
            list_of.write_bytes(content)
    assert [len(read(folder, split).images) for split in ("train", "val")] == [1, 1]
    (folder / "ImageSets/Main/val.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"val\.txt is no text"):
        read(folder, "val")


def test_a_list_without_images_is_named(tmp_path: Path) -> None:
    folder = voc(tmp_path, ["a", "b"], {"train": "a\n", "val": "\n"})
    with pytest.raises(InputError, match=r"Main/val\.txt \(Pascal VOC\): expected annotations, found none"):
        read(folder, "val")


@pytest.mark.parametrize(
    "text", ["<a/>", '<annotation xmlns="urn:x"><filename>a.jpg</filename></annotation>', "<Object/>"]
)
def test_xml_about_something_else(text: str, tmp_path: Path) -> None:
    folder = voc(tmp_path, ["a", "b"], {})
    (folder / "Annotations/a.xml").write_text(text)
    with pytest.raises(InputError, match=r"a\.xml is about something else: <.*> has none of filename, size, object"):
        read(folder)


def test_an_annotation_may_say_nothing(tmp_path: Path) -> None:
    """Of an image without objects; and what lies in a split that nobody asked for may be about something else."""
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (80, 60)).save(tmp_path / split / "x.jpg")
        thing = (
            "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        )
        (tmp_path / split / "x.xml").write_text(f"<annotation>{thing}</annotation>")
    (tmp_path / "val/x.xml").write_text("<annotation></annotation>")
    (tmp_path / "test/meta.xml").write_text("<meta/>")
    assert [read(tmp_path, split).counts.tolist() for split in ("train", "val")] == [[1], [0]]


def test_what_is_in_another_format_stays_that(tmp_path: Path) -> None:
    """Though there are images, classes and labels of another kind, or annotations of the original."""
    source = write_dataset(tmp_path / "source", train=4, val=2)
    folder = tmp_path / "data"
    shutil.copytree(source / "train", folder / "images")
    shutil.copy(source / "annotations/instances_train.json", folder / "annotations.json")
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("cat\n")
    (folder / "Annotations").mkdir()
    assert find_split(folder, "train", 0.25).format == "COCO, one file"
    (folder / "labels/train-00000.txt").write_text(LABEL)
    assert find_split(folder, "train", 0.25).format == "COCO, one file"
    (folder / "labels/train-00000.txt").unlink()
    (folder / "annotations.json").unlink()
    with pytest.raises(InputError, match="has no data set"):
        find_split(folder, "train", 0.25)
    for split in ("train", "valid"):
        (folder / split).mkdir()
        shutil.copy(voc(tmp_path / split, ["a"], {}) / "Annotations/a.xml", folder / split / "a.xml")
        Image.new("RGB", (80, 60)).save(folder / split / "a.jpg")
    (folder / "Annotations/x.xml").write_text("<annotation></annotation>")
    assert find_split(folder, "train", 0.25).folder == folder / "train"


def test_a_folder_called_data_that_is_not_there(tmp_path: Path) -> None:
    folder = described(tmp_path)
    (folder / "data.yaml").write_text("train: data\nval: val/images\nnames: [cat]\nNames: [dog]\n")
    with pytest.raises(InputError, match="'data' does not exist"):
        read(folder)
    labelled(folder)
    (folder / "data.yaml").write_text(
        "train: train/images\nval: val/images\nnames: [cat]\nNames: [dog]\nNC: 80\nnc: 1\n"
    )
    assert list(read(folder).classes.names) == ["cat"]


def test_names_that_lead_elsewhere_are_problems(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", train=4, val=2)
    file = folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    for name, sentence in (
        ("../val/val-00000.png", "is outside its folder"),
        (str(folder / "train/train-00000.png"), "has an absolute path; expected one in its folder"),
    ):
        content["images"][0]["file_name"] = name
        file.write_text(json.dumps(content))
        assert any(sentence in each for each in check_split(folder, "train").problems)


@pytest.mark.parametrize("folder", ["images", "JPEGImages"])
def test_lists_of_voc_divide_images_wherever_they_are(folder: str, tmp_path: Path) -> None:
    voc(tmp_path, ["a", "b", "c"], {"train": "a\nb\n", "val": "c\n"})
    (tmp_path / "JPEGImages").rename(tmp_path / folder)
    assert [list(read(tmp_path, split).images.names) for split in ("train", "val")] == [["a.jpg", "b.jpg"], ["c.jpg"]]


@pytest.mark.parametrize("each", [2, 3])
def test_poses_that_have_other_numbers_than_their_shape_says(each: int, tmp_path: Path) -> None:
    folder = described(tmp_path, "kpt_shape: [17, 3]\n")
    labelled(folder)
    file = folder / "train/labels/x.txt"
    file.write_text("0 .5 .5 .1 .1" + " .45" * 17 * each + "\n")
    assert read(folder).objects.boxes.tolist() == [[36, 27, 8, 6]]
    file.write_text("0 .5 .5 .1 .1" + " .45" * 16 * each + "\n")
    with pytest.raises(InputError, match=r"line 1 must have 4 numbers after the class, and 17 keypoints behind them"):
        read(folder)


@pytest.mark.parametrize(("name", "encoding", "read_as"), [("猫", "gb2312", "猫"), ("café", "utf-8", "café")])
def test_what_can_be_two_encodings(name: str, encoding: str, read_as: str, tmp_path: Path) -> None:
    """A cat in GB 2312 is a letter in UTF-8; many tools declare what they do not write."""
    voc(tmp_path, ["x", "y"], {"train": "x\n", "val": "y\n"})
    for file in (tmp_path / "Annotations").iterdir():
        text = '<?xml version="1.0" encoding="GB2312"?>' + file.read_text().replace("cat", name)
        file.write_bytes(text.encode(encoding))
    assert read(tmp_path).classes.names == (read_as,)


@pytest.mark.parametrize("name", ["train2017", "Training", "val_set", "test"])
def test_label_studio_does_not_pool_what_somebody_has_divided(name: str, tmp_path: Path) -> None:
    labelled(tmp_path, split="")
    for part in ("images", "labels"):
        (tmp_path / part).rename(tmp_path / name)
        (tmp_path / part).mkdir()
        (tmp_path / name).rename(tmp_path / part / name)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"has no data set; expected .* classes\.txt \(Label Studio's YOLO\)"):
        read(tmp_path)
