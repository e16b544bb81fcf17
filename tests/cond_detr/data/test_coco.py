"""Reading COCO annotations: what is kept, what is dropped, what is refused."""

import json
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import InputError
from cond_detr.config import DataConfig
from cond_detr.data import layouts, open_split, shapes
from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.batching import Batch, Sample, collate, pad_images
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.formats import find_split
from cond_detr.data.layouts import FolderLoader

DATA = DataConfig(image_size=64, max_size=64, augment="flip")


def content(**changes: Any) -> dict[str, Any]:
    """A valid annotation file with gaps in its ids."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 50, "height": 40},
            {"id": 3, "file_name": "a.png", "width": 30, "height": 60},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 10, 20, 10]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [-5, 30, 20, 20]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 50, 40], "iscrowd": 1},
        ],
        **changes,
    }


def annotation(**changes: Any) -> dict[str, Any]:
    return content(annotations=[{"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 1, 5, 5], **changes}])


def test_ids_are_remapped_and_kept() -> None:
    """Ids off by one: detr#108, RT-DETR#70, rf-detr#961."""
    checked = check_annotations(content(), "f.json")
    assert checked.classes.names == ("person", "toothbrush")
    assert checked.classes.category_ids == (1, 90)
    empty, full = checked.records
    assert (empty.image_id, empty.file_name, len(empty.labels)) == (3, "a.png", 0)
    assert full.labels.tolist() == [1, 0]  # the crowd is not among them
    # the second box is clipped to the image
    np.testing.assert_allclose(full.boxes, [[10, 10, 30, 20], [0, 30, 15, 40]])
    assert checked.dropped == {}


@pytest.mark.parametrize("bbox", [[5, 5, 0, 10], [5, 5, 10, 0], [60, 5, 10, 10], [5, -20, 10, 10]], ids=str)
def test_degenerate_boxes_are_dropped_and_counted(bbox: list[float]) -> None:
    checked = check_annotations(annotation(bbox=bbox), "f.json")
    assert sum(len(record.labels) for record in checked.records) == 0
    assert sum(checked.dropped.values()) == 1


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([], "f.json: expected an object with a list 'images'"),
        ({"images": []}, "expected an object with a list 'annotations'"),
        (content(categories=[]), "at least one image and one category"),
        (content(images=[{"id": 1}]), r"images\[0\] must have text as 'file_name', got None"),
        (content(images=content()["images"] * 2), "image id 7 is used more than once"),
        (annotation(image_id=99), "annotation 5 is for image 99, which is not among the images"),
        (annotation(category_id=4), r"annotation 5 \(b.png\) has category 4, which is not among the categories"),
        (annotation(bbox=[1, 1, -5, 5]), r"annotation 5 \(b.png\) has bbox \[1, 1, -5, 5\]; expected"),
        (annotation(bbox=[1, 1, float("nan"), 5]), "annotation 5 .* has bbox"),
        (annotation(bbox=[1, 1, float("inf"), 5]), "annotation 5 .* has bbox"),
        (annotation(bbox=[1, 1, 5]), "annotation 5 .* has bbox"),
        (annotation(bbox="1 1 5 5"), r"annotation 5 \(b\.png\) has no box: bbox is '1 1 5 5'"),
        (annotation(bbox=None), r"annotation 5 \(b\.png\) has no box: bbox is None"),
        (annotation(bbox=[1, 1, 10**400, 5]), "annotation 5 .* has bbox"),
        (
            content(images=[{"id": 7, "file_name": "b.png", "width": None, "height": 4}]),
            "must have a whole number as 'width', got None",
        ),
        (
            content(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
            "category name 'a' is used more than once",
        ),
    ],
)
def test_impossible_annotations_get_a_sentence(raw: Any, sentence: str) -> None:
    """Not a CUDA assertion later: detr#28, RT-DETR#99."""
    with pytest.raises(InputError, match=sentence) as error:
        check_annotations(raw, "f.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["train", "train2017", "images/train2017"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    (tmp_path / layout).mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    annotations = tmp_path / "annotations" / f"instances_{Path(layout).name}.json"
    annotations.write_text("{}")
    found = find_split(tmp_path, "train", 0.1)
    assert (found.folder, found.annotation_file, found.format) == (tmp_path / layout, annotations, "COCO")


def test_missing_parts_are_named(tmp_path: Path, dataset_dir: Path) -> None:
    with pytest.raises(InputError, match=f"dataset folder {tmp_path}/none does not exist"):
        find_split(tmp_path / "none", "train", 0.1)
    with pytest.raises(InputError, match=f"dataset folder {tmp_path} has no data set; expected annotations/instances"):
        find_split(tmp_path, "train", 0.1)
    (dataset_dir / "val").rename(dataset_dir / "gone")
    with pytest.raises(InputError, match=r"image folder .*/val does not exist"):
        find_split(dataset_dir, "val", 0.1)
    (dataset_dir / "annotations/instances_val.json").unlink()
    with pytest.raises(InputError, match=r"annotation file .*/annotations/instances_val.json does not exist"):
        find_split(dataset_dir, "val", 0.1)


def test_file_names_cannot_leave_the_image_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(InputError, match=r"outside its folder|has an absolute path"):
            FolderLoader(tmp_path / "train")(name, (64, 64))


def test_samples_of_a_folder(dataset_dir: Path) -> None:
    data = DataConfig(dataset_dir=str(dataset_dir), image_size=96, max_size=96)
    train = open_split(data, "train", 8)
    assert len(train) == 24
    sample = train[0]
    assert isinstance(sample, Sample)
    assert sample.pixels.dtype == torch.uint8
    assert sample.boxes.shape == (len(sample.labels), 4)
    again = open_split(data, "train", 8)[0]
    assert isinstance(again, Sample)
    assert torch.equal(sample.pixels, again.pixels)
    train.set_epoch(1)
    other = [train[i] for i in range(8)]
    train.set_epoch(0)
    same = [train[i] for i in range(8)]
    assert any(
        isinstance(a, Sample)
        and isinstance(b, Sample)
        and (a.pixels.shape != b.pixels.shape or not torch.equal(a.pixels, b.pixels))
        for a, b in zip(other, same, strict=True)
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), "train-00003.png does not exist"),
        (lambda path: path.write_bytes(b"not an image"), "train-00003.png cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "train-00003.png cannot be read"),
        (
            lambda path: Image.new("RGB", (5, 90)).save(path),
            "train-00003.png is 5x90 pixels, but its annotations say 64x64",
        ),
    ],
    ids=["missing", "text", "truncated", "tiny"],
)
def test_bad_images_reach_the_loop_as_errors(dataset_dir: Path, spoil: Any, sentence: str) -> None:
    spoil(dataset_dir / "train" / "train-00003.png")
    train = open_split(DataConfig(dataset_dir=str(dataset_dir), image_size=64, max_size=64), "train", 8)
    batch = collate([train[i] for i in range(5)])
    assert isinstance(batch, InputError)
    with pytest.raises(InputError, match=sentence):
        raise batch


def test_greyscale_palette_and_rotated_images_become_rgb(tmp_path: Path) -> None:
    load = FolderLoader(tmp_path)
    Image.new("L", (20, 10), 100).save(tmp_path / "grey.png")
    Image.new("P", (20, 10), 3).save(tmp_path / "palette.png")
    Image.new("RGBA", (20, 10), (1, 2, 3, 4)).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    for name, size in (("grey.png", (20, 10)), ("palette.png", (20, 10)), ("alpha.png", (20, 10))):
        assert load(name, size).size == size
    # annotations made with or without a look at the tag
    for size in ((10, 20), (20, 10)):
        assert load("turned.jpg", size).size == size
    assert all(load(path.name, (20, 10)).mode == "RGB" for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=r"grey\.png is 20x10 pixels, but its annotations say 40x20"):
        load("grey.png", (40, 20))


@pytest.mark.parametrize("builtin", [True, False], ids=["shapes", "folder"])
def test_data_sets_can_be_sent_to_worker_processes(dataset_dir: Path, builtin: bool) -> None:
    if builtin:
        annotations, load = shapes.make_split("val", 3)
        dataset = CocoDataset(annotations, load, DATA, 8, train=False)
    else:
        dataset = open_split(DataConfig(dataset_dir=str(dataset_dir), image_size=64, max_size=64), "val", 8)
    assert isinstance(pickle.loads(ForkingPickler.dumps(dataset))[0], Sample)


@pytest.mark.parametrize("at_once", [1, 2, 5, 4096])
def test_parts_are_put_together(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations become arrays some at a time; what is wrong with one is said with its own number."""
    spoilt: dict[int, dict[str, Any]] = {
        2: {"image_id": 8},
        3: {"bbox": None, "segmentation": [[1, 2, 9, 2, 9, 8]]},
        5: {"bbox": None},
        6: {"iscrowd": 2},
        9: {"category_id": 2**70},
    }
    entries = [
        {"id": 100 + i, "image_id": 7 if i % 2 else 3, "category_id": 1, "bbox": [i, 1, 5, 5], **spoilt.get(i, {})}
        for i in range(11)
    ]
    monkeypatch.setattr("cond_detr.data.annotation_checks.AT_ONCE", at_once)
    said: list[str] = []
    objects = check_annotations(content(annotations=entries), "f.json", said.append).objects
    assert [sentence.split()[2] for sentence in said] == ["102", "105", "106", "109"]
    assert objects.images.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert objects.boxes[:, 0].tolist() == [0, 4, 8, 10, 1, 1, 7]
    assert objects.boxes[4].tolist() == [1, 1, 5, 5]
    assert objects.boxes[5].tolist() == [1, 2, 8, 6]


@pytest.mark.parametrize("large", [0, 2**63, -(2**64)])
def test_images_may_come_in_any_order(large: int) -> None:
    names = ["é.png", "日本/x.jpg", "plain.jpg", "a", "z.webp"]
    order = [3, 0, 4, 1, 2]
    images = [{"id": i + large, "file_name": names[i], "width": 10 + i, "height": 20 + i} for i in order]
    found = check_annotations(content(images=images, annotations=[]), "a.json").images
    assert [*found.ids] == [i + large for i in range(5)]
    assert [*found.names] == names
    assert found.sizes.tolist() == [[10 + i, 20 + i] for i in range(5)]


def test_annotations_may_come_in_any_order() -> None:
    """Each image gets its own boxes, in the order of the file."""
    order = [(7, 1), (3, 2), (7, 3), (3, 4), (7, 5)]
    entries = [{"image_id": image, "category_id": 1, "bbox": [0, 0, width, 9]} for image, width in order]
    records = check_annotations(content(annotations=entries), "f.json").records
    widths = {record.image_id: record.boxes[:, 2].tolist() for record in records}
    assert widths == {3: [2, 4], 7: [1, 3, 5]}


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_photos_are_decoded_at_a_fraction(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, and look as they would; their boxes, and those of evaluation, stay where they were."""
    x, y = np.meshgrid(np.linspace(0, 9, 1203), np.linspace(0, 7, 902))
    waves = (127 + 120 * np.sin(np.stack([x, y, x + y], -1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "train").mkdir()
    Image.fromarray(waves).save(tmp_path / "train/a.jpg", quality=95, exif=exif)
    size = (1203, 902) if orientation == 1 else (902, 1203)
    raw = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "wave"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [100, 200, 300, 400]}],
    }
    annotations = check_annotations(raw, "raw")
    decoded = []
    original = layouts.decode
    monkeypatch.setattr(layouts, "decode", lambda *a: decoded.append(original(*a)) or decoded[-1])
    for side, shrinks in ((200, True), (800, False)):
        samples = []
        for train in (True, False):
            data = DataConfig(image_size=side, max_size=2 * side, augment="none")
            sample = CocoDataset(annotations, FolderLoader(tmp_path / "train"), data, 32, train=train)[0]
            assert isinstance(sample, Sample)
            samples.append(sample)
            assert (decoded[-1].image.size != size) == (shrinks and train)
        reduced, whole = samples
        assert reduced.pixels.shape == whole.pixels.shape
        assert (reduced.pixels.int() - whole.pixels.int()).abs().float().mean() < 1
        assert reduced.size == whole.size == size
        torch.testing.assert_close(reduced.boxes, whole.boxes)


def test_a_tiff_is_as_large_as_it_is(tmp_path: Path) -> None:
    """Pillow turns TIFFs itself, and their tag still asks for it; a size that fits neither way is refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 40)).save(tmp_path / "a.tif", exif=exif)
    load = FolderLoader(tmp_path)
    assert load("a.tif", (40, 100), (20, 50)).size == (40, 100)
    with pytest.raises(InputError, match=r"a\.tif is 40x100 pixels, but its annotations say 100x40"):
        load("a.tif", (100, 40))


def test_batches_are_padded_at_the_right_and_bottom() -> None:
    images = [torch.ones(3, 4, 6), torch.ones(3, 5, 3)]
    stacked, padding = pad_images(images)
    assert stacked.shape == (2, 3, 5, 6)
    assert padding is not None
    assert (~padding).sum((1, 2)).tolist() == [24, 15]
    assert torch.equal(stacked[:, 0] == 0, padding)
    assert pad_images(images[:1])[1] is None
    samples = [
        Sample(images[0], torch.tensor([1, 2]), torch.rand(2, 4), 5, (6, 4)),
        Sample(images[1], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 9, (3, 5)),
    ]
    batch = collate(samples)  # type: ignore[arg-type]
    assert isinstance(batch, Batch)
    assert batch.targets.counts.tolist() == [2, 0]
    assert batch.targets.labels[:, :3].tolist() == [[1, 2, 0], [0, 0, 0]]
    assert batch.targets.labels.shape == (2, 16)
    assert batch.image_ids == (5, 9)


def test_real_data_sets_open(real_data: Path) -> None:
    for name, classes, train, val in (("bccd", 3, 292, 72), ("everyday", 17, 49, 12), ("coco_subset", 80, 83, 91)):
        data = DataConfig(dataset_dir=str(real_data / name))
        for split, count in (("train", train), ("val", val)):
            dataset = open_split(data, split, 32)
            assert (len(dataset), len(dataset.annotations.classes)) == (count, classes)
    coco = json.loads((real_data / "coco_subset" / "annotations" / "instances_val.json").read_text())
    assert dataset.annotations.classes.category_ids == tuple(sorted(c["id"] for c in coco["categories"]))
