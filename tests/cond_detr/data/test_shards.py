"""Images in tar files: the same bits as in a folder, and a sentence for whatever is wrong with them."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import InputError
from cond_detr.check_data import __main__ as check_data
from cond_detr.config import DataConfig
from cond_detr.data import open_split
from cond_detr.data.batching import Sample
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.layouts import FolderLoader
from cond_detr.data.shards import ENTRY, INDEX, SHARDS, Shards, write_index, write_shards
from cond_detr.pack import __main__ as pack
from cond_detr.train import __main__ as train
from tests.cond_detr.conftest import SMALL, exit_code


@pytest.fixture
def packed(dataset_dir: Path, tmp_path: Path) -> Path:
    assert exit_code(pack.main, dataset_dir, tmp_path / "packed") == 0
    return tmp_path / "packed"


def split_of(folder: Path, split: str) -> CocoDataset:
    return open_split(DataConfig(dataset_dir=str(folder), image_size=96, max_size=128, min_scale=0.5), split, 8)


@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_are_the_same_bit_for_bit(dataset_dir: Path, packed: Path, split: str) -> None:
    loose, tarred = split_of(dataset_dir, split), split_of(packed, split)
    for epoch in range(2):
        for dataset in (loose, tarred):
            dataset.set_epoch(epoch)
        for i in range(len(loose)):
            a, b = loose[i], tarred[i]
            assert isinstance(a, Sample)
            assert isinstance(b, Sample)
            assert torch.equal(a.pixels, b.pixels)
            assert torch.equal(a.boxes, b.boxes)
            assert (a.image_id, a.size) == (b.image_id, b.size)
    assert not [path for path in (packed / split).iterdir() if path.suffix == ".png"]


@pytest.mark.usefixtures("one_thread")
def test_training_and_resuming_are_the_same(dataset_dir: Path, packed: Path, tmp_path: Path) -> None:
    """The second run begins with the images in a folder, and goes on with those in tar files."""
    options = [*SMALL, "--image-size", "32", "--output-dir"]
    assert exit_code(train.main, *options, tmp_path / "a", "--dataset-dir", dataset_dir, "--epochs", 2) == 0
    assert exit_code(train.main, *options, tmp_path / "b", "--dataset-dir", dataset_dir, "--epochs", 1) == 0
    resume = ["--resume", tmp_path / "b/last.pt", "--dataset-dir", packed, "--epochs", 2, "--device", "cpu"]
    assert exit_code(train.main, *resume) == 0
    assert exit_code(train.main, *options, tmp_path / "c", "--dataset-dir", packed, "--epochs", 2) == 0
    first = torch.load(tmp_path / "a/last.pt", weights_only=True)["model"]
    whole = torch.load(tmp_path / "c/last.pt", weights_only=True)["model"]
    assert all(torch.equal(first[name], whole[name]) for name in first)


def test_check_data_says_the_same(dataset_dir: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code(check_data.main, dataset_dir)
    said = capsys.readouterr().out
    assert exit_code(check_data.main, packed) == code
    assert capsys.readouterr().out == said


def test_several_shards_and_names_as_others_write_them(tmp_path: Path) -> None:
    """Folders in names, names of over 100 characters, other scripts, and tools that begin names with ./"""
    names = ["a.png", "sub/b.png", "c" * 150 + ".png", "\u4e2d\u6587.png", "./d.png"]
    (tmp_path / "train").mkdir()
    for number, name in enumerate(names):
        file = io.BytesIO()
        Image.new("RGB", (20, 10), (number, 0, 0)).save(file, "PNG")
        with tarfile.open(tmp_path / f"train/{number}.tar", "w") as tar:
            about = tarfile.TarInfo(name)
            about.size = file.tell()
            file.seek(0)
            tar.addfile(about, file)
            about = tarfile.TarInfo("a folder")
            about.type = tarfile.DIRTYPE
            tar.addfile(about)
    assert write_index(tmp_path / "train") == len(names)
    load = FolderLoader(tmp_path / "train", shards=Shards.open(tmp_path / "train"))
    for number, name in enumerate(names):
        for spelling in (name.removeprefix("./"), name.removeprefix("./").replace("/", "\\")):
            assert load(spelling, (20, 10)).getpixel((3, 3)) == (number, 0, 0)
    with pytest.raises(InputError, match=r"e\.png does not exist"):
        load("e.png", (20, 10))
    with pytest.raises(InputError, match="is outside its folder"):
        load("../a.png", (20, 10))


def test_shards_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "shards").mkdir()
    files = []
    for i in range(7):
        files.append((f"{i}.png", rng.bytes(600_000)))
    assert write_shards(tmp_path / "shards", files, 1) == 7
    shards = Shards.open(tmp_path / "shards")
    assert shards is not None
    assert len(shards.names) == 4
    for name, content in files:
        entry = shards.find(name)
        assert entry is not None
        assert shards.read(entry) == content


def damaged_index(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    index = np.load(folder / INDEX)
    np.save(folder / INDEX, change(index))


def far_away(index: np.ndarray) -> np.ndarray:
    index["offset"] = 2**62
    return index


def other_shard(index: np.ndarray) -> np.ndarray:
    index["shard"] = 9
    return index


WRONG = {
    "no index": (lambda f: [(f / INDEX).unlink(), (f / SHARDS).unlink()], "holds tar files without an index"),
    "no list": (lambda f: (f / SHARDS).unlink(), "list of shards .* does not exist"),
    "half an index": (lambda f: (f / INDEX).unlink(), r"index .*index\.npy does not exist; run cond-detr pack"),
    "another shard": (lambda f: shutil.copy(f / "00000.tar", f / "1.tar"), "is not that of the tar files beside it"),
    "a longer shard": (lambda f: (f / "00000.tar").write_bytes(bytes(99)), "is not that of the tar files beside it"),
    "index cut off": (lambda f: (f / INDEX).write_bytes((f / INDEX).read_bytes()[:150]), "is damaged"),
    "objects": (lambda f: np.save(f / INDEX, np.array([print]), allow_pickle=True), "was not written by this program"),
    "other numbers": (lambda f: np.save(f / INDEX, np.zeros(3)), "was not written by this program"),
    "in a table": (lambda f: np.save(f / INDEX, np.zeros((3, 3), ENTRY)), "was not written by this program"),
    "far away": (lambda f: damaged_index(f, far_away), "is not that long"),
    "no such shard": (lambda f: damaged_index(f, other_shard), "a shard that does not exist"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_gets_a_sentence(packed: Path, kind: str) -> None:
    change, sentence = WRONG[kind]
    change(packed / "val")
    try:
        error = split_of(packed, "val")[0]
    except InputError as opening:
        error = opening
    assert isinstance(error, InputError)
    assert re.search(sentence, str(error))


def test_packing_refuses(dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert exit_code(pack.main, dataset_dir, tmp_path / "there") == 2
    assert "there exists already; choose a new folder" in capsys.readouterr().err
    assert exit_code(pack.main, dataset_dir) == 2
    assert "hold no tar files; name a folder" in capsys.readouterr().err
    (dataset_dir / "val/x.tar").write_bytes(b"nothing of the kind")
    assert exit_code(pack.main, dataset_dir) == 2
    assert "x.tar is no uncompressed tar file" in capsys.readouterr().err
    (dataset_dir / "val/x.tar").unlink()
    missing = next((dataset_dir / "train").iterdir())
    missing.unlink()
    assert exit_code(pack.main, dataset_dir, tmp_path / "packed") == 2
    assert f"image {missing.name} is not in {dataset_dir / 'train'}" in capsys.readouterr().err
    missing.mkdir()
    assert exit_code(pack.main, dataset_dir, tmp_path / "packed") == 2
    assert f"image {missing.name} is not in" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"data", "there"}


SOMEBODYS_LIST = '{"shards": ["a.tar"], "weights": [0.3]}'


@pytest.mark.parametrize(
    ("name", "text"), [("index.npy", ""), ("shards.json", '{"mine": 1}'), ("shards.json", SOMEBODYS_LIST)]
)
@pytest.mark.parametrize("link", [False, True])
def test_an_index_of_somebody_else_is_not_replaced(
    link: bool, name: str, text: str, packed: Path, tmp_path: Path
) -> None:
    file = packed / "train" / name
    assert exit_code(pack.main, packed) == 0  # its own it is
    file.unlink()
    precious = tmp_path / "precious" if link else file
    if name == "index.npy":
        np.save(tmp_path / "my.npy", np.zeros(3))
        (tmp_path / "my.npy").rename(precious)
    else:
        precious.write_text(text)
    content = precious.read_bytes()
    if link:
        file.symlink_to(precious)
    assert exit_code(pack.main, packed) == 2
    assert precious.read_bytes() == content
    assert file.is_symlink() == link


@pytest.mark.parametrize("size", [0, 5, 60])
def test_an_index_that_was_cut_off_is_written_anew(size: int, packed: Path) -> None:
    for name in ("index.npy", "shards.json"):
        path = packed / "train" / name
        path.write_bytes(path.read_bytes()[:size])
    assert exit_code(pack.main, packed) == 0
    assert isinstance(split_of(packed, "train")[0], Sample)


@pytest.mark.parametrize("name", ["index.npy", "shards.json"])
@pytest.mark.parametrize("content", [bytes(500), b""])
def test_an_index_that_never_reached_the_disk_is_written_anew(content: bytes, name: str, packed: Path) -> None:
    (packed / "train" / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is (damaged, or|not valid JSON)"):
        split_of(packed, "train")
    assert exit_code(pack.main, packed) == 0
    assert isinstance(split_of(packed, "train")[0], Sample)


def test_packed_again(packed: Path, tmp_path: Path) -> None:
    """Into smaller files, and with names as other tools begin them."""
    file = packed / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = "./" + image["file_name"]
    file.write_text(json.dumps(content))
    assert exit_code(pack.main, packed, tmp_path / "again") == 0
    assert isinstance(split_of(packed, "train")[0], Sample)
    assert isinstance(split_of(tmp_path / "again", "train")[0], Sample)


def test_a_tar_file_beside_loose_images(dataset_dir: Path) -> None:
    """Somebody's backup; also after somebody has indexed it."""
    image = next(path for path in (dataset_dir / "val").iterdir() if path.name > "val-00000.png")
    with tarfile.open(dataset_dir / "val/backup.tar", "w") as tar:
        tar.add(image, image.name)
    assert isinstance(split_of(dataset_dir, "val")[0], Sample)
    assert exit_code(pack.main, dataset_dir) == 0
    image.unlink()
    assert all(isinstance(split_of(dataset_dir, "val")[i], Sample) for i in range(6))


def test_a_shard_that_vanishes_while_training(packed: Path) -> None:
    dataset = split_of(packed, "val")
    (packed / "val/00000.tar").unlink()
    error = dataset[0]
    assert isinstance(error, InputError)
    assert re.search(r"tar file .*00000\.tar cannot be read: No such file", str(error))


def damage_second_header(path: Path) -> None:
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    content = bytearray(path.read_bytes())
    content[second : second + 512] = b"x" * 512
    path.write_bytes(content)


def link_in_place_of_an_image(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        about = tarfile.TarInfo("link.png")
        about.type, about.linkname = tarfile.LNKTYPE, "val-00000.png"
        tar.addfile(about)


def twice_the_same(path: Path) -> None:
    shutil.copy(path, path.with_name("1.tar"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (damage_second_header, r"00000\.tar is damaged: there is no header at byte \d+"),
        (link_in_place_of_an_image, r"00000\.tar holds image 'link\.png' as a link"),
        (twice_the_same, r"image 'val-0000\d\.png' is more than once in the tar files of .*val"),
    ],
)
def test_tar_files_that_cannot_be_indexed(packed: Path, change: Callable[[Path], None], sentence: str) -> None:
    change(packed / "val/00000.tar")
    with pytest.raises(InputError, match=sentence):
        write_index(packed / "val")


def test_other_files_in_tar_files_are_left_out(packed: Path) -> None:
    with tarfile.open(packed / "val/00000.tar", "a") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("README.txt"))
    assert write_index(packed / "val") == 6


def test_indexes_what_others_have_packed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        (packed / split / INDEX).unlink()
    assert exit_code(pack.main, packed) == 0
    assert "24 images in 1 tar file\n" in capsys.readouterr().out
    assert isinstance(split_of(packed, "train")[3], Sample)
