"""Every kind of image, classes, batches, streams and tiles."""

import http.server
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from cond_detr import ConditionalDETR, InputError, cli, preset
from cond_detr.classes import Classes
from cond_detr.data.images import InputSize, open_image
from cond_detr.predict import __main__ as predict
from cond_detr.predict.detections import Detections
from cond_detr.predict.search import Search, opened, searched
from cond_detr.predict.tiles import Tiling, covered, merged
from cond_detr.weights.checkpoint import Checkpoint

CLASSES = Classes(("person", "hot dog, with mustard", "car"), (1, 2, 3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained model whose scores are above the threshold."""
    torch.manual_seed(0)
    model = ConditionalDETR.new(preset("shapes"), CLASSES)
    with torch.no_grad():
        model.network.class_head.bias.zero_()
        model.network.class_head.weight.normal_()
    Checkpoint(tmp_path / "model.pt", model.config, model.classes, model.network.state_dict()).save()
    return tmp_path / "model.pt"


@pytest.fixture
def detector(checkpoint: Path) -> ConditionalDETR:
    return ConditionalDETR.from_checkpoint(checkpoint)


def pixels(size: tuple[int, int] = (80, 60), seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)


def run_predict(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(predict.main, ["--device", "cpu", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_arrays_and_tensors_are_what_files_are() -> None:
    rgb = pixels()
    gray, alpha = rgb[..., 0], np.dstack([rgb, rgb[..., :1]])
    channels = torch.from_numpy(rgb).permute(2, 0, 1)
    for given in (
        rgb,
        alpha,
        rgb[:, ::1],
        channels,
        channels.float() / 255,
        channels.double() / 255,
        channels.contiguous(),
    ):
        np.testing.assert_array_equal(np.asarray(open_image(given)), rgb)
    wanted = np.repeat(gray[..., None], 3, 2)
    for given in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None], Image.fromarray(gray)):
        np.testing.assert_array_equal(np.asarray(open_image(given)), wanted)
    flipped = rgb[:, ::-1]  # with a negative stride
    np.testing.assert_array_equal(np.asarray(open_image(flipped)), flipped)
    needs_grad = (channels.float() / 255).requires_grad_()
    np.testing.assert_array_equal(np.asarray(open_image(needs_grad)), rgb)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pixels().astype(np.float32), r"an image array must be .* uint8.*, got \(60, 80, 3\) float32"),
        (pixels()[..., :2], r"got \(60, 80, 2\) uint8"),
        (pixels().transpose(2, 0, 1), r"got \(3, 60, 80\) uint8"),
        (torch.zeros(60, 80, 3), r"an image tensor must be \(3, H, W\), .*, got \(60, 80, 3\)"),
        (
            torch.full((3, 60, 80), 1.5),
            r"must have values in \[0, 1\], not normalised ones; got values from 1.5 to 1.5",
        ),
        (torch.full((3, 60, 80), float("nan")), "values from nan to nan"),
        (torch.zeros(3, 60, 80, dtype=torch.int64), "must be uint8, or floats in .*, got torch.int64"),
        (torch.zeros(3, 0, 80), "has no pixels"),
        (np.zeros((0, 80), np.uint8), "has no pixels"),
        ("https://", "image https:// cannot be downloaded"),
        (f"https://localhost:{'9' * 30}/a.png", r"localhost:9+/a.png is no address: Port out of range"),
        ("https://localhost:x/a.png", "is no address: Port could not be cast"),
        ("http://example.org/a.png", "is not https"),
        ("ftp://127.0.0.1/a.png", "cannot be downloaded"),
        ("http://127.0.0.1:9/a.png", "cannot be downloaded: .*refused"),
    ],
)
def test_what_is_no_image(given: Any, words: str, detector: ConditionalDETR) -> None:
    with pytest.raises(InputError, match=words):
        detector.predict(given)


def test_images_at_addresses(detector: ConditionalDETR, checkpoint: Path, tmp_path: Path, address: str) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    (tmp_path / "no.png").write_text("no image")
    local, remote = detector.predict([str(tmp_path / "a.png"), f"{address}/a.png"], 0.3)
    assert remote.to_dicts() == local.to_dicts()
    assert isinstance(remote.image, Image.Image)  # is not downloaded again to be drawn
    for name, words in (("b.png", "HTTP Error 404"), ("no.png", "it is no image in a format of")):
        with pytest.raises(InputError, match=f"image {address}/{name} cannot be .*: {words}"):
            detector.predict(f"{address}/{name}")
    out = tmp_path / "out"
    addresses = [f"{address}/a.png?size=1", f"{address}/b.png"]
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, *addresses) == 2
    assert (out / "a.png").exists()
    (entry,) = json.loads((out / "predictions.json").read_text())
    assert entry["file"] == addresses[0]
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, f"{address}/a.mp4") == 2


def test_an_image_that_is_too_large_is_not_taken_into_memory(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(bytes(3 << 20))
    monkeypatch.setattr("cond_detr.download.fetch_bytes.__defaults__", (1 << 20,))
    with pytest.raises(InputError, match="is larger than 1 MB"):
        open_image(f"{address}/a.png")


def test_classes(
    detector: ConditionalDETR, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = detector.predict(pixels(), 0.0)
    best, *others = sorted({*CLASSES.names}, key=lambda name: -every.names.count(name))
    found = detector.predict(pixels(), 0.0, classes=[best])
    assert found.to_dicts() == every.of_classes(best).to_dicts()
    assert len(found) > 0
    assert len(found) + len(detector.predict(pixels(), 0.0, classes=others)) == len(every)
    with pytest.raises(InputError, match=r"the detector has no class 'cart'; did you mean car\?"):
        detector.predict(pixels(), classes=["cart"])
    with pytest.raises(InputError, match=r"classes must be several names, such as \['car'\], got 'car'"):
        detector.predict(pixels(), classes="car")
    with pytest.raises(InputError, match="predict has no argument 'tiles'; it has classes, batch_size"):
        detector.predict(pixels(), tiles=3)  # type: ignore[call-overload]
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    arguments = ["--checkpoint", checkpoint, "--output-dir", tmp_path / "out", "--threshold", 0]
    for given in ("car,person", "car, person", "hot dog, with mustard"):
        assert run_predict(*arguments, "--classes", given, tmp_path / "a.png") == 0
        (entry,) = json.loads((tmp_path / "out/predictions.json").read_text())
        names = [given] if "mustard" in given else ["car", "person"]
        assert len(entry["detections"]) == len(detector.predict(tmp_path / "a.png", 0.0, classes=names))
    assert run_predict(*arguments, "--classes", "bus", tmp_path / "a.png") == 2
    assert "no class 'bus'; it has person" in capsys.readouterr().err


def test_batches_and_streams(detector: ConditionalDETR) -> None:
    sizes = [(80, 60), (80, 60), (160, 120), (60, 80), (60, 80), (80, 60)]
    images = [pixels(size, i) for i, size in enumerate(sizes)]
    alone = detector.predict(images, 0.2)
    for one, other in zip(alone, detector.predict(images, 0.2, batch_size=4), strict=True):
        assert one.names == other.names
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    assert detector.predict([]) == []
    stack = torch.from_numpy(np.stack(images[3:5])).permute(0, 3, 1, 2)
    assert [each.names for each in detector.predict(stack, 0.2)] == [each.names for each in alone[3:5]]
    endless = itertools.cycle(images)
    first = list(itertools.islice(detector.stream(endless, 0.2, batch_size=2), 8))
    assert [each.names for each in first[:6]] == [each.names for each in alone]
    assert first[0].image is images[0]
    for wrong, words in ((pixels(), "stream takes a video or several images"), (3, "expected a video or several")):
        with pytest.raises(InputError, match=words):
            list(detector.stream(wrong))
    with pytest.raises(InputError, match="batch_size must be a whole number of at least 1, got 0"):
        detector.predict(images, batch_size=0)


@pytest.mark.parametrize("size", [(100, 70), (64, 64), (65, 64), (640, 50), (30, 500), (1000, 999)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_image(size: tuple[int, int], overlap: float) -> None:
    whole, *tiles = Tiling(64, overlap).places(size)
    assert whole == (0, 0, *size)
    seen = np.zeros(size[::-1], dtype=int)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(64, size[0]), min(64, size[1]))
        seen[top:bottom, left:right] += 1
    assert not tiles if size == (64, 64) else seen.min() >= 1
    lefts = sorted({left for left, *_ in tiles})
    assert all(b - a <= 64 - round(64 * overlap) for a, b in itertools.pairwise(lefts))


def bright(images: Sequence[Image.Image]) -> list[Detections]:
    """Finds the bright rectangles in images, by class gray or white; small ones not if the image is scaled down."""
    found = []
    for image in images:
        values = np.asarray(image)[..., 0]
        parts, _ = ndimage.label(values > 50)
        boxes, labels, scores = [], [], []
        for rows, columns in ndimage.find_objects(parts):
            box = [columns.start, rows.start, columns.stop, rows.stop]
            if min(box[2] - box[0], box[3] - box[1]) * 64 / min(image.size) >= 5:
                boxes.append(box)
                labels.append(int(values[rows, columns].max() > 200))
                scores.append(0.5 + 0.4 * (min(image.size) <= 64))
        order = np.argsort(scores)[::-1].copy()
        of = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        found.append(Detections.of(of, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), CLASSES)[order])
    return found


def test_tiles_find_each_object_once() -> None:
    """Small ones in tiles, large ones in the whole image, those on tiles' borders in one of the two."""
    canvas = np.zeros((300, 420, 3), dtype=np.uint8)
    wanted = [(10, 10, 18, 18), (58, 30, 66, 39), (100, 120, 109, 130), (411, 290, 420, 300), (0, 150, 8, 158)]
    wanted += [(150, 60, 400, 250), (30, 200, 38, 280)]
    for i, (left, top, right, bottom) in enumerate(wanted):
        canvas[top:bottom, left:right] = 220 if i % 2 else 120
    image = Image.fromarray(canvas)
    size = InputSize(64, 1000, 8)

    def boxes(how: Search) -> set[tuple[int, ...]]:
        (found,) = searched(opened([image], size), bright, size, how)
        assert not isinstance(found, InputError)
        rows: Tensor = found[1].boxes
        assert len(rows) == len({tuple(row) for row in rows.int().tolist()})
        return {tuple(row) for row in rows.int().tolist()}

    assert boxes(Search(0.0)) == {wanted[5]}
    assert boxes(Search(0.0, tiling=Tiling(64, 0.25))) == set(wanted) - {wanted[6]}
    # the last is too long for the tiles and too small in the whole image; larger tiles hold it
    assert boxes(Search(0.0, tiling=Tiling(100, 0.9), batch_size=3)) >= {wanted[5], wanted[6]}


def test_neighbours_in_one_piece_both_stay() -> None:
    """One piece never finds an object twice, so boxes that overlap there are of two."""
    boxes = torch.tensor([[10.0, 10, 30, 30], [13, 10, 33, 30]])
    both = Detections.of(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), CLASSES)
    found = merged([both, both[:1]], [(0, 0, 100, 100), (0, 0, 64, 64)], (100, 100))
    assert found.boxes.tolist() == boxes.tolist()
    other = merged([both[:1], both[1:]], [(0, 0, 100, 100), (0, 0, 64, 64)], (100, 100))
    assert other.boxes.tolist() == boxes[:1].tolist()


@pytest.mark.parametrize(("side", "kept"), [(30, 2), (60, 1)])
def test_a_small_object_within_a_larger_one(side: int, kept: int) -> None:
    """It is another one, unless it may be a part of the same."""
    whole = Detections.of(torch.tensor([[5.0, 5, 95, 95]]), torch.tensor([0.6]), torch.tensor([0]), CLASSES)
    part = Detections.of(torch.tensor([[9.0, 9, 9 + side, 9 + side]]), torch.tensor([0.9]), torch.tensor([0]), CLASSES)
    assert len(merged([whole, part], [(0, 0, 100, 100), (0, 0, 80, 80)], (100, 100))) == kept


def test_doubles_do_not_use_up_what_is_looked_at() -> None:
    """Of scores below the threshold: what is found once comes after thousands that are found again and again."""
    size = (4000, 100)
    places = [(0, 0, *size)] * 39
    again = torch.tensor([[9.0 + 7 * i, 40, 14 + 7 * i, 45] for i in range(60)])
    found = []
    for number in range(39):
        boxes = torch.cat([again, torch.tensor([[9.0 + 20 * number, 60, 19 + 20 * number, 70]])])
        scores = torch.cat([torch.full((60,), 0.4), torch.tensor([0.1])])
        found.append(Detections.of(boxes, scores, torch.zeros(61, dtype=torch.int64), CLASSES))
    assert sum(map(len, found)) > 2300
    assert len(merged(found, places, size, 0.5)) == 60 + 39


@pytest.mark.parametrize(("count", "overlap"), [(50, 0.2), (16, 0.5)])
def test_thousands_of_objects_are_all_found_once(count: int, overlap: float) -> None:
    """By a detector that misses nothing; what is found twice must not take the place of what is found once."""
    step = 6400 / count
    corners = torch.cartesian_prod(torch.arange(count), torch.arange(count)).flip(1) * step + 10
    objects = torch.cat([corners, corners + 30], 1).float()
    size = (6400, 6400)
    places = Tiling(640, overlap).places(size)
    found = []
    for left, top, right, bottom in places:
        own = objects[(objects[:, :2] >= torch.tensor([left, top])).all(1)]
        own = own[(own[:, 2:] <= torch.tensor([right, bottom])).all(1)] - torch.tensor([left, top, left, top])
        noise = torch.tensor([[1.0, 1, 9, 9]]).expand(50, 4)
        scores = torch.cat([torch.full((len(own),), 0.9), torch.linspace(0.2, 0.1, 50)])
        labels = torch.zeros(len(scores), dtype=torch.int64)
        found.append(Detections.of(torch.cat([own, noise]), scores, labels, CLASSES))
    whole = merged(found, places, size, 0.5).above(0.5)
    assert len(whole) == count * count
    assert torch.equal(torch.unique(whole.boxes, dim=0), torch.unique(objects, dim=0))


def test_too_many_pieces(detector: ConditionalDETR) -> None:
    with pytest.raises(InputError, match=r"would cut an image of 6000x6000 pixels into \d+ pieces, more than 10000"):
        Tiling(8, 0.9).places((6000, 6000))
    with pytest.raises(InputError, match="would cut an image of 900x900"):
        detector.predict(Image.new("RGB", (900, 900)), tile=8, tile_overlap=0.9)


def test_arguments_that_are_none(detector: ConditionalDETR) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(InputError, match="tile_overlap is of tiles; give tile as well"):
        detector.predict(image, tile_overlap=0.1)
    with pytest.raises(InputError, match="classes must be several names, got 3"):
        detector.predict(image, classes=3)  # type: ignore[call-overload]
    tensors = [torch.zeros(3, 9, 9, device="meta"), torch.zeros(3, 9, 9).to_sparse(), torch.zeros(3, 9, 9).bool()]
    for tensor in [*tensors, torch.zeros(3, 9, 9, dtype=torch.float8_e4m3fn)]:
        with pytest.raises(InputError, match="an image tensor must be uint8, or floats"):
            detector.predict(tensor)


def test_threads_while_the_network_trains(detector: ConditionalDETR) -> None:
    """Dropout would show: each prediction is made in evaluation mode, and the modes are as they were."""
    for module in detector.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    detector.network.train()
    detector.network.backbone.eval()
    images = [Image.fromarray(pixels(seed=i)) for i in range(4)]
    want = [found.to_dicts() for found in detector.predict(images, 0.0)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda image: detector.predict(image, 0.0).to_dicts(), images * 6))
    assert got == want * 6
    assert detector.network.training
    assert not detector.network.backbone.training


def saved(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed=seed)).save(path)
    return path.read_bytes()


def test_what_a_user_has_in_the_output_folder_stays(checkpoint: Path, tmp_path: Path) -> None:
    mine = saved(tmp_path / "out/y.png", 1)
    saved(tmp_path / "in/y.png")
    for _ in range(2):  # the second run replaces what the first has written
        assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", tmp_path / "in/y.png") == 0
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"y.png", "y-2.png", "predictions.json", "coco_results.json"}
        assert (tmp_path / "out/y.png").read_bytes() == mine
    # links to the photos of another folder
    original = saved(tmp_path / "real/z.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/z.png").symlink_to(tmp_path / "real/z.png")
    for _ in range(2):
        assert (
            run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "links", tmp_path / "links/z.png") == 0
        )
        assert (tmp_path / "links/z.png").is_symlink()
    assert (tmp_path / "real/z.png").read_bytes() == original


def test_images_of_one_name_have_ids_of_their_own(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.png", "b/x.png", "a/y.png"):
        saved(Path(name))
    assert run_predict("--checkpoint", checkpoint, "--output-dir", "out", "--threshold", 0, "a", "b", "a/x.png") == 0
    ids = [each["image_id"] for each in json.loads(Path("out/coco_results.json").read_text())]
    assert set(ids) == {"a/x.png", "b/x.png", "y.png"}
    assert len(json.loads(Path("out/predictions.json").read_text())) == 3
    truth = {"images": [{"id": 7, "file_name": "x.png", "width": 80, "height": 60}], "annotations": []}
    Path("truth.json").write_text(json.dumps({**truth, "categories": [{"id": 1, "name": "person"}]}))
    options = ["--checkpoint", checkpoint, "--output-dir", "out", "--annotations", "truth.json"]
    assert run_predict(*options, "a/x.png", "b/x.png") == 2
    assert "truth.json has one image 'x.png', got 2 of that name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([""], "a source is empty"),
        (["--tile-overlap", "0.1", "a.png"], "--tile-overlap is of tiles; give --tile as well"),
        (["--tile", "64", "--tile-overlap", "1", "a.png"], "argument --tile-overlap: expected a number from 0 to 0.9"),
        (["https://localhost/v.mp4?x=1"], "is at an address; download it, and give the file"),
    ],
)
def test_what_is_asked_for_makes_no_sense(
    arguments: list[str], sentence: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_predict("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_one_name_that_no_file_can_have_costs_nobody_else_a_result(checkpoint: Path, tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    out = tmp_path / "out"
    assert run_predict("--checkpoint", checkpoint, "--output-dir", out, tmp_path / "a.png", "b" * 300 + ".png") == 2
    assert (out / "a.png").exists()


def test_covered() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 10]])
    b = torch.tensor([[2.0, 2, 4, 4], [5, 5, 15, 15], [0, 0, 10, 10]])
    assert covered(a, b).tolist() == [1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"tile": 4}, "tile must be a whole number of pixels of at least"),
        ({"tile": 64.0}, "tile must be a whole number of pixels of at least .*, got 64.0"),
        ({"tile": True}, "tile must be"),
        ({"tile": 64, "tile_overlap": 1}, "tile_overlap must be a number from 0 to 0.9, got 1"),
    ],
)
def test_tiles_that_cannot_be(how: dict[str, Any], words: str, detector: ConditionalDETR) -> None:
    with pytest.raises(InputError, match=words):
        detector.predict(pixels(), **how)


def test_tiles_on_the_command_line(checkpoint: Path, detector: ConditionalDETR, tmp_path: Path) -> None:
    Image.fromarray(pixels((200, 150))).save(tmp_path / "a.png")
    arguments = ["--checkpoint", checkpoint, "--output-dir", tmp_path / "out", "--threshold", 0.3]
    arguments += ["--tile", 80, "--tile-overlap", 0.3]
    assert run_predict(*arguments, tmp_path / "a.png") == 0
    (entry,) = json.loads((tmp_path / "out/predictions.json").read_text())
    found = detector.predict(tmp_path / "a.png", 0.3, tile=80, tile_overlap=0.3, batch_size=4)
    assert len(found) > 25  # more than one piece has queries
    assert len(entry["detections"]) >= len(found) * 0.9


def test_an_image_that_fits_into_a_tile(checkpoint: Path, tmp_path: Path) -> None:
    """Is one tile: as many detections as without."""
    Image.fromarray(pixels((60, 50))).save(tmp_path / "a.png")
    found = []
    for tiling in ([], ["--tile", 80]):
        out = tmp_path / f"out{len(tiling)}"
        arguments = ["--checkpoint", checkpoint, "--output-dir", out, "--threshold", 0, *tiling, tmp_path / "a.png"]
        assert run_predict(*arguments) == 0
        found.append([json.loads((out / name).read_text()) for name in ("predictions.json", "coco_results.json")])
    assert found[0] == found[1]
    (entry,), of_any_score = found[0]
    assert len(entry["detections"]) == 25  # as many as there are queries
    assert len(of_any_score) > 25


def test_quiet(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    arguments = ["--checkpoint", checkpoint, "--output-dir", tmp_path / "out", tmp_path / "a.png"]
    assert run_predict(*arguments, "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out/a.png").exists()
    assert run_predict(*arguments, tmp_path / "b.png", "--quiet") == 2
    assert capsys.readouterr() == ("", f"error: image {tmp_path}/b.png does not exist\n")
    assert run_predict(*arguments) == 0
    assert "pictures and predictions.json in" in capsys.readouterr().out


def test_tables(detector: ConditionalDETR) -> None:
    pandas = pytest.importorskip("pandas")
    found = detector.predict(pixels(), 0.2)
    table = found.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["left", "top", "right", "bottom", "score", "class", "category_id"]
    np.testing.assert_array_equal(table[["left", "top", "right", "bottom"]].to_numpy(), found.boxes.numpy())
    assert table["class"].tolist() == found.names
    assert len(found[:0].to_pandas()) == 0


def test_annotators_of_supervision(detector: ConditionalDETR) -> None:
    supervision = pytest.importorskip("supervision")
    scene = pixels((200, 150))
    theirs = detector.predict(scene, 0.2).to_supervision()
    drawn = supervision.BoxAnnotator().annotate(scene.copy(), theirs)
    drawn = supervision.LabelAnnotator().annotate(drawn, theirs, labels=list(theirs["class_name"]))
    assert (drawn != scene).any()
