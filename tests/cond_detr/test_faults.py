"""Faults that were found by trying it: public bug reports, a newcomer's journey, attacks. One test for each kind."""

import contextlib
import errno
import fcntl
import http.server
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask

from cond_detr import ConditionalDETR, Detection, Detections, InputError, cli, errors, files
from cond_detr.check_data.findings import check_split
from cond_detr.classes import Classes
from cond_detr.config import Config, DataConfig, to_dict
from cond_detr.data import open_split
from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.annotations import Annotations
from cond_detr.data.description import crowded, describe_data
from cond_detr.data.images import InputSize, open_image
from cond_detr.data.layouts import FolderLoader
from cond_detr.data.loading import checked, eval_loader
from cond_detr.evaluate import __main__ as evaluate
from cond_detr.evaluate.over_dataset import classes_in
from cond_detr.options import read_config
from cond_detr.pictures import write_picture
from cond_detr.predict import __main__ as predict
from cond_detr.presets import configured, preset
from cond_detr.report import __main__ as report
from cond_detr.settings import all_settings
from cond_detr.train import __main__ as train
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.reading import open_source
from cond_detr_kernels import linear_sum_assignment

pytestmark = pytest.mark.usefixtures("one_thread")
TINY: dict[str, Any] = {"decoder_layers": 1, "num_queries": 150, "image_size": 64, "max_size": 64}


def content(**changes: Any) -> dict[str, Any]:
    """Two images, a cat in the first and a dog in the second."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "area": 100, "iscrowd": 0},
            {"id": 6, "image_id": 2, "category_id": 2, "bbox": [5, 5, 20, 10], "area": 150, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **changes,
    }


def annotated(**changes: Any) -> Annotations:
    first, second = content()["annotations"]
    return check_annotations(content(annotations=[{**first, **changes}, second]), "f.json")


def folder_with(path: Path, truth: dict[str, Any], images: dict[str, Image.Image]) -> Path:
    """A data set whose two splits are the same."""
    (path / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (path / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
        for name, image in images.items():
            (path / split).mkdir(exist_ok=True)
            image.save(path / split / name)
    return path


PLAIN = {"1.png": Image.new("RGB", (40, 30), (9, 9, 9)), "2.png": Image.new("RGB", (40, 30), (99, 9, 9))}


# Wrong, and silent


def test_w2_without_a_measurement_the_latest_model_is_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_with(tmp_path / "data", content(), PLAIN)
    nothing = content(annotations=[])
    (data / "annotations/instances_val.json").write_text(json.dumps(nothing))
    options = ["--preset", "shapes", "--dataset-dir", str(data), "--epochs", "3", "--batch-size", "2", "--workers", "0"]
    options += ["--device", "cpu", "--output-dir", str(tmp_path / "run"), "--image-size", "32"]
    assert train.main(options) == 0
    assert "AP cannot be measured, for" in capsys.readouterr().out
    best, last = (Checkpoint.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    assert last.average is not None
    assert torch.equal(best.model["class_head.bias"], last.average["class_head.bias"])


def test_w3_as_many_detections_as_queries() -> None:
    model = ConditionalDETR.from_preset("shapes", 3, **TINY)
    assert len(model.predict(Image.new("RGB", (64, 64)), 0.0)) == 150


def turned(orientation: int, size: tuple[int, int]) -> Image.Image:
    """An image with a bright left half as it is stored, and an EXIF tag."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("stored", [True, False], ids=["as stored", "rotated"])
def test_w4_one_convention_for_a_data_set(stored: bool, tmp_path: Path) -> None:
    """Sideways images tell it; those that are upside down or square follow."""
    truth = content()
    truth["images"][0] |= {"file_name": "1.jpg", "width": 40 if stored else 30, "height": 30 if stored else 40}
    truth["images"][1] |= {"file_name": "2.jpg", "width": 32, "height": 32}
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / "val").mkdir()
    (data / "annotations/instances_val.json").write_text(json.dumps(truth))
    for name, orientation, size in (("1.jpg", 6, (40, 30)), ("2.jpg", 3, (32, 32))):
        image = turned(orientation, size)
        image.save(data / "val" / name, exif=image.getexif(), quality=95)
    dataset = open_split(DataConfig(dataset_dir=str(data)), "val", 32)
    upside_down = np.asarray(dataset.load("2.jpg", (32, 32)))
    assert (upside_down[:, :10].mean() > 200) == stored
    assert ("annotated as stored" in describe_data(dataset)) == stored


def test_w4_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    truth = content()
    truth["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2)]
    data = folder_with(tmp_path / "data", truth, {})
    (data / "val").mkdir()
    for name in ("1.jpg", "2.jpg"):
        image = turned(3, (40, 30))
        image.save(data / "val" / name, exif=image.getexif())
    assert "2 images are rotated by their EXIF tag" in describe_data(
        open_split(DataConfig(dataset_dir=str(data)), "val", 8)
    )
    quiet = DataConfig(dataset_dir=str(data), exif="ignore")
    assert "EXIF" not in describe_data(open_split(quiet, "val", 8))


@pytest.mark.parametrize("area", [-5, 0, float("inf"), float("nan"), "100", True])
def test_w5_areas_that_are_none(area: Any) -> None:
    annotations = annotated(area=area)
    assert annotations.to_coco()["annotations"][0]["area"] == 120
    assert annotations.notes == ("1 annotations have an area that is no number above 0; width times height is taken",)


def test_w6_more_objects_than_queries() -> None:
    box = content()["annotations"][0]
    many = check_annotations(content(annotations=[box] * 152), "f.json")
    assert "1 image has more than 60 objects, up to 152" in crowded(many, 60)[0]
    assert crowded(many, 152) == []


def test_w6_and_notes_are_problems_of_check_data(tmp_path: Path) -> None:
    truth = content(annotations=[{**content()["annotations"][0], "area": -1}] * 61)
    found = check_split(folder_with(tmp_path / "data", truth, PLAIN), "val")
    assert any("an image has 61 objects" in problem for problem in found.problems)
    assert any("61 annotations have an area" in problem for problem in found.problems)


def test_w8_what_was_left_out_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert annotated(bbox=[1, 2, 0, 5]).dropped == {"empty or outside the image": 1}
    shutil.copytree(finished / "data", tmp_path / "data")
    file = tmp_path / "data/annotations/instances_val.json"
    truth = json.loads(file.read_text())
    truth["annotations"][0]["bbox"][2] = 0
    file.write_text(json.dumps(truth))
    options = ["--checkpoint", finished / "run/best.pt", "--dataset-dir", tmp_path / "data", "--device", "cpu"]
    assert evaluate.main([*map(str, options), "--workers", "0"]) == 0
    assert "1 boxes dropped (empty or outside the image)" in capsys.readouterr().out


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_w9_levels_of_16_bit_images(bits: int) -> None:
    levels = np.linspace(0, (1 << bits) - 1, 256).round().astype(np.uint16).reshape(16, 16)
    grey = np.asarray(open_image(Image.fromarray(levels)))[..., 0]
    assert np.abs(grey.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


# Usable data that was refused


def test_r1_a_category_that_only_groups_others() -> None:
    roboflow = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
        {"id": 2, "name": "dog", "supercategory": "cat"},
    ]
    annotations = check_annotations(content(categories=roboflow), "f.json")
    assert annotations.classes == Classes(("cat", "dog"), (1, 2))
    assert annotations.about_groups == ["category 'cat' only groups others, and is no class"]
    assert annotations.notes == ()


def test_r1_a_group_with_objects_is_a_class() -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog", "supercategory": "cat"}]
    assert len(check_annotations(content(categories=categories), "f.json").classes) == 2


def test_r2_a_subset_of_the_classes_is_measured(tmp_path: Path) -> None:
    data = folder_with(tmp_path / "data", content(), PLAIN)
    dataset = open_split(DataConfig(dataset_dir=str(data)), "val", 8)
    assert classes_in(dataset, Classes(("bird", "dog", "cat"), (7, 8, 9))).category_ids == (0, 2, 1)
    with pytest.raises(InputError, match="'dog' is not among the model's"):
        classes_in(dataset, Classes(("cat", "bird"), (1, 2)))


def test_r3_a_byte_order_mark_and_names_of_other_systems(tmp_path: Path) -> None:
    truth = content()
    truth["images"][0]["file_name"] = "sub\\1.png"
    truth["images"][1]["file_name"] = "Zu\u0308rich.png"
    data = folder_with(tmp_path / "data", truth, {})
    (data / "val/sub").mkdir(parents=True)
    PLAIN["1.png"].save(data / "val/sub/1.png")
    PLAIN["2.png"].save(data / "val/Z\u00fcrich.png")
    file = data / "annotations/instances_val.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(truth).encode())
    dataset = open_split(DataConfig(dataset_dir=str(data), image_size=64, max_size=64), "val", 8)
    for i in range(2):
        assert not isinstance(dataset[i], InputError)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 11, 2, 11, 14, 1, 14]],
        [[1, 2, 5, 2, 5, 5], [6, 6, 11, 14, 8, 9]],
        {"size": [30, 40], "counts": [32, 12, *[18, 12] * 9, 846]},
        mask.encode(np.asfortranarray(np.pad(np.ones((12, 10), np.uint8), ((2, 16), (1, 29))))),
    ],
    ids=["polygon", "polygons", "counts", "compressed"],
)
@pytest.mark.parametrize("missing", [True, False])
def test_r4_the_box_of_a_segmentation(segmentation: Any, missing: bool) -> None:
    first, second = content()["annotations"]
    first = {**first, "segmentation": segmentation, "bbox": None}
    if missing:
        del first["bbox"]
    annotations = check_annotations(content(annotations=[first, second]), "f.json")
    assert annotations.to_coco()["annotations"][0]["bbox"] == [1, 2, 10, 12]


def test_r4_one_bad_annotation_is_one_problem() -> None:
    first, second = content()["annotations"]
    problems: list[str] = []
    raw = content(annotations=[{**first, "bbox": None}, {**first, "bbox": None, "segmentation": [["x"]]}, second])
    annotations = check_annotations(raw, "f.json", problems.append)
    assert len(annotations.to_coco()["annotations"]) == 1
    assert len(problems) == 2
    assert problems[0].startswith("f.json: annotation 5 (1.png) has no box: bbox is None")


def test_r5_numbers_written_as_text() -> None:
    raw = json.loads(json.dumps(content()).replace('"id": 1', '"id": "1"').replace('"image_id": 1', '"image_id": "1"'))
    annotations = check_annotations(raw, "f.json")
    assert [record.image_id for record in annotations.records] == [1, 2]
    assert annotations.classes.category_ids == (1, 2)
    with pytest.raises(InputError, match=r"images\[0\] must have a whole number as 'id', got '1a'"):
        check_annotations(content(images=[{**content()["images"][0], "id": "1a"}]), "f.json")


def test_r7_whatever_holds_an_image(tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", 3, **TINY)
    PLAIN["2.png"].save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    entry = next(os.scandir(tmp_path))
    want = model.predict(tmp_path / "a.png", 0.0).scores
    for source in (str(tmp_path / "a.png"), data, bytearray(data), io.BytesIO(data), entry, PLAIN["2.png"]):
        assert torch.equal(model.predict(source, np.float32(0)).scores, want)
    with pytest.raises(InputError, match=r"an image must be a path, an https address, .*, got NoneType"):
        model.predict([None])  # type: ignore[list-item]


# What a newcomer meets


def found() -> Detections:
    boxes = torch.tensor([[1.0, 2, 11, 22], [5, 5, 9, 9], [0, 0, 3, 3]])
    return Detections.of(boxes, torch.tensor([0.9, 0.6, 0.2]), torch.tensor([0, 1, 0]), Classes(("cat", "dog"), (7, 3)))


def test_n1_detections_are_a_sequence(tmp_path: Path) -> None:
    all_of_them = found()
    assert len(all_of_them) == 3
    assert bool(all_of_them)
    assert not all_of_them[:0]
    assert all_of_them[0] == Detection((1, 2, 11, 22), pytest.approx(0.9), 0, "cat", 7)
    assert [each.name for each in all_of_them] == ["cat", "dog", "cat"]
    assert all_of_them[-1].score == pytest.approx(0.2)
    for some in (all_of_them[[0, 2]], all_of_them[all_of_them.labels == 0], all_of_them.of_classes("cat")):
        assert some.names == ["cat", "cat"]
        assert some.boxes.shape == (2, 4)
    assert all_of_them[np.array([True, False, False])].category_ids == [7]
    assert len(all_of_them.above(0.5)) == 2
    assert "cat 0.90" in repr(all_of_them)
    with pytest.raises(IndexError):
        all_of_them[3]


def test_n1_detections_can_be_written(tmp_path: Path) -> None:
    detections = found()
    first = {"class": "cat", "category_id": 7, "score": 0.9, "box": [1.0, 2.0, 11.0, 22.0]}
    assert detections.to_dicts()[0] == first
    assert json.loads(detections.to_json())[0] == first
    result = detections.to_coco(42)[0]
    assert (result["image_id"], result["category_id"], result["bbox"]) == (42, 7, [1, 2, 10, 20])
    detections.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())[0] == first
    with pytest.raises(InputError, match="these detections do not know their image"):
        detections.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.xyz should end in"):
        detections.save(tmp_path / "a.xyz")
    assert detections._repr_png_() is None


def test_n1_detections_know_their_image(tmp_path: Path) -> None:
    model = ConditionalDETR.from_preset("shapes", 3, **TINY)
    PLAIN["1.png"].save(tmp_path / "a.png")
    detections = model.predict(tmp_path / "a.png", 0.0)
    png = detections._repr_png_()
    assert png is not None
    assert Image.open(io.BytesIO(png)).width == 427  # enlarged
    for name in ("b.png", "b.jpg"):
        detections.save(tmp_path / name)
        assert Image.open(tmp_path / name).size == Image.open(io.BytesIO(png)).size


def test_n1_supervision_takes_them() -> None:
    supervision = pytest.importorskip("supervision")
    theirs = found().to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs.data["class_name"].tolist() == ["cat", "dog", "cat"]


# Safety


def test_s11_only_images_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match=r"a\.jpg cannot be read: it is no image in a format of JPEG, PNG"):
        open_image(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png cannot be read: it is no regular file"):
        open_image(tmp_path / "pipe.png")
    Image.new("1", (13300, 13300)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png cannot be read: it has 13300x13300 pixels, more than"):
        open_image(tmp_path / "large.png")


def test_s11_annotations_in_a_pipe(tmp_path: Path) -> None:
    data = folder_with(tmp_path / "data", content(), PLAIN)
    (data / "annotations/instances_val.json").unlink()
    os.mkfifo(data / "annotations/instances_val.json")
    with pytest.raises(InputError, match=r"instances_val\.json"):
        open_split(DataConfig(dataset_dir=str(data)), "val", 8)


def test_s15_links_are_followed_and_names_stay_inside(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    PLAIN["1.png"].save(elsewhere)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/linked.png").symlink_to(elsewhere)
    load = FolderLoader(tmp_path / "images")
    assert load("linked.png", (40, 30)).size == (40, 30)
    for name in ("../elsewhere.png", str(elsewhere), "..\\elsewhere.png", "a/../../elsewhere.png"):
        with pytest.raises(InputError, match=r"is outside its folder|has an absolute path"):
            load(name, (40, 30))


def test_presets_name_what_w6_counts() -> None:
    assert preset("small").model.num_queries == 60


def test_s13_what_a_file_says_does_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.fail("class '\x1b[31mred' of a\rb\u202e")
    assert capsys.readouterr().err == "error: class '\\x1b[31mred' of a b\\u202e\n"


@pytest.mark.parametrize("shape", [(1, 0, 2**62), (0, 10**12), (0, 3, 4), (5, 0), (2**40, 0)])
def test_s14_costs_without_an_entry(shape: tuple[int, ...]) -> None:
    wanted = (*shape[:-2], min(shape[-2:]))
    costs: list[Any] = [torch.empty(shape)]
    if max(shape) < 2**62:  # which NumPy refuses itself
        costs.append(np.empty(shape))
    for cost in costs:
        rows, cols = linear_sum_assignment(cost)
        assert rows.shape == cols.shape == wanted
    if len(shape) == 2 and max(shape) < 2**40:
        theirs = scipy.optimize.linear_sum_assignment(np.empty(shape))
        assert [each.shape for each in theirs] == [wanted, wanted]


def test_r11_texts_are_no_costs() -> None:
    for solve in (linear_sum_assignment, scipy.optimize.linear_sum_assignment):
        with pytest.raises(TypeError, match="Cannot cast array data"):
            solve(np.array([["a", "b"], ["c", "d"]]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["attention-maps"], "unknown command 'attention-maps'; did you mean attention?"),
        (["xyz"], "unknown command 'xyz'; there are check-data, convert-data, pack"),
        (["train", "--fused_attn"], "did you mean --fused-attn?"),
        (["train", "--epcohs", "3"], "did you mean --epochs?"),
        (["predict", "--treshold=0.5", "a.png", "--checkpoint", "x", "--output-dir", "y"], "did you mean --threshold?"),
        (["--version"], "cond-detr 0"),
    ],
)
def test_r10_the_nearest_that_exists(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cond-detr", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert sentence in said.err + said.out
    assert stop.value.code == (0 if arguments == ["--version"] else 2)


def test_n8_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(interrupted)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_n8_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ConditionalDETR.from_preset("shapes", 3, **TINY)
    model.save(tmp_path / "a.pt")
    for name, image in PLAIN.items():
        image.save(tmp_path / name)
    seen: list[Any] = []

    def detect(*arguments: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    real = predict.detect
    monkeypatch.setattr(predict, "detect", detect)
    photos = [str(tmp_path / name) for name in PLAIN]
    with pytest.raises(KeyboardInterrupt):
        predict.main([*photos, "--checkpoint", str(tmp_path / "a.pt"), "--output-dir", str(tmp_path / "out")])
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 1


class Server(http.server.BaseHTTPRequestHandler):
    """Says that a file has 100 bytes, and sends 10."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    def log_message(self, *_: Any) -> None:
        pass


def test_s12_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"http://example\.org/a\.pt is not https"):
        open_source("http://example.org/a.pt")
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(InputError, match="cannot be downloaded: it was cut off after 10 of 100 bytes"):
            open_source(f"http://127.0.0.1:{server.server_port}/a.pt")
    finally:
        server.shutdown()
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("cond_detr.download.PATIENCE", 0.2)
    with pytest.raises(InputError, match="cannot be downloaded"):
        open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/a.pt")
    silent.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_s7_a_run_that_was_killed_before_its_log_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = folder_with(tmp_path / "data", content(), PLAIN)
    options = ["--preset", "shapes", "--dataset-dir", str(data), "--epochs", "2", "--batch-size", "2", "--workers", "0"]
    assert train.main([*options, "--device", "cpu", "--image-size", "32", "--output-dir", "runs/a"]) == 0
    log = Path("runs/a/log.jsonl")
    whole = log.read_text()
    log.write_text(whole.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="nothing to resume, no unfinished run"):
        train.main(["--resume", "--device", "cpu"])
    assert log.read_text() == whole


def test_s4_one_run_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_with(tmp_path / "data", content(), PLAIN)
    options = ["--preset", "shapes", "--dataset-dir", str(data), "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    options += ["--device", "cpu", "--image-size", "32", "--output-dir", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    with (
        files.locked(tmp_path / "run/run.lock"),
        pytest.raises(InputError, match=rf"run is in use by process {os.getpid()}"),
    ):
        train.main(options)
    assert list((tmp_path / "run").iterdir()) == []
    assert train.main(options) == 0
    assert not (tmp_path / "run/run.lock").exists()


@pytest.mark.parametrize("content", [b"mine", b"\0" * 400 + b"mine", b"process 1 on a\n" + b"b" * 400])
def test_a_lock_of_somebody_else_is_not_removed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_bytes(content)
    with pytest.raises(InputError, match="no lock of a run"), files.locked(tmp_path / "run.lock"):
        pass
    assert (tmp_path / "run.lock").read_bytes() == content


def test_s4_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from cond_detr.files import locked\n"
    program += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run.lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=f"is in use by process {other.pid} on "),
            files.locked(tmp_path / "run.lock"),
        ):
            pass
        other.kill()
    with files.locked(tmp_path / "run.lock"):
        pass


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_s8_a_lost_block_is_found(name: str, tmp_path: Path) -> None:
    whole = (Path(__file__).parents[1] / f"data/{name.replace('.pt', '-0.1.0.pt')}").read_bytes()
    for i in range(48):
        at = (len(whole) - 4096) * i // 47
        damaged = bytearray(whole)
        damaged[at : at + 4096] = bytes(byte ^ 0x5A for byte in whole[at : at + 4096])
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=name):
            Checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_s10_a_lost_loading_process(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cond_detr.data.loading.PATIENCE", 3)
    data = folder_with(tmp_path / "data", content(), PLAIN)
    dataset = open_split(DataConfig(dataset_dir=str(data), image_size=32, max_size=64), "val", 8)
    loader = eval_loader(dataset, 1, 1, False, 0, 1)

    class Harmful(type(dataset)):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            os.kill(os.getpid(), number)
            return super().__getitem__(index)

    dataset.__class__ = Harmful
    with pytest.raises(InputError, match=r"a process that loads images (is gone|gave nothing for 3 seconds)"):
        list(checked(loader))
    for child in multiprocessing.active_children():
        child.kill()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("epcohs", r"did you mean epochs\?"),
        ("model", "it is called kind"),
        ("num_queries", "it belongs to from_preset"),
        ("xyz", "there are accumulate, amp"),
    ],
)
def test_r10_keywords(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"unknown setting '{name}' for train; {sentence}"):
        ConditionalDETR.from_preset("shapes", 3).train(**{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", ["0", "1"])
def test_r10_limits_are_those_of_python(threshold: str) -> None:
    given = ["--checkpoint", "a.pt", "--output-dir", "out", "--threshold", threshold, "a.jpg"]
    assert predict.parser().parse_args(given).threshold == float(threshold)


def test_r10_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parser().parse_args(["--epoch", "2"])
    assert "did you mean --epochs?" in capsys.readouterr().err


def test_r10_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    ConditionalDETR.from_preset("shapes", 3, **TINY).save(tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"is a folder; its best model is .*best\.pt"):
        ConditionalDETR.from_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"best\.pt is a file; give the folder of the run"):
        report.main([str(tmp_path / "best.pt")])
    with pytest.raises(InputError, match=r"checkpoint .*/last\.pt does not exist"):
        train.main(["--resume", str(tmp_path), "--device", "cpu"])


def test_fractions_of_a_whole() -> None:
    assert ConditionalDETR.from_preset("shapes", 3, min_scale=1).config.data.min_scale == 1
    with pytest.raises(InputError, match=r"`min_scale` must be a number of at least 0\.05 and at most 1, got 5"):
        ConditionalDETR.from_preset("shapes", 3, min_scale=5)


# After a review


def test_indices_in_any_order() -> None:
    assert found()[[2, 0]].above(0.5).names == ["cat"]
    assert [each.score for each in found()[::-1]] == [each.score for each in found()][::-1]
    assert len(found()[[]]) == 0


def test_a_file_of_settings_means_what_options_mean(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for values in ({"lr_drop": 40, "epochs": 50}, {"image_size": 400}, {"cuda_graphs": True}, {"kind": "detr"}):
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            sections.setdefault(all_settings(Config)[name].section, {})[name] = value
        path.write_text(json.dumps(sections))
        assert read_config(path) == configured("r50", values)
    path.write_text(json.dumps(to_dict(preset("small"))))
    assert read_config(path) == preset("small")
    options = vars(train.parser().parse_args(["--config", str(path), "--model", "detr"]))
    with pytest.raises(InputError, match="is of a conditional-detr, and `kind` detr has other losses"):
        train.new_config(options)


def test_r4_a_segmentation_without_points() -> None:
    first, second = content()["annotations"]
    problems: list[str] = []
    raw = content(annotations=[{**first, "bbox": None, "segmentation": [[]]}, second])
    assert len(check_annotations(raw, "f.json", problems.append).to_coco()["annotations"]) == 1
    assert "has no box" in problems[0]


def test_s4_a_lock_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """One waits to lock the file, the owner removes it, and somebody makes a new one."""
    lock = tmp_path / "run.lock"
    real = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        if not removed:
            removed.append(True)
            lock.unlink()
        real(file, operation)

    removed: list[bool] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files.fcntl, "flock", flock)
        with files.locked(lock):
            assert lock.read_text().startswith(f"process {os.getpid()} on")
            with pytest.raises(InputError, match="is in use"), files.locked(lock):
                pass


def test_s4_a_file_system_without_locks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files.fcntl, "flock", flock)
        with files.locked(tmp_path / "run.lock"):
            pass
    assert "file system without locks" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["notes", "link", "dangling link", "pipe", "folder", "socket"])
def test_s4_what_is_no_lock_is_left_alone(kind: str, tmp_path: Path) -> None:
    lock, notes = tmp_path / "run.lock", tmp_path / "notes"
    notes.write_text("my notes")
    with socket.socket(socket.AF_UNIX) as server:
        {
            "notes": lambda: notes.rename(lock),
            "link": lambda: lock.symlink_to(notes),
            "dangling link": lambda: lock.symlink_to(tmp_path / "none"),
            "pipe": lambda: os.mkfifo(lock),
            "folder": lock.mkdir,
            "socket": lambda: server.bind(str(lock)),
        }[kind]()
        before = lock.lstat()
        with pytest.raises(InputError, match=r"run\.lock is no lock of a run, and would be lost"), files.locked(lock):
            pass
    assert lock.lstat().st_ino == before.st_ino
    assert (lock if kind == "notes" else notes).read_text() == "my notes"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("left", ["", "\0" * 40, "process 123 on a-host.example\n"])
def test_s4_a_lock_that_a_killed_run_has_left(left: str, tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    lock.write_text(left)
    with files.locked(lock):
        assert lock.read_text().startswith(f"process {os.getpid()} on")
    assert not lock.exists()


def test_what_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("none", "does not exist"), (".", "is a folder"), ("pipe", "is no regular file")):
        with pytest.raises(InputError) as raised:
            files.read_text(tmp_path / name, "log")
        assert str(raised.value) == f"log {tmp_path / name} {why}"


def test_names_cannot_look_like_lines(capsys: pytest.CaptureFixture[str]) -> None:
    errors.tell("wrote a\x1b[31m\nwrote b", "wrote c\udce9")
    assert capsys.readouterr().out == "wrote a\\x1b[31m\\nwrote b\nwrote c\\udce9\n"


def test_s5_errors_name_the_file_that_was_meant(tmp_path: Path) -> None:
    for path in (tmp_path / "none/a.json", tmp_path / ("中" * 85)):
        with contextlib.suppress(InputError):
            files.write_json(path, {})
            assert path.exists()
    with pytest.raises(InputError, match=r"none/a.json cannot be written: folder .*none does not exist"):
        files.write_json(tmp_path / "none/a.json", {})


def test_s11_names_that_no_file_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read|does not exist"):
        FolderLoader(tmp_path)("x" * 300, (40, 30))


def test_s12_redirections_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Redirects(Server):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://example.org/a.pt")
            self.end_headers()

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    server = http.server.HTTPServer(("127.0.0.1", 0), Redirects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(InputError, match=r"http://example\.org/a\.pt is not https"):
            open_source(f"http://127.0.0.1:{server.server_port}/a.pt")
    finally:
        server.shutdown()


@pytest.mark.parametrize("arguments", [{"batch_size": -1}, {"batch_size": "x"}, {"workers": -1}, {"workers": 1.5}])
def test_evaluation_checks_its_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"`(eval_batch_size|workers)` must be a whole number"):
        ConditionalDETR.from_preset("shapes", 6, **TINY).evaluate(**arguments)


def test_resume_does_not_move_a_run(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(InputError, match="goes on in its own folder"):
        train.main(["--resume", str(tmp_path / "last.pt"), "--output-dir", str(tmp_path / "b"), "--device", "cpu"])


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"]])
def test_a_reader_that_has_seen_enough(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cond_detr", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(write)
    assert done.stderr == ""


@pytest.mark.parametrize("stream", ["1>&-", "1>/dev/full", "2>&-", "2>/dev/full"])
def test_outputs_that_cannot_be_written(stream: str) -> None:
    """As of services, and on full disks."""
    wanted = {
        "1>&-": (0, ""),
        "1>/dev/full": (2, "error: the output: No space left on device\n"),
        "2>&-": (2, ""),
        "2>/dev/full": (2, ""),
    }
    command = "nonsense" if stream[0] == "2" else "--version"
    call = f"exec '{sys.executable}' -m cond_detr {command} {stream}"
    done = subprocess.run(["sh", "-c", call], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == wanted[stream]
    assert stream == "1>&-" or not done.stdout


@pytest.mark.parametrize("closed", ["<&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_files_do_not_take_the_place_of_streams(closed: str, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from cond_detr import cli\n"
        "def command(_):\n"
        "    with open(sys.argv[1], 'wb') as file:\n"
        "        os.write(2, b'a warning of a library')\n"
        "        file.write(bytes([file.fileno()]))\n"
        "cli.run(command, [])\n"
    )
    call = f"exec '{sys.executable}' -c \"$0\" '{tmp_path / 'result'}' {closed}"
    subprocess.run(["sh", "-c", call, program], capture_output=True)
    assert (tmp_path / "result").read_bytes() > bytes([2])
    assert len((tmp_path / "result").read_bytes()) == 1


@pytest.mark.parametrize(("stream", "code"), [("2>&-", 130), ("2>/dev/full", 130)])
def test_an_interruption_that_cannot_be_told(stream: str, code: int) -> None:
    program = (
        "from cond_detr import cli, progress\n"
        "def command(_):\n"
        "    list(progress.bar([1]))\n"
        "    raise KeyboardInterrupt\n"
        "cli.run(command, [])\n"
    )
    call = f"exec '{sys.executable}' -c '{program}' {stream}"
    done = subprocess.run(["sh", "-c", call], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")


def test_r1_categories_that_only_group_each_other() -> None:
    """Nothing tells which of them are classes."""
    circle = [{"id": 1, "name": "a", "supercategory": "b"}, {"id": 2, "name": "b", "supercategory": "a"}]
    assert check_annotations(content(categories=circle, annotations=[]), "f.json").classes.names == ("a", "b")
    twice = [{"id": 0, "name": "g"}, {"id": 0, "name": "g"}, {"id": 2, "name": "b", "supercategory": "g"}]
    with pytest.raises(InputError, match="category id 0 is used more than once"):
        check_annotations(content(categories=twice), "f.json")


def test_an_interruption_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_module", interrupted)
    monkeypatch.setattr("sys.argv", ["cond-detr", "train"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_w7_what_counts_is_the_size_that_the_network_gets(tmp_path: Path) -> None:
    """A 24x24 image is enlarged; of a 4000x36 one the network sees lines."""
    size = InputSize(800, 1333, 32)
    size.check((24, 24), "image a")
    with pytest.raises(InputError, match="image b of 4000x36 pixels is too narrow: the network gets 1333x12"):
        size.check((4000, 36), "image b")
    sizes = {"0.png": (24, 24), "1.png": (900, 9)}
    images = [{"id": i, "file_name": name, "width": w, "height": h} for i, (name, (w, h)) in enumerate(sizes.items())]
    pictures = {name: Image.new("RGB", each) for name, each in sizes.items()}
    data = folder_with(tmp_path / "data", content(images=images, annotations=[]), pictures)
    (problem,) = [each for each in check_split(data, "val").problems if "narrow" in each]
    assert problem.startswith("for preset small, image 1.png of 900x9 pixels is too narrow")


PROGRESS = {
    "epoch": [-1, 1.5, "1", None, [1], 10**30, math.nan],
    "step": [-1, 2**70, "0", None, {}],
    "seconds": [math.inf, math.nan, -1.0, "x"],
    "loss_sums": [[1.0], [math.nan] * 4, "four", None],
    "best_ap": [math.inf, "x", None],
    "history": [None, [1], [{"epoch": "1"}], {"a": 1}],
    "num_images": [0, "8", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in PROGRESS.items() for value in values])
def test_s9_damaged_progress(name: str, value: Any, tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "data/last-0.1.0.pt"
    saved = torch.load(file, weights_only=True)
    assert name in saved["progress"]
    saved["progress"][name] = value
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt .*progress"):
        Checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_r8_other_systems_are_refused_in_a_sentence(platform: str) -> None:
    """README and metadata say Linux as well."""
    root = Path(__file__).parents[2]
    code = f"import runpy, sys; main = runpy.run_path('setup.py')['main']; sys.platform = {platform!r}; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode
    assert "Linux" in done.stderr.strip().splitlines()[-1]
    assert "Operating System :: POSIX :: Linux" in (root / "pyproject.toml").read_text()
    assert "On Linux, `pip install" in (root / "README.md").read_text()


@pytest.mark.parametrize("picture", [Image.new("RGB", (9, 9)), Figure((1, 1))], ids=["predictions", "metrics"])
def test_n5_who_looks_at_a_picture_sees_the_last_one_or_the_next(
    picture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    write_picture(path, picture, "train")
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.append(Image.open(path).copy().size))
    write_picture(path, Image.new("RGB", (30, 40)), "train")
    assert seen[0] != (30, 40)
    assert Image.open(path).size == (30, 40)
