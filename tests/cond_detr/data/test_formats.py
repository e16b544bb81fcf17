"""Data sets as they come: the same images with the same boxes, in whatever format."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cond_detr import InputError
from cond_detr.check_data.__main__ import main as check_data
from cond_detr.config import DataConfig
from cond_detr.convert_data.__main__ import main as convert_data
from cond_detr.data import open_split
from cond_detr.data.description import describe_data
from cond_detr.data.formats import find_split
from cond_detr.data.formats.coco import of_other_splits
from cond_detr.data.formats.voc import of_voc
from cond_detr.data.formats.yolo import settings
from cond_detr.data.formats.yolo_labels import label_file, parsed
from cond_detr.pack.__main__ import main as pack
from cond_detr.train.__main__ import main as train
from tests.cond_detr.data.data_formats import (
    WRITERS,
    class_names,
    content_of,
    one_image,
    voc,
    write_one_file,
    write_voc,
    write_yolo,
)
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
FRACTION = DataConfig.val_fraction


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes in alphabetical order, which is all that Pascal VOC has."""
    folder = write_dataset(tmp_path_factory.mktemp("coco") / "data", train=24, val=8)
    for split in ("train", "val"):
        content = content_of(folder, split)
        names = class_names(content)
        order = sorted(names, key=lambda number: names[number])
        content["categories"] = [{"id": i, "name": names[number]} for i, number in enumerate(order, 1)]
        for each in content["annotations"]:
            each["category_id"] = order.index(each["category_id"]) + 1
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def records(folder: Path, split: str) -> list[tuple[Any, ...]]:
    found = find_split(folder, split, FRACTION).annotations()
    return [(record.size, record.boxes.tolist(), record.labels.tolist()) for record in found.records]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_says_the_same(coco: Path, tmp_path: Path, name: str) -> None:
    folder = WRITERS[name](coco, tmp_path / "data")
    for split in ("train", "val"):
        found = find_split(folder, split, FRACTION)
        assert name.startswith(found.format)
        assert records(folder, split) == records(coco, split)
        assert found.annotations().classes.names == find_split(coco, split, FRACTION).annotations().classes.names


def test_the_same_loss_and_ap(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last digit."""
    logs = []
    for name, write in WRITERS.items():
        folder = write(coco, tmp_path / name / "data")
        output = tmp_path / name / "run"
        arguments = ["--preset", "shapes", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
        assert train(["--dataset-dir", str(folder), "--output-dir", str(output), *arguments]) == 0
        lines = (output / "log.jsonl").read_text().splitlines()
        logs.append([(log["train_loss"], log["AP"], log["AP50"]) for log in map(json.loads, lines)])
        said = capsys.readouterr().out
        assert name == "COCO" or name.partition(",")[0].split(" in ")[0] in said
    assert all(log == logs[0] for log in logs)


def test_one_file_is_divided(coco: Path, tmp_path: Path) -> None:
    folder = write_one_file(coco, tmp_path / "data")
    parts = {split: find_split(folder, split, 0.25).annotations() for split in ("train", "val")}
    assert [len(part.images) for part in parts.values()] == [18, 6]
    names = [*parts["train"].images.names, *parts["val"].images.names]
    assert sorted(names) == sorted(find_split(coco, "train", FRACTION).annotations().images.names)
    whole = {record.file_name: record for record in find_split(coco, "train", FRACTION).annotations().records}
    for part in parts.values():
        for record in part.records:
            assert np.array_equal(record.boxes, whole[record.file_name].boxes)
    again = find_split(folder, "val", 0.25).annotations()
    assert list(again.images.names) == list(parts["val"].images.names)
    assert "25% of its images, for validation" in again.name


def test_too_few_images_to_divide(coco: Path, tmp_path: Path) -> None:
    folder = write_one_file(coco, tmp_path / "data")
    with pytest.raises(InputError, match=r"0\.01 of 24 images for validation leaves none for it"):
        find_split(folder, "train", 0.01).annotations()


@pytest.mark.parametrize("write", [write_yolo, WRITERS["COCO, Roboflow's folders"]])
def test_without_a_folder_for_validation(coco: Path, tmp_path: Path, write: Any) -> None:
    folder = write(coco, tmp_path / "data")
    shutil.rmtree(folder / "valid")
    if (folder / "data.yaml").exists():
        text = (folder / "data.yaml").read_text().replace("val: ../valid/images\n", "")
        (folder / "data.yaml").write_text(text)
    assert [len(find_split(folder, split, 0.25).annotations().images) for split in ("train", "val")] == [18, 6]


def test_the_first_lines_say_what_was_recognised(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "data")
    dataset = open_split(DataConfig(dataset_dir=folder), "train", 32)
    assert describe_data(dataset).startswith(f"{folder}/data.yaml (YOLO): 24 images, ")


def test_check_data(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same sentences as about COCO's format."""
    said = []
    for name, write in WRITERS.items():
        check_data([str(write(coco, tmp_path / name))])
        said.append([line for line in capsys.readouterr().out.splitlines() if line.startswith(("problem", "no prob"))])
    assert said[0]
    assert all(len(lines) == len(said[0]) for lines in said)


def test_convert_data(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_voc(coco, tmp_path / "data")
    assert convert_data([str(folder), str(tmp_path / "coco")]) == 0
    assert "train: " in capsys.readouterr().out
    for split in ("train", "val"):
        assert find_split(tmp_path / "coco", split, FRACTION).format == "COCO"
        assert records(tmp_path / "coco", split) == records(coco, split)
    dataset = open_split(DataConfig(dataset_dir=tmp_path / "coco"), "val", 32)
    assert not isinstance(dataset[0], InputError)
    with pytest.raises(InputError, match="exists already"):
        convert_data([str(folder), str(tmp_path / "coco")])


def test_nothing_is_left_of_a_conversion_that_fails(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "data")
    next((folder / "valid/labels").iterdir()).write_text("7 .5 .5 .1 .1")
    with pytest.raises(InputError, match="line 1 has class 7, but there are 6"):
        convert_data([str(folder), str(tmp_path / "coco")])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 0.5 0.5 0.2 0.4", (1, (0.4, 0.3, 0.2, 0.4))),
        ("0 0.1 0.1 0.3 0.1 0.2 0.5", (0, (0.1, 0.1, 0.2, 0.4))),
        ("0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5", (0, (0.1, 0.1, 0.2, 0.4))),
        ("2 0.5 0.5 0.2 0.4", "has class 2, but there are 2, from 0 on"),
        ("-1 0.5 0.5 0.2 0.4", "has class -1, but there are 2, from 0 on"),
        ("1 0.5 0.5 0.2", "must have 4 numbers after the class, or the corners of a polygon, got 3"),
        ("1", "must have 4 numbers after the class, or the corners of a polygon, got 0"),
        ("1 0.5 0.5 0.2 0.4 0.9", "must have 4 numbers after the class, or the corners of a polygon, got 5"),
        ("1 320 240 64 64", "must have fractions of the image size, got '1 320 240 64 64'"),
        ("1 nan 0.5 0.2 0.4", "must have fractions of the image size, got '1 nan 0.5 0.2 0.4'"),
        ("cat 0.5 0.5 0.2 0.4", "must be a class and numbers, got 'cat 0.5 0.5 0.2 0.4'"),
    ],
)
def test_lines_of_labels(line: str, expected: Any) -> None:
    found = parsed(line, 2)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("a/images/train/x.jpg", "a/labels/train/x.txt"),
        ("images/images/x.y.jpg", "images/labels/x.y.txt"),
        ("a/photos/x.jpg", "a/photos/x.txt"),
    ],
)
def test_where_labels_are(image: str, labels: str) -> None:
    assert label_file(Path(image)) == Path(labels)


def test_images_without_labels_have_no_objects(tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    assert find_split(folder, "train", FRACTION).annotations().counts.tolist() == [0]


@pytest.mark.parametrize("nothing", ["", "~", "null", "''"])
def test_without_a_validation_split_the_images_are_divided(nothing: str, tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    Image.new("RGB", (80, 60)).save(folder / "images/train/y.jpg")
    (folder / "data.yaml").write_text(YAML.replace("val: images/val", f"val: {nothing}\npath: {nothing}"))
    for split in ("train", "val"):
        assert len(find_split(folder, split, 0.5).annotations().images) == 1


def test_class_names_are_the_words_in_the_file(tmp_path: Path) -> None:
    """YAML would read them as truth values, numbers and a date."""
    folder = one_image(tmp_path)
    words = ["yes", "NO", "010", "1_000", "2001-01-01", "~"]
    (folder / "data.yaml").write_text(YAML.replace("[cat]", f"[{', '.join(words)}]"))
    assert list(find_split(folder, "train", FRACTION).annotations().classes.names) == words


@pytest.mark.parametrize(
    "text",
    [
        "base: &b {train: images/train, val: images/val}\n<<: *b\nnames: [cat]\n",
        "train: images/train\nval: images/val\nnames: {<<: &c {0: cat}}\n",
        "train: images/train\nval: images/val\nnames: {00: cat}\nnc: 1\n",
        "train: images/train\nval: images/val\nnames: {!!int 0: cat}\nnc: !!int 01\nx: !env HOME\n",
    ],
)
def test_tables_that_are_merged_or_numbered(text: str, tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    (folder / "data.yaml").write_text(text)
    for split in ("train", "val"):
        assert list(find_split(folder, split, FRACTION).annotations().classes.names) == ["cat"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("{<<: [*b, *c]}", ["cat", "cat"]),
        ("{<<: [*c, *b]}", ["dog", "dog"]),
        ("{<<: *b, <<: *c}", ["cat", "cat"]),
        ("{1: cow, <<: [*b, *c]}", ["cat", "cow"]),
        ("{<<: [{<<: *c, 0: cow}, *b]}", ["cow", "dog"]),
    ],
)
def test_which_of_merged_entries_counts(names: str, expected: list[str], tmp_path: Path) -> None:
    """A table's own, then the first."""
    folder = one_image(tmp_path)
    tables = "b: &b {0: cat, 1: cat}\nc: &c {0: dog, 1: dog}\n"
    (folder / "data.yaml").write_text(tables + YAML.replace("[cat]", names))
    content = settings(folder / "data.yaml")
    assert content
    assert [content["names"][key] for key in ("0", "1")] == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: x\nnames:\n  0: cat\n  1: dog\n  1: cow", r"data\.yaml line 5: '1' is there twice"),
        ("names: [cat]\ntrain: x\ntrain: y", r"data\.yaml line 3: 'train' is there twice"),
        ("names: {<<: 3}", "line 1: expected a table, or a list of them, to merge"),
        ("names: {<<: [[0]]}", "line 1: expected a table, or a list of them, to merge"),
        ("names: &n {<<: *n}", "is no YAML"),
    ],
)
def test_tables_that_are_none(text: str, sentence: str, tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    (folder / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        find_split(folder, "train", FRACTION)


def test_what_is_not_read_may_be_there_twice(tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    (folder / "data.yaml").write_text(YAML + "\nroboflow: 1\nroboflow: {a: 1, a: 2}\n")
    assert find_split(folder, "train", FRACTION).format == "YOLO"


def test_tables_cannot_grow_beyond_measure(tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    many = ", ".join(["*e"] * 1000)
    merging = "".join(f"m{i}: {{<<: *s}}\n" for i in range(1000))
    (folder / "data.yaml").write_text(f"e: &e {{}}\ns: &s [{many}]\n{merging}")
    with pytest.raises(InputError, match="is no YAML: tables have more than 100000 entries"):
        find_split(folder, "train", FRACTION)
    entries, aliases = ", ".join(f"k{i}: v" for i in range(3000)), ", ".join(["*a"] * 3000)
    (folder / "data.yaml").write_text(f"a: &a {{{entries}}}\nb: {{<<: [{aliases}]}}\n")
    with pytest.raises(InputError, match="is no YAML: tables have more than 100000 entries"):
        find_split(folder, "train", FRACTION)


def test_a_description_of_another_name_that_is_broken(tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    (folder / "data.yaml").rename(folder / "mine.yaml")
    assert find_split(folder, "train", FRACTION).format == "YOLO"
    (folder / "mine.yaml").write_text("train: [")
    with pytest.raises(InputError, match=r"mine\.yaml is no YAML: line 1"):
        find_split(folder, "train", FRACTION)


def test_a_file_beside_it_may_be_about_anything(coco: Path, tmp_path: Path) -> None:
    folder = write_voc(coco, tmp_path / "data")
    (folder / "a.yaml").write_text("a: 1\n---\nb: 2\n")
    (folder / "b.yml").write_bytes(b"\xff\xfe\xff")
    assert find_split(folder, "train", FRACTION).format == "Pascal VOC"


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("utf-8", "utf-8-sig"),
        ("utf8", "utf-8"),  # which the parser does not know by this name
        ("iso-8859-1", "iso-8859-1"),
        ("utf-16", "utf-16"),
        ("gb18030", "gb18030"),
        ("utf-8", "utf-16"),  # what is redirected into a file on Windows
        ("ISO-2022-JP-2", "iso2022_jp_2"),  # all of whose bytes are ASCII
        ("utf-7", "utf-7"),
        ("ISO-2022-JP", "utf-8"),
    ],
)
def test_encodings_of_voc(declared: str, encoding: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (80, 60)).save(tmp_path / split / "x.jpg")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        text = f"<annotation><filename>x.jpg</filename><object><name>épée</name>{box}</object></annotation>"
        beginning = f'<?xml version="1.0" encoding="{declared}"?>'
        (tmp_path / split / "x.xml").write_bytes((beginning + text).encode(encoding))
    assert list(find_split(tmp_path, "train", FRACTION).annotations().classes.names) == ["épée"]


@pytest.mark.parametrize("name", ["rot13", "punycode", "unicode_escape", "zlib", "A" * 100_000])
def test_what_is_no_encoding_of_xml(name: str, tmp_path: Path) -> None:
    """Some of Python's take hours."""
    (tmp_path / "train").mkdir()
    content = f'<?xml version="1.0" encoding="{name}"?><annotation>'.encode() + b"\0" + b"a" * 10_000_000
    (tmp_path / "train" / "x.xml").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.xml cannot be used: unknown encoding") as raised:
        find_split(tmp_path, "train", FRACTION).annotations()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ({"default": "a\nmy photo\ns/a\nb"}, 2, 2),
        ({"trainval": "a\nmy photo\n", "test": "b\n", "cat_test": "b 1\n"}, 1, 1),
        ({"train": "my photo  1\na -1\ns/a\na 1\n", "val": "b\n", "trainval": "a\nmy photo\ns/a\nb\n"}, 3, 1),
        ({"Train": "a\nmy photo\n", "Validation": "b 1 1\n"}, 2, 1),
        ({"train": "a\nmy photo\n"}, 1, 1),
        ({}, 1, 2),
    ],
)
def test_lists_of_voc(lists: dict[str, str], train: int, val: int, tmp_path: Path) -> None:
    folder = voc(tmp_path, ["a", "my photo", "s/a", "b"], lists)
    found = [find_split(folder, split, 0.5).annotations() for split in ("train", "val")]
    assert [len(each.images) for each in found] == [train, val]
    assert [each.counts.tolist() for each in found] == [[1] * train, [1] * val]
    every = [record.file_name for each in found for record in each.records]
    assert len(set(every)) == train + val
    assert "s/a.jpg" in every or len(every) < 4


@pytest.mark.parametrize("lists", [{}, {"train": "a\n", "val": "b\n"}])
def test_other_annotations_in_a_folder(lists: dict[str, str], tmp_path: Path) -> None:
    """Only lists lead there."""
    folder = voc(tmp_path, ["a", "b"], lists)
    (folder / "Annotations/backup").mkdir()
    (folder / "Annotations/backup/a.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    (folder / "Annotations/backup/junk.xml").write_text("<a>")
    found = [find_split(folder, split, 0.5).annotations() for split in ("train", "val")]
    assert [list(each.classes.names) for each in found] == [["cat"], ["cat"]]
    assert [len(each.images) for each in found] == [1, 1]


def test_an_annotation_file_elsewhere(tmp_path: Path) -> None:
    folder = voc(tmp_path / "data", ["a", "b"], {})
    (folder / "Annotations/a.xml").rename(tmp_path / "a.xml")
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text(f"{tmp_path}/a\nb\n")
    assert len(find_split(folder, "train", 0.5).annotations().images) == 1


def test_lists_for_validation_alone(tmp_path: Path) -> None:
    """What is for training is not said: not all the others, some of which may be for tests."""
    folder = voc(tmp_path, ["a", "b"], {"val": "a\n", "trainval": "a\nb\n"})
    with pytest.raises(InputError, match="has no data set"):
        find_split(folder, "train", 0.5)


def test_files_about_something_else(tmp_path: Path) -> None:
    """macOS puts a hidden one beside each file on another system's disk."""
    for split in ("train", "val"):
        shutil.copytree(voc(tmp_path / "from", ["a"], {}) / "Annotations", tmp_path / split)
        shutil.copy(tmp_path / "from/JPEGImages/a.jpg", tmp_path / split)
        (tmp_path / split / "._a.xml").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.xml").write_text("<!DOCTYPE html><html/>")
    assert len(find_split(tmp_path, "train", FRACTION).annotations().images) == 1
    yolo = one_image(tmp_path / "yolo")
    (yolo / "._data.yaml").write_bytes(b"\0\5\x16\7Mac OS X")
    (yolo / "images/train/.ipynb_checkpoints").mkdir()
    for name in ("._x.jpg", ".ipynb_checkpoints/x-checkpoint.jpg"):
        (yolo / "images/train" / name).write_bytes(b"\0\5\x16\7Mac OS X")
    assert len(find_split(yolo, "train", FRACTION).annotations().images) == 1


@pytest.mark.parametrize("entry", ["train.txt", "images/train", "images/../images/train"])
@pytest.mark.parametrize("labels", ["beside the link", "beside its target"])
@pytest.mark.parametrize("linked", ["image", "folder", "folder, and image in it"])
def test_images_that_are_links(entry: str, linked: str, labels: str, tmp_path: Path) -> None:
    folder, store = one_image(tmp_path / "data"), tmp_path / "store"
    (store / "images").mkdir(parents=True)
    image, target = folder / "images/train/x.jpg", store / "images/train"
    if linked == "image":
        target.mkdir()
        image.rename(target / "x.jpg")
        image.symlink_to(target / "x.jpg")
    else:
        image.parent.rename(target)
        image.parent.symlink_to(target)
    if linked == "folder, and image in it":
        (target / "x.jpg").rename(tmp_path / "blob")
        (target / "x.jpg").symlink_to(tmp_path / "blob")
    label = (folder if labels == "beside the link" else store) / "labels/train/x.txt"
    label.parent.mkdir(parents=True)
    label.write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "train.txt").write_text("images/train/x.jpg\n")
    (folder / "data.yaml").write_text(YAML.replace("train: images/train", f"train: {entry}"))
    assert find_split(folder, "train", FRACTION).annotations().counts.tolist() == [1]


def test_labels_of_another_data_set_with_the_same_images(tmp_path: Path) -> None:
    """Where one's own labels lie beside a link to its images, an image without them has no objects."""
    folder, theirs = one_image(tmp_path / "mine"), tmp_path / "theirs"
    (theirs / "labels/train").mkdir(parents=True)
    (theirs / "images").mkdir()
    (folder / "images/train").rename(theirs / "images/train")
    (folder / "images/train").symlink_to(theirs / "images/train")
    for name in ("x", "y"):
        Image.new("RGB", (80, 60)).save(theirs / f"images/train/{name}.jpg")
        (theirs / f"labels/train/{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n" * 2)
    assert find_split(folder, "train", FRACTION).annotations().counts.tolist() == [2, 2]
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/x.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert find_split(folder, "train", FRACTION).annotations().counts.tolist() == [1, 0]


@pytest.mark.parametrize("command", [convert_data, pack])
def test_an_image_that_is_there_twice(coco: Path, tmp_path: Path, command: Any) -> None:
    """In a list it counts once; in COCO's format each entry has objects of its own."""
    content = content_of(coco, "train")
    again = {**content["images"][0], "id": 10**6}
    shutil.copytree(coco, tmp_path / "coco")
    twice = {**content, "images": [*content["images"], again]}
    (tmp_path / "coco/annotations/instances_train.json").write_text(json.dumps(twice))
    yolo = one_image(tmp_path / "yolo")
    (yolo / "data.yaml").write_text(YAML.replace("train: images/train", "train: [images/train, images]"))
    (yolo / "images/val/x.jpg").rename(yolo / "images/val/y.jpg")
    for folder, count in ((tmp_path / "coco", len(twice["images"])), (yolo, 2)):
        assert command([str(folder), str(tmp_path / f"new {folder.name}")]) == 0
        assert len(find_split(tmp_path / f"new {folder.name}", "train", FRACTION).annotations().images) == count


def roboflow(folder: Path) -> Path:
    """A group, which is a class as well: only the split for tests has an object of it."""
    for split, category in (("train", 1), ("valid", 1), ("test", 0)):
        (folder / split).mkdir(parents=True)
        Image.new("RGB", (80, 60)).save(folder / split / "x.jpg")
        content = {
            "images": [{"id": 1, "file_name": "x.jpg", "width": 80, "height": 60}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": category, "bbox": [1, 2, 3, 4], "mark": "mine"}],
            "categories": [
                {"id": 0, "name": "cells", "supercategory": "none"},
                {"id": 1, "name": "red", "supercategory": "cells"},
            ],
        }
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("command", [convert_data, pack])
def test_classes_stay_when_the_split_that_shows_them_is_left_behind(command: Any, tmp_path: Path) -> None:
    folder = roboflow(tmp_path / "data")
    assert command([str(folder), str(tmp_path / "new")]) == 0
    for split in ("train", "val"):
        for each in (folder, tmp_path / "new"):
            assert list(find_split(each, split, FRACTION).annotations().classes.names) == ["cells", "red"]
        written = json.loads((tmp_path / f"new/annotations/instances_{split}.json").read_text())
        assert written["annotations"][0]["mark"] == "mine"


def test_other_splits_are_found_from_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(roboflow(tmp_path) / "train")
    assert len(of_other_splits(Path("_annotations.coco.json"))) == 2


def test_lists_of_images_and_several_folders(tmp_path: Path) -> None:
    folder = one_image(tmp_path)
    (folder / "train.txt").write_text("./images/train/x.jpg\nimages/val/x.jpg\n\n")
    (folder / "data.yaml").write_text("train: train.txt\nval: [images/train, images/val]\nnames: [cat]\n")
    for split in ("train", "val"):
        found = find_split(folder, split, FRACTION)
        assert list(found.annotations().images.names) == ["train/x.jpg", "val/x.jpg"]
        assert not found.alone


def test_an_image_that_is_turned(tmp_path: Path) -> None:
    """Labels are of the image as it is seen."""
    folder = one_image(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(folder / "images/train/x.jpg", exif=exif)
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/x.txt").write_text("0 0.5 0.5 0.5 0.5")
    dataset = open_split(DataConfig(dataset_dir=folder), "train", 32)
    assert dataset.annotations.images.sizes.tolist() == [[60, 80]]
    assert dataset.annotations.records[0].boxes.tolist() == [[15, 20, 45, 60]]
    assert not isinstance(dataset[0], InputError)


YAML = "train: images/train\nval: images/val\nnames: [cat]\n"


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("data.yaml", "train: [", "is no YAML: line 1: "),
        ("data.yaml", "train: x\nnames: {a\nb: ]", "is no YAML: line 3: "),
        # a tag calls nothing
        # a tag calls nothing; it is left out like any other
        ("data.yaml", "train: !!python/object/apply:os.getcwd []\nnames: [a]\n", "has no data set"),
        ("data.yaml", YAML + "nc: 2\n", "nc must be the number of names, 1, got '2'"),
        ("data.yaml", YAML.replace("[cat]", "[]"), "names must be a list of class names, or a table"),
        ("data.yaml", YAML.replace("[cat]", "{" + "0" * 500 + ": cat}"), "names must be a list of class names"),
        ("data.yaml", YAML.replace("[cat]", "{0: cat, dog: 1}"), "names must be a list of class names, or a table"),
        ("data.yaml", YAML.replace("[cat]", "{0: cat, null: dog}"), "names must be a list of class names, or a table"),
        ("data.yaml", YAML.replace("[cat]", "{0: cat, 1: }"), "names must be a list of class names, or a table"),
        ("data.yaml", YAML.replace("cat", '"\\UFFFFFFFF"'), "is no YAML"),
        ("data.yaml", YAML.replace("images/train", "nowhere"), "'nowhere' does not exist in"),
        ("data.yaml", YAML.replace("[cat]", "3"), "names must be a list of class names, or a table"),
        ("data.yaml", YAML.replace("[cat]", "{1: cat}"), "names must be a list of class names, or a table"),
        ("data.yaml", YAML.replace("images/train", "3"), "'3' does not exist in"),
        ("data.yaml", YAML.replace("[cat]", "[cat, cat]"), "'cat' is used more than once"),
        ("images/train/x.jpg", "no image", "images/train/x.jpg cannot be read"),
        ("labels/train/x.txt", "0 1 2", "line 1 must have 4 numbers after the class"),
        ("labels/train/x.txt", "\n0 .5 .5 -.1 .1", "x.txt line 2' (x.jpg) has bbox"),
    ],
)
def test_bad_yolo(tmp_path: Path, file: str, text: str, sentence: str) -> None:
    folder = one_image(tmp_path)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text)
    with pytest.raises(InputError) as error:
        find_split(folder, "train", FRACTION).annotations()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>21</xmax><ymax>32</ymax></bndbox></object>"
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize("side", ["inf", "nan", "0", "-3", "wide"])
def test_a_size_that_is_none(side: str, tmp_path: Path) -> None:
    """The image has its own."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train/x.jpg")
    size = f"<size><width>{side}</width><height>64</height></size>"
    hard = OBJECT.replace("<bndbox>", "<difficult>True</difficult><bndbox>")
    (tmp_path / "train/x.xml").write_text(f"<annotation>{size}{OBJECT}{hard}</annotation>")
    found = of_voc(tmp_path, "train").annotations()  # type: ignore[union-attr]
    assert found.images.sizes.tolist() == [[80, 60]]
    assert found.objects.crowds.tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<annotation>", "is no XML"),
        (BOMB, "declares a document type, which annotations do not need"),
        (f"<annotation>{OBJECT.replace('<xmax>21</xmax>', '')}</annotation>", "object 1 must have a name and a bndbox"),
        (f"<annotation>{OBJECT.replace('21', 'wide')}</annotation>", "object 1 must have a name and a bndbox"),
        (f"<annotation>{OBJECT.replace('cat', '')}</annotation>", "object 1 must have a name and a bndbox"),
        (f"<annotation>{OBJECT.replace('21', '0')}</annotation>", "has bbox [1, 2, -1, 30]"),
        ("<annotation><object/></annotation>", "object 1 must have a name and a bndbox"),
        (
            f"<annotation>{OBJECT.replace('<bndbox>', '<difficult>2</difficult><bndbox>')}</annotation>",
            "has difficult '2'",
        ),
        (f"<annotation>{OBJECT.replace('21', 'inf')}</annotation>", "object 1 must have a name and a bndbox"),
    ],
)
def test_bad_voc(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train/x.jpg")
    (tmp_path / "train/x.xml").write_text(text)
    with pytest.raises(InputError) as error:
        of_voc(tmp_path, "train").annotations()  # type: ignore[union-attr]
    assert sentence in str(error.value)
    assert "x.xml" in str(error.value)
