"""Prediction: the same boxes from the class and from the command, names in every output, and bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import ConditionalDETR, InputError, cli, preset
from cond_detr.check_data import __main__ as check_data
from cond_detr.classes import Classes
from cond_detr.pictures import is_made_by, write_picture
from cond_detr.predict import __main__ as predict
from cond_detr.predict.detections import Detections
from cond_detr.predict.drawing import SMALLEST_SIDE, draw_detections, sheet
from cond_detr.weights.checkpoint import Checkpoint

NAMES = ("Äpfel", "bear", "cat")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained model whose scores are above the threshold."""
    model = ConditionalDETR.new(preset("shapes"), Classes(NAMES, (3, 7, 90)))
    with torch.no_grad():
        model.network.class_head.bias.zero_()
    Checkpoint(tmp_path / "model.pt", model.config, model.classes, model.network.state_dict()).save()
    return tmp_path / "model.pt"


def run_predict(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(predict.main, ["--device", "cpu", *map(str, arguments)])
    return int(stop.value.code or 0)


def picture(path: Path, size: tuple[int, int] = (80, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_command_and_class_agree(checkpoint: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "images" / "a.png")
    out = tmp_path / "out"
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, "--threshold", 0.4, image) == 0
    (entry,) = json.loads((out / "predictions.json").read_text())
    (found,) = ConditionalDETR.from_checkpoint(checkpoint).predict([image], threshold=0.4)
    assert (entry["file"], entry["width"], entry["height"]) == (str(image), 80, 60)
    assert [d["class"] for d in entry["detections"]] == found.names
    assert set(found.names) <= set(NAMES)
    assert len(found.names) > 0
    scores = [d["score"] for d in entry["detections"]]
    assert scores == pytest.approx(found.scores.tolist(), abs=1e-4)
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose([d["box"] for d in entry["detections"]], found.boxes.numpy(), atol=0.01)
    with Image.open(out / "a.png") as drawn:
        assert min(drawn.size) == SMALLEST_SIDE


def test_every_kind_of_image_gives_the_same(checkpoint: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    model = ConditionalDETR.from_checkpoint(checkpoint)
    opened = Image.open(path)
    kinds = [path, str(path), opened, np.asarray(opened)]
    first, *others = model.predict(kinds, threshold=0.1)
    for other in others:
        assert torch.equal(first.boxes, other.boxes)
        assert first.names == other.names


def test_one_image_alone_needs_no_list(checkpoint: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    model = ConditionalDETR.from_checkpoint(checkpoint)
    (want,) = model.predict([path], threshold=0.4)
    for alone in (path, str(path), Image.open(path), np.asarray(Image.open(path))):
        found = model.predict(alone, threshold=0.4)
        assert torch.equal(found.boxes, want.boxes)
        assert found.category_ids == [{"Äpfel": 3, "bear": 7, "cat": 90}[name] for name in found.names]


def test_batches_patterns_and_coco_form(checkpoint: Path, tmp_path: Path) -> None:
    """Images in batches of one size come out as they do alone, in their order."""
    sizes = [(80, 60), (80, 60), (160, 120), (60, 80), (60, 80), (80, 60)]
    for i, size in enumerate(sizes):
        picture(tmp_path / "in" / f"{i}.png", size)
    (tmp_path / "in" / "4a.png").write_text("not an image")
    for out, more in (("alone", []), ("together", ["--batch-size", 4])):
        arguments = ["--checkpoint", checkpoint, "--output-dir", tmp_path / out, "--threshold", 0.1, *more]
        assert run_predict(*arguments, tmp_path / "in" / "?*.png") == 2
    alone, together = (json.loads((tmp_path / out / "predictions.json").read_text()) for out in ("alone", "together"))
    assert [Path(entry["file"]).name for entry in together] == [f"{i}.png" for i in range(6)]
    for one, other in zip(alone, together, strict=True):
        assert one["file"] == other["file"]
        for a, b in zip(one["detections"], other["detections"], strict=True):
            assert a["class"] == b["class"]
            np.testing.assert_allclose(a["box"], b["box"], atol=0.02)
    results = json.loads((tmp_path / "together" / "coco_results.json").read_text())
    assert len(results) == 6 * 25 * 3  # of every query and class, whatever their scores
    left, top, right, bottom = together[0]["detections"][0]["box"]
    first = results[0]
    assert (first["image_id"], first["category_id"] in {3, 7, 90}) == ("0.png", True)
    np.testing.assert_allclose(first["bbox"], [left, top, right - left, bottom - top], atol=0.02)


def test_memory_does_not_grow_with_the_images(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from cond_detr.predict import __main__ as predict; predict.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = ["--checkpoint", checkpoint, "--threshold", "0.9", "--device", "cpu"]
    peaks = []
    for count in (50, 200):
        folder = tmp_path / f"{count} images"
        folder.mkdir()
        for i in range(count):
            Image.new("RGB", (24, 16), "grey").save(folder / f"{i}.png")
        command = [sys.executable, "-c", code, "--output-dir", tmp_path / str(count), *arguments, f"{count} images"]
        done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert len(list((tmp_path / str(count)).glob("*.png"))) == count
        peaks.append(int(done.stdout.split()[-1]) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 5


def test_a_prediction_does_not_depend_on_its_company(checkpoint: Path, tmp_path: Path) -> None:
    images = [picture(tmp_path / "wide.png", (200, 50)), picture(tmp_path / "tall.png", (40, 90))]
    model = ConditionalDETR.from_checkpoint(checkpoint)
    alone = [model.predict([image])[0] for image in images]
    for together, one in zip(model.predict(images), alone, strict=True):
        assert torch.equal(together.boxes, one.boxes)


def test_folders_bad_images_and_equal_names(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one/a.png", "one/c.png", "two/a.png"):
        picture(tmp_path / name)
    (tmp_path / "one" / "b.png").write_text("not an image")
    (tmp_path / "one" / "notes.txt").write_text("ignored")
    out = tmp_path / "out"
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, tmp_path / "one", tmp_path / "two") == 2
    entries = json.loads((out / "predictions.json").read_text())
    assert [Path(e["file"]).relative_to(tmp_path).as_posix() for e in entries] == [
        "one/a.png",
        "one/c.png",
        "two/a.png",
    ]
    assert {p.name for p in out.iterdir()} == {"a.png", "c.png", "a-2.png", "predictions.json", "coco_results.json"}
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "b.png cannot be read" in errors[0]


def test_lists_of_others_stay(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And those of an earlier run, where a run finds no image."""
    photo, out = picture(tmp_path / "a.jpg", (60, 40)), tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--output-dir", str(out)]
    for name in ("predictions.json", "coco_results.json"):
        entry = '[{"file": "x", "picture": "0.png", "width": 1, "height": 1, "detections": '
        others = ['[{"picture": "0.png", "mine": 1}]', entry + '{"mine": 1}}]', entry + '[{"mine": 1}]}]']
        for own in ('{"my": "data"}', "[3]", "[]", "{}", "no JSON", *others):
            out.mkdir()
            (out / name).write_text(own)
            assert run_predict(*arguments, str(photo)) == 2
            assert f"{name} is not of an earlier run of predict; choose another" in capsys.readouterr().err
            assert (out / name).read_text() == own
            shutil.rmtree(out)
    assert run_predict(*arguments, str(photo)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run_predict(*arguments, "typo.jpg") == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")  # leads to itself
    assert run_predict(*arguments, str(tmp_path / "loop.jpg"), str(photo)) == 2
    assert "loop.jpg" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == before.keys()
    entry = '{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5'
    for own in ("mine", f'[{entry}, "track": 7}}]', f"[{entry}}}, {entry}}}]", f"[{entry}}}]"):
        (out / "coco_results.json").write_text(own)
        assert run_predict(*arguments, str(photo)) == 2
        assert (out / "coco_results.json").read_text() == own


def test_tiles_of_a_small_image_find_the_same(checkpoint: Path, tmp_path: Path) -> None:
    photo, found = picture(tmp_path / "a.jpg", (60, 40)), []
    for out, options in ("whole", ()), ("tiled", ("--tile", "640")):
        arguments = ["--checkpoint", checkpoint, "--output-dir", tmp_path / out, "--threshold", "0", *options, photo]
        assert run_predict(*map(str, arguments)) == 0
        found.append(json.loads((tmp_path / out / "predictions.json").read_text())[0]["detections"])
    assert found[0] == found[1]
    assert len(found[0]) == ConditionalDETR.from_checkpoint(checkpoint).config.model.num_queries


def test_names_are_cut_to_what_a_file_can_have(checkpoint: Path, tmp_path: Path) -> None:
    longest = picture(tmp_path / f"{'é' * 120}xxxxxxxxxxx.jpg", (60, 40))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{'é' * 120}xxxxxxxxxxx.png").write_text("somebody's")
    assert run_predict("--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "out"), str(longest)) == 0
    (entry,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert entry["picture"] == f"{'é' * 120}xxxxxxxxx-2.png"


def test_pictures_never_replace_photos(checkpoint: Path, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photos" / "a.png")
    before = photo.read_bytes()
    assert run_predict("--checkpoint", checkpoint, "--output-dir", photo.parent, photo.parent) == 0
    assert photo.read_bytes() == before
    assert (tmp_path / "photos" / "a-2.png").exists()


def test_a_picture_that_was_changed_since_stays(checkpoint: Path, tmp_path: Path) -> None:
    photos, out = [picture(tmp_path / f"{name}.png", (60, 40)) for name in "ab"], tmp_path / "out"
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, *photos) == 0
    Image.new("RGB", (5, 5)).save(out / "a.png")
    changed = (out / "a.png").read_bytes()
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, *photos) == 0
    assert (out / "a.png").read_bytes() == changed
    assert {path.stem for path in out.glob("*.png")} == {"a", "a-2", "b"}


def test_a_very_large_picture_is_known_again(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", Image.new("L", (12_000, 9_000)), "predict")
    assert is_made_by(tmp_path / "a.png", "predict")
    assert not is_made_by(tmp_path / "a.png", "check-data")
    write_picture(tmp_path / "large.png", Image.new("1", (20_000, 10_000)), "check-data")  # Pillow fears a bomb
    assert is_made_by(tmp_path / "large.png", "check-data")


def test_commands_do_not_replace_each_others_pictures(checkpoint: Path, tmp_path: Path) -> None:
    photo = picture(tmp_path / "train.png", (60, 40))
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", photo) == 0
    with pytest.raises(InputError, match=r"train\.png is there already, and not of cond-detr check-data; choose"):
        check_data.main([str(tmp_path), "--output-dir", str(tmp_path / "out")])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_quietly_with_a_name_that_is_no_text(checkpoint: Path, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"by\xfftes.png")
    picture(tmp_path / "a.png", (60, 40)).rename(name)
    assert run_predict("-q", "--checkpoint", checkpoint, "--output-dir", tmp_path / "out", name) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.png"], "image missing.png does not exist"),
        (["--checkpoint", "none.pt", "a.png"], "checkpoint none.pt does not exist"),
        (["empty"], "folder empty holds no image"),
        (["x*.png"], "no file is called x*.png"),
        (["--output-dir", "tiny.png", "tiny.png"], "folder tiny.png cannot be made: File exists"),
        (["narrow.png"], "narrow.png of 400x4 pixels is too narrow: the network gets 100x1, less than its stride of 8"),
    ],
)
def test_bad_input(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "tiny.png", (4, 4))
    picture(tmp_path / "narrow.png", (400, 4))
    assert run_predict("--checkpoint", checkpoint, "--output-dir", "out", *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert sentence in errors[0]


def test_drawings() -> None:
    found = Detections(
        torch.tensor([[-50.0, -50.0, 5.0, 5.0], [10.0, 10.0, 500.0, 40.0], [9.0, 9.0, 9.0, 9.0]]),
        torch.tensor([0.9, 0.8, 0.7]),
        torch.tensor([0, 1, 2]),
        list(NAMES),
        [1, 2, 3],
    )
    drawn = draw_detections(Image.new("RGB", (90, 60)), found, truth=found.boxes)
    assert drawn.size == (480, 320)
    assert sheet([drawn] * 5).size == (4 * 368 + 8, 2 * 368 + 8)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [], [])
    assert draw_detections(Image.new("RGB", (900, 600)), empty).size == (900, 600)


def test_checkpoints_cannot_run_code(tmp_path: Path) -> None:
    """A pickle that calls a function is refused."""

    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"format": "cond_detr/1", "model": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt is incomplete"):
        ConditionalDETR.from_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [{"format": "cond_detr/1"}, {"format": "cond_detr/1", "classes": 3}, {"format": "other"}, [1], torch.zeros(2)],
    ids=["empty", "wrong type", "other format", "list", "tensor"],
)
def test_incomplete_checkpoints(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt (is|cannot be used)"):
        ConditionalDETR.from_checkpoint(tmp_path / "bad.pt")


def test_checkpoint_writes_are_atomic(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way leaves the file that was there."""
    before = checkpoint.read_bytes()

    def fail(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    saved = Checkpoint.load(checkpoint)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        saved.save()
    assert checkpoint.read_bytes() == before


def test_cond_detr_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, text in ((["--help"], 0, "train"), ([], 2, "usage"), (["fly"], 2, "unknown command 'fly'")):
        monkeypatch.setattr("sys.argv", ["cond-detr", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code
        out = capsys.readouterr()
        assert text in out.out + out.err
    monkeypatch.setattr("sys.argv", ["cond-detr", "predict", "--checkpoint", "none.pt", "--output-dir", "x", "y.png"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "checkpoint none.pt does not exist" in capsys.readouterr().err
