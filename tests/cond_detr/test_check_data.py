"""What check-data counts and finds."""

import json
import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from cond_detr import cli
from cond_detr.check_data import __main__ as check_data
from cond_detr.data import shapes


def run_check(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(check_data.main, [str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_good_data_set(dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(dataset_dir, "--output-dir", tmp_path / "sheets", "--images", 6) == 0
    printed = capsys.readouterr().out
    train, val = (shapes.make_split(split, count).annotations for split, count in (("train", 24), ("val", 6)))
    rows = {line.rsplit(None, 2)[0].strip(): line.split()[-2:] for line in printed.splitlines() if line.count(" ") > 3}
    assert rows["images"] == ["24", "6"]
    assert rows["boxes"] == [str(sum(len(r.labels) for r in a.records)) for a in (train, val)]
    star = shapes.NAMES.index("star")
    assert rows["star"] == [str(sum((r.labels == star).sum() for r in a.records)) for a in (train, val)]
    assert "no problems found" in printed
    with Image.open(tmp_path / "sheets" / "val.png") as sheet:
        assert sheet.width > sheet.height


def test_everything_that_is_wrong_is_named(dataset_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset_dir / "train" / "train-00001.png").write_bytes(b"no image")
    (dataset_dir / "train" / "train-00002.png").unlink()
    Image.new("RGB", (10, 20)).save(dataset_dir / "train" / "train-00003.png")
    Image.new("RGB", (10, 20)).save(dataset_dir / "train" / "forgotten.png")
    file = dataset_dir / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [90, 90, 5, 5]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 2]
    content["categories"].append({"id": 99, "name": "pentagon"})
    file.write_text(json.dumps(content))
    assert run_check(dataset_dir) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem:")]
    for sentence in (
        "train-00001.png cannot be read",
        "train-00002.png does not exist",
        "train-00003.png is 10x20 pixels, but its annotations say 64x64",
        "1 boxes are empty or outside the image",
        "1 images in",
        "class 'pentagon' is only in train",
        "class 'ring' has objects in val and none in train",
    ):
        assert sum(sentence in problem for problem in problems) == 1, sentence
    assert len(problems) == 7


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(tmp_path / "none") == 2
    assert "none does not exist" in capsys.readouterr().err


def test_names_of_another_system(dataset_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether images are copies of each other is read from where they are loaded from."""
    (dataset_dir / "train" / "sub").mkdir()
    (dataset_dir / "train" / "train-00000.png").rename(dataset_dir / "train" / "sub" / "a.png")
    file = dataset_dir / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "sub\\a.png"
    file.write_text(json.dumps(content))
    assert run_check(dataset_dir) in {0, 1}
    assert "does not exist" not in capsys.readouterr().out


def test_a_category_that_only_groups_others_is_no_problem(
    dataset_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Roboflow writes it into every export."""
    for split in ("train", "val"):
        file = dataset_dir / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        for each in content["categories"]:
            each["supercategory"] = "things"
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        file.write_text(json.dumps(content))
    assert run_check(dataset_dir) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("note:")] == [
        f"note: {split}: category 'things' only groups others, and is no class" for split in ("train", "val")
    ]
    assert lines[-1] == "no problems found"
    # with an object in one split it is a class in both
    content["annotations"].append({**content["annotations"][0], "id": 10**6, "category_id": 0})
    file.write_text(json.dumps(content))
    run_check(dataset_dir)
    found = capsys.readouterr().out
    assert "only groups others" not in found
    assert "is only in" not in found


def test_a_group_with_the_name_of_its_class(dataset_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in exports of projects that are called like their class."""
    for split in ("train", "val"):
        file = dataset_dir / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        first = content["categories"][0]
        first["supercategory"] = first["name"]
        content["categories"].insert(0, {"id": 0, "name": first["name"], "supercategory": "none"})
        file.write_text(json.dumps(content))
    assert run_check(dataset_dir) == 0
    assert "only groups others, and is no class" in capsys.readouterr().out


def test_images_of_the_data_set_stay(dataset_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One may be called as a sheet would be."""
    image = dataset_dir / "train" / "train.png"
    Image.new("RGB", (30, 20)).save(image)
    before = image.read_bytes()
    assert run_check(dataset_dir, "--output-dir", dataset_dir / "train") == 2
    assert f"error: {image} is there already, and not of cond-detr" in capsys.readouterr().err
    assert image.read_bytes() == before
    Image.new("1", (12_000, 12_000)).save(image)  # Pillow warns of so many pixels
    with warnings.catch_warnings(record=True) as warned:
        assert run_check(dataset_dir, "--output-dir", dataset_dir / "train") == 2
    assert not warned
    os.mkfifo(dataset_dir / "val.png")
    assert run_check(dataset_dir, "--output-dir", dataset_dir) == 2
    for _ in range(2):  # its own are replaced
        assert run_check(dataset_dir, "--output-dir", dataset_dir / "sheets") in {0, 1}
