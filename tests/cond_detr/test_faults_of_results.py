"""Faults of pictures, reports and files that people look at or hand on. One test for each kind."""

import contextlib
import io
import json
import logging
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import ConditionalDETR, Detections, InputError, __version__, draw_detections, preset
from cond_detr.boxes import iou
from cond_detr.check_data.findings import check_split, compare, contact_sheet
from cond_detr.classes import Classes
from cond_detr.config import DataConfig
from cond_detr.data import open_split
from cond_detr.evaluate import __main__ as evaluate
from cond_detr.export import Exported, export
from cond_detr.export.about import About
from cond_detr.files import write_json
from cond_detr.predict import __main__ as predict
from cond_detr.predict.lettering import (
    PALETTE,
    class_colour,
    families,
    font_for,
    in_figure,
    legible,
    place_label,
    text_colour,
)
from cond_detr.report import __main__ as report
from cond_detr.train import __main__ as train
from cond_detr.train.curves import metrics_figure
from cond_detr.train.pace import Pace, duration, progress_bar
from cond_detr.train.recorder import preview
from tests.cond_detr.conftest import SMALL, exit_code
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def test_n2_a_report_of_a_run_that_has_learnt_nothing(finished: Path, tmp_path: Path) -> None:
    """No image is called the best for lack of objects, no attention is drawn for lack of detections."""
    shutil.copytree(finished / "data", tmp_path / "data")
    file = tmp_path / "data/annotations/instances_val.json"
    truth = json.loads(file.read_text())
    empty = truth["images"][0]
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] != empty["id"]]
    write_json(file, truth)
    assert (
        exit_code(report.main, finished / "run", "--dataset-dir", tmp_path / "data", "--output", tmp_path / "a.html")
        == 0
    )
    page = (tmp_path / "a.html").read_text()
    assert f"{empty['file_name']}:" not in page
    assert "No detection has a score of 0.3 or more." in page
    for text in ("AP75", ">small</th>", "of which 1 was the best", f"cond-detr {__version__}", "detections: 0"):
        assert text in page
    assert "prefers-color-scheme: dark" in page
    assert "overflow-x: auto" in page


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_n3_an_exported_file_says_what_it_wants(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    model = ConditionalDETR.from_checkpoint(finished / "run/best.pt")
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error", FutureWarning)
        export(model, tmp_path / "x.onnx")
    assert "torchvision" not in capfd.readouterr().err + caplog.text
    graph = onnx.load(tmp_path / "x.onnx").graph
    sizes = [size.dim_param or size.dim_value for size in graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    assert [value.name for value in graph.output] == ["scores", "labels", "boxes"]
    about = Exported(tmp_path / "x.onnx").about
    assert (about.layout, about.scale, about.mean[0], about.std[0]) == ("NCHW, RGB", 1 / 255, 0.485, 0.229)


@pytest.mark.parametrize("wrong", [{"image_size": 2**62}, {"stride": 0}, {"stride": 2**62}, {"max_size": "x"}])
def test_s6_sizes_in_exported_files_have_limits(wrong: dict[str, Any]) -> None:
    right = {"classes": {"names": ["a"], "category_ids": [1]}, "image_size": 64, "max_size": 90, "stride": 16}
    assert About.read(json.dumps(right)).image_size == 64
    with pytest.raises(InputError, match=next(iter(wrong))):
        About.read(json.dumps({**right, **wrong}))


def test_n4_labels_lie_apart() -> None:
    """In a row with room for all; "0.43" above "0.37" would read "0.437"."""
    taken: list[tuple[float, ...]] = []
    for i in range(4):
        box = (100.0 + 2 * i, 100.0, 160.0 + 2 * i, 150.0)
        taken.append(place_label(box, (50, 16), np.array(taken).reshape(-1, 4), (400, 300)))
    boxes = torch.tensor(taken)
    assert all(iou(a, b) == 0 for a, b in combinations(boxes, 2))
    assert all(a[0] >= 0 and a[2] <= 400 and a[1] >= 0 and a[3] <= 300 for a in taken)


def seen_by_deuteranopes(colour: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """A colour without its difference of red and green (Vienot, Brettel and Mollon, 1999), linear RGB."""
    r, g, b = (np.array(colour) / 255) ** 2.2
    both = 0.29275 * r + 0.70725 * g
    return np.array([both, both, -0.02234 * r + 0.02234 * g + b])


def test_n4_colours_of_the_first_classes_are_told_apart() -> None:
    assert len({class_colour(i) for i in range(3 * len(PALETTE))}) == 3 * len(PALETTE)
    for a, b in combinations(map(class_colour, range(len(PALETTE))), 2):
        assert np.abs(seen_by_deuteranopes(a) - seen_by_deuteranopes(b)).max() > 0.06, (a, b)
    assert text_colour((240, 228, 66)) == (0, 0, 0)
    assert text_colour((0, 60, 100)) == (255, 255, 255)


def test_n4_names_of_any_script(tmp_path: Path) -> None:
    font = font_for(["猫"], 13)
    written = legible("a猫", font)
    assert written in {"a猫", "a<732B>"}  # by what is installed, and never an empty square
    assert "LastResort" not in str(font.path)
    classes = Classes(("猫", "a$b$c", "naïve"), (1, 2, 3))
    found = Detections.of(torch.tensor([[2.0, 3, 30, 40]] * 3), torch.tensor([0.9, 0.8, 0.7]), torch.arange(3), classes)
    drawn = draw_detections(Image.new("RGB", (80, 60)), found, found)
    bare = draw_detections(Image.new("RGB", (80, 60)), found, labels=False)
    assert not np.array_equal(drawn, bare)
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    for name in classes.names:
        axes.plot([0, 1], label=in_figure(name))
    axes.legend(prop={"family": families(classes.names)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(tmp_path / "a.png")


def test_n4_ground_truth_is_seen_on_white() -> None:
    nothing = Detections.of(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), Classes(("a",), (1,)))
    drawn = np.asarray(
        draw_detections(Image.new("RGB", (400, 400), "white"), nothing, torch.tensor([[50.0, 60, 200, 300]]))
    )
    assert drawn.min() == 0


def test_n4_a_preview_before_anything_is_learnt(finished: Path) -> None:
    model = ConditionalDETR.from_checkpoint(finished / "run/best.pt")
    dataset = open_split(DataConfig(dataset_dir=str(finished / "data"), image_size=64, max_size=64), "val", 8)
    record = dataset.annotations.records[0]
    alone = draw_detections(
        dataset.load(record.file_name, record.size), model.predict(np.zeros((64, 64, 3), np.uint8), 1.0)
    )
    assert not np.array_equal(np.asarray(preview(model, dataset))[8:328, 8:328], np.asarray(alone))


def test_n6_detections_can_be_scored(finished: Path, tmp_path: Path) -> None:
    """By the ids of the data set, and whatever the threshold of the pictures."""
    truth = finished / "data/annotations/instances_val.json"
    checkpoint = ["--checkpoint", finished / "run/best.pt", "--device", "cpu", "--output-dir", tmp_path]
    images = [finished / "data/val", "--threshold", 0.9]
    assert exit_code(predict.main, *checkpoint, *images, "--annotations", truth) == 0
    results = json.loads((tmp_path / "coco_results.json").read_text())
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(None):
        coco = COCO(str(truth))
        scored = COCOeval(coco, coco.loadRes(results), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    assert exit_code(evaluate.main, *checkpoint[:2], *checkpoint[2:], "--workers", 0) == 0
    assert scored.stats[0] == pytest.approx(json.loads((tmp_path / "results.json").read_text())["AP"], abs=1e-9)
    other = Image.new("RGB", (40, 30))
    other.save(tmp_path / "unknown.png")
    assert exit_code(predict.main, *checkpoint, tmp_path / "unknown.png", "--annotations", truth) == 2


@pytest.mark.parametrize("epochs", [1, 2, 3, 11])
def test_n7_curves_in_percent_and_whole_epochs(epochs: int) -> None:
    losses = dict.fromkeys(("train_loss", "train_loss_classification", "train_loss_l1", "train_loss_giou"), 1.0)
    history = [{"epoch": i + 1, "AP": 0.5, "AP50": 0.7, "AP75": None, **losses} for i in range(epochs)]
    figure = metrics_figure(history)
    precision = figure.axes[1]
    assert precision.get_ylabel() == "average precision, %"
    assert precision.lines[0].get_ydata()[0] == 50
    figure.canvas.draw()
    assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())


def test_n9_time_left() -> None:
    pace = Pace(steps=100, epochs=3)
    assert pace.left(0, 10, 60.0) == "29 min"  # 290 steps of 6 s
    assert pace.left(0, 20, 70.0) == "5 min"  # of 1 s since then
    pace.evaluation = 100.0
    assert pace.left(2, 10, 10.0) == "3 min"
    assert [duration(seconds) for seconds in (3, 130, 9000)] == ["3 s", "2 min", "2.5 h"]


def test_n9_the_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    bar = progress_bar(99, 300, 10_000, 59_143)
    bar.set_postfix_str("loss 12.345, 29.5 h left")
    shown = str(bar)
    bar.close()
    assert len(shown) <= 80
    assert "10000/59143" in shown
    assert shown.endswith("loss 12.345, 29.5 h left")
    assert len(shown.split("|")[1]) > 3


def test_n11_what_check_data_sees(tmp_path: Path) -> None:
    """Crowds and file names in sheets, boxes of two classes, images that are there twice."""
    box = {"bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2, 3)]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, **box},
        {"id": 2, "image_id": 1, "category_id": 2, **box},
        {"id": 3, "image_id": 2, "category_id": 2, **box, "bbox": [15, 5, 20, 20], "iscrowd": 1},
    ]
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        write_json(tmp_path / f"annotations/instances_{split}.json", truth)
        for i, colour in enumerate(("red", "red", "blue" if split == "val" else "green"), start=1):
            Image.new("RGB", (40, 30), colour).save(tmp_path / split / f"{i}.png")
    splits = [check_split(tmp_path, split) for split in ("train", "val")]
    assert "1 boxes have more than one class, such as 'a' and 'b' in 1.png" in splits[0].problems
    assert "1 images are there more than once, such as 1.png and 2.png" in splits[0].problems
    assert any(problem.startswith("2 images are in train and in val, such as") for problem in compare(splits))
    captions: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cond_detr.check_data.findings.sheet", lambda _, texts: captions.extend(texts))
        contact_sheet(splits[0], 3)
    assert captions == ["1.png", "2.png", "3.png"]
    with_crowd = np.asarray(contact_sheet(splits[0], 3))
    objects = splits[0].annotations.objects
    plain = replace(splits[0], annotations=replace(splits[0].annotations, objects=objects[~objects.crowds]))
    assert not np.array_equal(with_crowd, np.asarray(contact_sheet(plain, 3)))


def test_n12_a_checkpoint_says_what_it_is(finished: Path, tmp_path: Path) -> None:
    model = ConditionalDETR.from_checkpoint(finished / "run/best.pt")
    known = model.info()["trained"]
    results = json.loads((finished / "run/results.json").read_text())
    assert (known["epoch"], known["AP"], known["version"]) == (1, results["AP"], __version__)
    assert known["data"].endswith("instances_val.json")
    assert known["date"].startswith("20")
    for name in ("a.pt", "a.safetensors"):
        model.save(tmp_path / name)
        assert ConditionalDETR.from_checkpoint(tmp_path / name).info()["trained"] == known
    assert "trained" not in ConditionalDETR.from_preset("shapes", 2).info()


def test_n12_a_finished_run_goes_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    resume = ["--resume", "--output-dir", tmp_path / "run", "--workers", 0, "--device", "cpu"]
    assert exit_code(train.main, *resume) == 2
    assert exit_code(train.main, *resume, "--epochs", 2) == 0
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["epochs"] == 2


def test_r6_after_images_were_taken_out(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / "all")
    file = tmp_path / "all/data/annotations/instances_train.json"
    truth = json.loads(file.read_text())
    gone = truth["images"].pop()
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] != gone["id"]]
    write_json(file, truth)
    resume = ["--resume", "--output-dir", tmp_path / "all/run", "--epochs", 2, "--workers", 0, "--device", "cpu"]
    assert exit_code(train.main, *resume, "--dataset-dir", tmp_path / "all/data") == 2
    assert "was trained with other training images: 8, not 7; start a new run with --weights" in capsys.readouterr().err


def test_r9_second_derivatives_have_a_sentence() -> None:
    """They exist in the reference, and the kernels' documentation says so."""
    assert "conditional_attention_reference" in (Path(__file__).parents[2] / "docs/kernels.md").read_text()


def test_output_in_a_file_says_something_before_the_first_epoch_ends(finished: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=100, val=2)
    options = [*SMALL, "--dataset-dir", tmp_path / "data", "--epochs", 1, "--output-dir", tmp_path / "run"]
    command = [sys.executable, "-m", "cond_detr.train", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("time left   about") < done.stdout.index("epoch   1/1")
    assert preset("shapes").train.epochs > 1
