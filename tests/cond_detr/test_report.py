"""The page about a run: complete, self-contained, and honest about what is good and bad."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import html5lib
import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import InputError, cli
from cond_detr.classes import Classes
from cond_detr.data import shapes
from cond_detr.data.annotations import ImageRecord
from cond_detr.evaluate.coco_metrics import Confusion, Evaluation
from cond_detr.evaluate.diagnosis import KINDS
from cond_detr.predict.detections import Detections
from cond_detr.report import __main__ as report
from cond_detr.report.__main__ import check_page
from cond_detr.report.figures import over_score, score_figure, short
from cond_detr.report.judged import Judged, judge_class, quality, relabelled
from cond_detr.report.page import GENERATOR, page, read_history
from cond_detr.report.tables import confusion_table
from cond_detr.train.run_folder import RunFolder
from cond_detr.weights.progress import RECORDED
from tests.cond_detr.conftest import exit_code
from tests.cond_detr.test_training import TINY, run_train
from tests.conftest import write_dataset

VOID = {"meta", "img", "br"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# tells the page around it what a browser makes of it
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], page = document.documentElement;
  const texts = [...document.querySelectorAll("body *")].filter(each => each.innerText?.trim());
  parent.postMessage([
    `${images.length} images, ${images.filter(image => !image.naturalWidth).length} broken`,
    `${page.scrollWidth - page.clientWidth} pixels too wide`,
    `text from ${Math.min(...texts.map(each => parseFloat(getComputedStyle(each).fontSize)))} pixels`,
    `on ${getComputedStyle(document.body).backgroundColor}`,
  ].join(", "), "*");
})</script>"""
# windows have at least 500 pixels, phones have fewer
AROUND = """<script>addEventListener("message", message => { document.title = message.data; })</script>
<body style="margin: 0"><iframe src="probe.html" width="WIDTH" height="12000" style="border: 0"></iframe>"""


class Checker(HTMLParser):
    """Collects text and sources, and sees that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that has learnt nothing, in a folder whose name is no HTML."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("report")
    write_dataset(root / "data", train=24, val=6)
    options = [*TINY, "--dataset-dir", root / "data", "--epochs", 1, "--output-dir", root / "a<b"]
    assert run_train(*options) == 0
    assert exit_code(report.main, root / "a<b", "--device", "cpu") == 0
    return root / "a<b" / "report.html"


def test_a_page_that_needs_nothing_else(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(text)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "Run a<b" in checker.text
    assert all(name in checker.text for name in shapes.NAMES)
    assert all(source.startswith(("data:image/", "#")) for source in checker.sources)
    qualities = [float(value) for value in re.findall(r"val-\d+\.png: ([\d.]+)", checker.text)]
    assert qualities[:6] == sorted(qualities[:6], reverse=True)
    assert qualities[6:12] == sorted(qualities[6:12])
    by_class = re.findall(rf"({'|'.join(shapes.NAMES)}), (best|worst): val-\d+\.png: ([\d.]+)", checker.text)
    assert sum(source.startswith("data:image/jpeg") for source in checker.sources) == 12 + len(by_class)
    best, worst = ({name: float(value) for name, kind, value in by_class if kind == k} for k in ("best", "worst"))
    assert set(best) == set(shapes.NAMES)
    assert worst  # a class may have only one image
    assert all(best[name] >= value for name, value in worst.items())
    assert all(name in checker.text for name, _ in KINDS.values())


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(written: Path, tmp_path: Path, width: int, scheme: str) -> None:
    text = written.read_text(encoding="utf-8")
    (tmp_path / "probe.html").write_text(text + PROBE, encoding="utf-8")
    (tmp_path / "around.html").write_text(AROUND.replace("WIDTH", str(width)), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--no-first-run", "--disable-background-networking", "--window-size=1300,4000", "--hide-scrollbars"]
    flags += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]

    def browse(*arguments: str) -> str:
        command = [BROWSER, *flags, *arguments, (tmp_path / "around.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    title = re.search(r"<title>(.*?)</title>", browse("--dump-dom"))
    back = "rgb(255, 255, 255)" if scheme == "light" else "rgb(24, 24, 24)"
    assert title is not None
    assert title[1].startswith(f"{text.count('<img')} images, 0 broken, 0 pixels too wide, text from ")
    assert title[1].endswith(f" pixels, on {back}")
    smallest = re.search(r"text from ([\d.]+)", title[1])
    assert smallest is not None
    assert float(smallest[1]) >= 11
    browse(f"--screenshot={tmp_path / 'page.png'}")
    colours = Image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 20)
    assert colours is None or len(colours) > 500


def test_quality() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    record = ImageRecord(1, "a.png", (40, 40), boxes.numpy(), torch.tensor([0, 1]).numpy())

    def of(found: torch.Tensor, labels: list[int]) -> float:
        ones = torch.ones(len(labels))
        return quality(Detections(found, ones, torch.tensor(labels, dtype=torch.int64), [], []), record)

    assert of(boxes, [0, 1]) == pytest.approx(1)
    assert of(boxes, [1, 0]) == 0
    assert of(boxes[:1], [0]) == pytest.approx(0.5)
    assert of(boxes + torch.tensor([0.0, 5, 0, 5]), [0, 1]) == pytest.approx(1 / 3)
    assert of(torch.cat([boxes, boxes]), [0, 1, 0, 1]) == pytest.approx(0.5)
    assert of(boxes[:0], []) == 0


def test_of_one_class_and_of_a_model_that_knows_more() -> None:
    """The index of a class is the data set's here, and the model's there."""
    record = ImageRecord(1, "a.png", (40, 40), np.array([[0, 0, 9, 9], [20, 20, 30, 30]], np.float32), np.array([0, 1]))
    boxes = torch.tensor([[20.0, 20, 30, 30], [0, 0, 9, 9], [0, 0, 9, 9]])
    model = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([7, 2, 3]), ["owl", "cat", "elk"], [4, 2, -1])
    found = relabelled(model, Classes(("cat", "owl"), (2, 4)))
    assert (found.labels.tolist(), found.names, found.category_ids) == ([1, 0], ["owl", "cat"], [4, 2])
    both = Judged(record, found, quality(found, record))
    assert both.quality == pytest.approx(1)
    missed = Judged(record, found[:0], 0.0)
    (best, worst) = judge_class([missed, both], 1)
    assert (best.quality, worst.quality) == (pytest.approx(1), 0)
    assert (best.record.labels.tolist(), best.found.names) == ([1], ["owl"])
    assert judge_class([missed, both], 2) == []


def evaluation_with(confusion: list[Confusion] | None) -> Evaluation:
    """Of two classes: the one has three objects, of which two are found; the other has two, and none is found."""
    reached = [round(0.9 - 0.3 * (i > 33), 1) if i <= 66 else 0.0 for i in range(101)]
    curves = {"cat": [1.0 if i <= 66 else 0.0 for i in range(101)], "dog": [0.0] * 101, "owl": None}
    return Evaluation({}, {}, curves, {"cat": reached, "dog": [0.0] * 101, "owl": None}, confusion)


def test_precision_and_recall_over_the_score() -> None:
    scores, *values = over_score(evaluation_with(None))
    at = dict(zip(scores.round(2).tolist(), zip(*values, strict=True), strict=True))
    assert at[0.95] == (0, 0, 0)
    assert at[0.7] == pytest.approx((0.5, 0.165, 0.33 / 1.33))
    assert at[0.0] == at[0.5] == pytest.approx((0.5, 0.33, 0.66 / 1.66))
    assert len(score_figure(evaluation_with(None)).axes) == 1
    assert len(score_figure(Evaluation({}, {}, {}, {}, None)).axes) == 1


def test_names_in_legends() -> None:
    assert (short("cat"), short("_cat"), short("$5")) == ("cat", " _cat", r"\$5")
    assert short("a name of more than sixteen letters") == "a name of mor..."


def test_a_page_that_cannot_be_written_is_not_made(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is evaluated for it."""
    assert exit_code(report.main, written.parent, "--device", "cpu", "--output", written.parent / "none/x.html") == 2
    assert "none does not exist" in capsys.readouterr().err


def test_what_is_taken_for_what() -> None:
    pairs = [Confusion("cat", "cat", 9), Confusion("cat", None, 3), Confusion(None, "<dog>", 2)]
    table = confusion_table(evaluation_with(pairs))
    assert '<td class="words">cat</td><td class="words">nothing</td><td>3</td>' in table
    assert '<td class="words">nothing</td><td class="words">&lt;dog&gt;</td><td>2</td>' in table
    assert "9" not in table
    assert "Nothing is taken" in confusion_table(evaluation_with(pairs[:1]))
    assert not confusion_table(evaluation_with(None))


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(report.main, [str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "best.pt does not exist" in capsys.readouterr().err


RECORD = {**dict.fromkeys(RECORDED, 0.5), "epoch": 1}


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (b"[" * 100_000, "log.jsonl is no log of a run: line 1 is not valid JSON"),
        (b"\xff", "log.jsonl is no text"),
        (
            json.dumps({**RECORD, "train_loss": "high"}).encode(),
            "log.jsonl is no log of a run: line 1 must have numbers as AP",
        ),
        (json.dumps({"epoch": 1, "train_loss": 1.0, "AP": 0.5}).encode(), "log.jsonl is no log of a run: line 1"),
        (b"", "log.jsonl is empty"),
    ],
)
def test_a_damaged_log(log: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(log)
    with pytest.raises(InputError, match=sentence):
        read_history(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("settings", "sentence"), [(b"\xff", "config.json is no text"), (None, "config.json does not exist")]
)
def test_damaged_settings(settings: bytes | None, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(RECORD))
    if settings is not None:
        (tmp_path / "config.json").write_bytes(settings)
    with pytest.raises(InputError, match=sentence):
        page(None, None, RunFolder(tmp_path), 0)  # type: ignore[arg-type]  # before either is used


def test_settings_nested_beyond_measure_are_not_those_of_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not RunFolder(tmp_path).finished()


def test_a_page_does_not_replace_a_model(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"--output must be a page that ends in \.html, got .*best\.pt"):
        report.main([str(tmp_path), "--output", str(tmp_path / "best.pt")])
    assert (tmp_path / "best.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["report.html", "page.htm"])
def test_only_an_earlier_report_is_replaced(name: str, tmp_path: Path) -> None:
    page_of_others = tmp_path / name
    page_of_others.write_text("<html>precious</html>")
    with pytest.raises(InputError, match=rf"{name} is there already, and no report; choose another --output"):
        report.main([str(tmp_path), *(["--output", str(page_of_others)] if name == "page.htm" else [])])
    assert page_of_others.read_text() == "<html>precious</html>"
    page_of_others.write_text(f"<html>{GENERATOR}</html>")
    check_page(page_of_others)


def test_a_link_to_an_earlier_report_goes_on_leading_there(written: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.html").write_text(f"<html>{GENERATOR}</html>")
    (tmp_path / "latest.html").symlink_to(tmp_path / "there/a.html")
    assert report.main([str(written.parent), "--output", str(tmp_path / "latest.html"), "--device", "cpu"]) == 0
    assert (tmp_path / "latest.html").is_symlink()
    assert "trained by" in (tmp_path / "there/a.html").read_text()
