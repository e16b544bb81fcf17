"""A table of bad inputs: each ends in one sentence with the file or argument, what was expected and what came.

A row makes its input in a folder of its own and returns the arguments of a command, or calls a function that raises.
"""

import io
import json
import math
import os
import re
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cond_detr import DETR, ConditionalDETR, Detector, InputError, cli, draw_detections
from cond_detr.export import Exported
from cond_detr.train import __main__ as train
from cond_detr_kernels import MatchWeights, conditional_attention, linear_sum_assignment, match, prepare_key_mask

# Seconds after which a row is taken to wait for ever
PATIENCE = 30
SIZE = (40, 30)


def truth(**changes: Any) -> dict[str, Any]:
    """Good annotations of two images, a cat in the first and a dog in the second."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in (1, 2)],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "area": 100, "iscrowd": 0},
            {"id": 6, "image_id": 2, "category_id": 2, "bbox": [5, 5, 20, 10], "area": 150, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **changes,
    }


def altered(part: str, **changes: Any) -> dict[str, Any]:
    """Annotations with changes to the first entry of a list."""
    first, *others = truth()[part]
    return truth(**{part: [{**first, **changes}, *others]})


def picture(form: str = "PNG", size: tuple[int, int] = SIZE) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@dataclass(frozen=True)
class Place:
    """What rows are made in and of.

    Attributes:
        folder: an empty folder.
        run: a finished run of one epoch; nobody may change it.
        model: its detector; likewise.
    """

    folder: Path
    run: Path
    model: Detector

    @property
    def best(self) -> str:
        return str(self.run / "best.pt")

    @property
    def out(self) -> str:
        return str(self.folder / "out")

    def file(self, name: str, content: bytes | str = b"") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def photo(self) -> str:
        return self.file("photo.png", picture())

    def directory(self, name: str) -> str:
        (self.folder / name).mkdir(parents=True)
        return str(self.folder / name)

    def pipe(self, name: str) -> str:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self.folder / name)
        return str(self.folder / name)

    def link(self, name: str) -> str:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).symlink_to(self.folder / "nothing")
        return str(self.folder / name)

    def unreadable(self, name: str) -> str:
        path = self.file(name, "secret")
        Path(path).chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        return path

    def data(self, annotations: Any = None, **images: bytes | None) -> str:
        """A data set whose two splits are the same.

        Args:
            annotations: content of the annotation files, as bytes or for JSON.
            images: by name without suffix, what to write instead of a picture; None for nothing.
        """
        annotations = truth() if annotations is None else annotations
        raw = annotations if isinstance(annotations, bytes) else json.dumps(annotations).encode()
        for split in ("train", "val"):
            self.file(f"data/annotations/instances_{split}.json", raw)
            self.directory(f"data/{split}")
            for name, content in ({"1": picture(), "2": picture()} | images).items():
                if content is not None:
                    self.file(f"data/{split}/{name}.png", content)
        return str(self.folder / "data")

    def content(self, **changes: Any) -> dict[str, Any]:
        """What the checkpoint ``best`` holds, with changes."""
        return {**torch.load(self.best, weights_only=True), **changes}

    def saved(self, name: str, content: Any) -> str:
        torch.save(content, self.folder / name)
        return str(self.folder / name)

    def copied(self, **files: bytes | str | None) -> str:
        """A copy of the run with other files, by their names with _ for a dot; None for what is missing."""
        shutil.copytree(self.run, self.folder / "run")
        for name, content in files.items():
            path = self.folder / "run" / name.replace("_", ".")
            path.unlink()
            if content is not None:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(self.folder / "run")


class Bad(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the test.
        make: makes the input; returns the arguments of a command, or raises.
        says: what the sentence must contain, in this order, with " ... " between.
        kind: what a call raises.
    """

    name: str
    make: Callable[[Place], Any]
    says: str
    kind: type[Exception] = InputError


# The arguments that commands need in any case


def training(*more: str) -> list[str]:
    quick = ["--preset", "shapes", "--image-size", "32", "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    return ["train", *quick, "--device", "cpu", *more]


def on_data(p: Place, data: str, *more: str) -> list[str]:
    return training("--dataset-dir", data, "--output-dir", p.out, *more)


def on_truth(p: Place, part: str, **changes: Any) -> list[str]:
    """A training on annotations with changes to the first entry of a list."""
    return on_data(p, p.data(altered(part, **changes)))


def resuming(*more: str) -> list[str]:
    return ["train", "--device", "cpu", "--workers", "0", "--resume", *more]


def configured(p: Place, content: Any) -> list[str]:
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    return ["train", "--device", "cpu", "--config", p.file("a.json", text)]


def evaluating(checkpoint: str, *more: str) -> list[str]:
    return ["evaluate", "--checkpoint", checkpoint, "--device", "cpu", *more]


def predicting(p: Place, *images: str) -> list[str]:
    return ["predict", "--checkpoint", p.best, "--device", "cpu", "--output-dir", p.out, *images]


def reading(p: Place, checkpoint: str) -> list[str]:
    return ["predict", "--checkpoint", checkpoint, "--device", "cpu", "--output-dir", p.out, p.photo()]


def attending(p: Place, *more: str) -> list[str]:
    return ["attention", "--checkpoint", p.best, "--device", "cpu", "--output-dir", p.out, *more]


def exporting(p: Place, *more: str) -> list[str]:
    return ["export", "--checkpoint", p.best, "--device", "cpu", *more]


def reporting(*more: str) -> list[str]:
    return ["report", "--device", "cpu", "--workers", "0", *more]


def log(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# Files that are made for rows


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def claiming(claim: int) -> bytes:
    """A .safetensors file whose header would be ``claim`` bytes long."""
    return claim.to_bytes(8, "little") + b"{}"


def empty_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w"):
        pass
    return file.getvalue()


def with_tensor(p: Place, name: str, change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    state = p.content()["model"]
    return p.content(model={**state, name: change(state[name])})


def with_setting(p: Place, section: str, **values: Any) -> dict[str, Any]:
    config = p.content()["config"]
    return p.content(config={**config, section: {**config[section], **values}})


def bomb() -> bytes:
    """A PNG that says it is of 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def operands(**changes: Any) -> tuple[list[Any], dict[str, Any]]:
    """Good arguments of conditional_attention, with changes."""
    tensors: dict[str, Any] = {
        "q_content": torch.rand(1, 2, 3, 4),
        "q_spatial": torch.rand(1, 2, 3, 4),
        "k_content": torch.rand(1, 2, 5, 4),
        "k_spatial": torch.rand(1, 2, 5, 4),
        "value": torch.rand(1, 2, 5, 4),
    }
    more = {name: value for name, value in changes.items() if name not in tensors}
    tensors |= {name: value for name, value in changes.items() if name in tensors}
    return list(tensors.values()), more


def attend(**changes: Any) -> None:
    tensors, more = operands(**changes)
    conditional_attention(*tensors, **more)


def matched(**changes: Any) -> None:
    """Calls match with good arguments and changes."""
    arguments: dict[str, Any] = {
        "logits": torch.rand(1, 2, 5, 3),
        "boxes": torch.rand(1, 2, 5, 4),
        "target_labels": torch.zeros(2, 4, dtype=torch.int64),
        "target_boxes": torch.rand(2, 4, 4),
        "target_count": torch.tensor([1, 4]),
        **changes,
    }
    match(**arguments)


def preset(**settings: Any) -> None:
    ConditionalDETR.from_preset("shapes", 2, **settings)


def after(*made: Any) -> Any:
    """The last of several things that are made."""
    return made[-1]


TABLE = [
    # cond-detr itself
    Bad("a misspelt command", lambda p: ["tarin"], "unknown command 'tarin' ... did you mean train?"),
    Bad("an unknown command", lambda p: ["fly"], "unknown command 'fly' ... there are check-data, convert-data, pack"),
    Bad(
        "an unknown option before a command",
        lambda p: ["--verison"],
        "unknown option '--verison' ... did you mean --version?",
    ),
    # options that no parser takes
    Bad("a misspelt option", lambda p: training("--epohcs", "3"), "--epohcs ... did you mean --epochs?"),
    Bad("an option with an underscore", lambda p: training("--lr_drop=1"), "--lr_drop ... did you mean --lr-drop?"),
    Bad("an option without its value", lambda p: training("--epochs"), "--epochs ... expected one argument"),
    Bad("a word too many", lambda p: training("epochs"), "unrecognized arguments: epochs"),
    Bad("a switch with a value", lambda p: training("--compile=yes"), "--compile ... 'yes'"),
    Bad("no checkpoint", lambda p: ["evaluate"], "required: --checkpoint"),
    Bad("no image", lambda p: ["predict", "--checkpoint", p.best, "--output-dir", p.out], "required: SOURCE"),
    Bad("no target", lambda p: exporting(p), "required: TARGET"),
    Bad("no run", lambda p: reporting(), "required: RUN"),
    Bad("no data set", lambda p: ["check-data"], "required: DIR"),
    Bad("no source", lambda p: ["convert"], "required: SOURCE, TARGET"),
    Bad("no output folder", lambda p: ["attention", "--checkpoint", p.best], "required: --output-dir"),
    # values of settings
    Bad("0 epochs", lambda p: training("--epochs", "0"), "--epochs ... a whole number of at least 1 ... '0'"),
    Bad(
        "too many epochs",
        lambda p: training("--epochs", "9" * 20),
        "--epochs ... a whole number of at least 1 and below 2**63 ... '99999999999999999999'",
    ),
    Bad("a rate in words", lambda p: training("--lr", "fast"), "--lr ... a number of at least 0 ... 'fast'"),
    Bad("a negative rate", lambda p: training("--lr=-1"), "--lr ... a number of at least 0 ... '-1'"),
    Bad("a rate that is no number", lambda p: training("--lr", "nan"), "--lr ... a number of at least 0 ... 'nan'"),
    Bad(
        "an infinite rate",
        lambda p: training("--backbone-lr", "inf"),
        "--backbone-lr ... a number of at least 0 and finite ... 'inf'",
    ),
    Bad("dropout 1", lambda p: training("--dropout", "1"), "--dropout ... at least 0 and below 1 ... '1'"),
    Bad("alpha 5", lambda p: training("--focal-alpha", "5"), "--focal-alpha ... at least 0 and at most 1 ... '5'"),
    Bad("average 1.5", lambda p: training("--ema", "1.5"), "--ema ... at least 0 and below 1 ... '1.5'"),
    Bad("scale 5", lambda p: training("--min-scale", "5"), "--min-scale ... at least 0.05 and at most 1 ... '5'"),
    Bad("unknown precision", lambda p: training("--amp", "fp16"), "--amp ... 'fp16' ... off ... bf16"),
    Bad("unknown projection", lambda p: training("--projection", "blok"), "--projection ... 'blok' ... diagonal"),
    Bad("huge images", lambda p: training("--image-size", "8192"), "--image-size ... below 8192 ... '8192'"),
    Bad("1000 layers", lambda p: training("--encoder-layers", "1000"), "--encoder-layers ... below 1000 ... '1000'"),
    Bad(
        "a batch in words", lambda p: training("--batch-size", "all"), "--batch-size ... number of at least 1 or 'auto'"
    ),
    Bad("no threads", lambda p: training("--threads", "0"), "--threads ... at least 1 and below 1024 ... '0'"),
    Bad("2000 workers", lambda p: training("--workers", "2000"), "--workers ... below 1024 ... '2000'"),
    Bad("a negative seed", lambda p: training("--seed=-1"), "--seed ... a whole number of at least 0 ... '-1'"),
    Bad(
        "a trillion queries",
        lambda p: training("--num-queries", "1" + "0" * 12),
        "--num-queries ... at least 1 and below 131072 ... '1000000000000'",
    ),
    Bad(
        "a trillion channels",
        lambda p: training("--d-model", "1" + "0" * 12),
        "--d-model ... at least 1 and below 131072 ... '1000000000000'",
    ),
    Bad(
        "a trillion hidden channels",
        lambda p: training("--ffn-dim", "1" + "0" * 12),
        "--ffn-dim ... at least 1 and below 131072 ... '1000000000000'",
    ),
    # settings that contradict each other
    Bad(
        "heads that do not divide",
        lambda p: on_data(p, p.data(), "--num-heads", "7"),
        "--d-model must be a multiple of 4 * --num-heads ... got 96 and 7",
    ),
    Bad(
        "unknown preset", lambda p: ["train", "--preset", "r5", "--device", "cpu"], "unknown preset 'r5' ... r50, r101"
    ),
    Bad("unknown backbone", lambda p: training("--backbone", "vit"), "unknown backbone 'vit' ... resnet50"),
    Bad(
        "DETR with a spatial query",
        lambda p: on_data(p, p.data(), "--model", "detr", "--spatial-query", "csq-t"),
        "--spatial-query ... plain DETR lacks",
    ),
    Bad(
        "a projection of nothing",
        lambda p: on_data(p, p.data(), "--spatial-query", "csq-t", "--projection", "full"),
        "--projection full ... --spatial-query csq-t",
    ),
    Bad(
        "settings from two places",
        lambda p: [*configured(p, {}), "--preset", "r50"],
        "--config and --preset exclude each other",
    ),
    Bad(
        "another model than the file",
        lambda p: [*configured(p, {}), "--model", "detr"],
        "a.json is of a conditional-detr ... --model detr",
    ),
    Bad(
        "as many images as fit, without a GPU",
        lambda p: training("--batch-size", "auto"),
        "--batch-size auto ... cpu ... give a number",
    ),
    Bad(
        "more images than there are",
        lambda p: on_data(p, p.data(), "--batch-size", "3"),
        "has 2 images ... the 3 of one step ... --batch-size",
    ),
    Bad(
        "images smaller than the stride",
        lambda p: on_data(p, p.data(), "--image-size", "4"),
        "1.png ... 40x30 pixels is too narrow ... stride of 8",
    ),
    # devices
    Bad("unknown device", lambda p: ["train", "--device", "tpu"], "--device must be cpu, cuda or cuda:N ... 'tpu'"),
    Bad("no device", lambda p: ["train", "--device", ""], "--device must be cpu, cuda or cuda:N ... ''"),
    Bad(
        "a GPU that is not there",
        lambda p: [*predicting(p, p.photo()), "--device", "cuda:99"],
        "--device cuda:99 ... CUDA device",
    ),
    Bad(
        "a second processor",
        lambda p: [*predicting(p, p.photo()), "--device", "cpu:5"],
        "--device must be cpu, cuda or cuda:N ... 'cpu:5'",
    ),
    # files of settings
    Bad("settings missing", lambda p: ["train", "--config", "a.json"], "settings file a.json does not exist"),
    Bad("settings empty", lambda p: configured(p, ""), "a.json is not valid JSON"),
    Bad("settings as a folder", lambda p: ["train", "--config", p.directory("a.json")], "a.json is a folder"),
    Bad("settings as a pipe", lambda p: ["train", "--config", p.pipe("a.json")], "a.json is no regular file"),
    Bad(
        "settings unreadable",
        lambda p: ["train", "--config", p.unreadable("a.json")],
        "a.json cannot be read: Permission denied",
    ),
    Bad("settings as a list", lambda p: configured(p, [1]), "a.json: Config must be settings by name ... got [1]"),
    Bad(
        "a section as text",
        lambda p: configured(p, {"model": "r50"}),
        "a.json: ModelConfig must be settings by name ... got 'r50'",
    ),
    Bad(
        "a misspelt setting in a file",
        lambda p: configured(p, {"train": {"epohcs": 3}}),
        "a.json: unknown settings for TrainConfig: epohcs ... epochs",
    ),
    Bad(
        "a setting of another type in a file",
        lambda p: configured(p, {"train": {"epochs": "3"}}),
        "a.json: --epochs must be a whole number ... got '3'",
    ),
    Bad(
        "a switch as a number in a file",
        lambda p: configured(p, {"model": {"dilation": 1}}),
        "a.json: --dilation must be True or False, got 1",
    ),
    Bad(
        "a number that is none in a file",
        lambda p: configured(p, '{"train": {"lr": NaN}}'),
        "a.json: --lr must be a number ... got nan",
    ),
    Bad(
        "an unknown preset in a file",
        lambda p: configured(p, {"preset": "r5"}),
        "a.json: unknown preset 'r5' ... r50, r101",
    ),
    # data sets
    Bad("data missing", lambda p: on_data(p, "nowhere"), "dataset folder nowhere does not exist"),
    Bad("data as a file", lambda p: on_data(p, p.photo()), "photo.png is a file"),
    Bad("data as a pipe", lambda p: on_data(p, p.pipe("a")), "a is no folder"),
    Bad("data with a name too long", lambda p: on_data(p, "x" * 300), "dataset folder xxx ... does not exist"),
    Bad(
        "data without annotations",
        lambda p: on_data(p, p.directory("data")),
        "dataset folder ... has no data set; expected annotations/instances_train.json",
    ),
    Bad(
        "annotations as a folder",
        lambda p: after(p.directory("d/annotations/instances_train.json"), p.directory("d/train"), on_data(p, "d")),
        "d/annotations/instances_train.json is a folder",
    ),
    Bad(
        "annotations as a link to nothing",
        lambda p: after(p.link("d/annotations/instances_train.json"), on_data(p, "d")),
        "has no data set; expected annotations/instances_train.json",
    ),
    Bad(
        "annotations as a pipe",
        lambda p: after(p.pipe("d/annotations/instances_train.json"), p.directory("d/train"), on_data(p, "d")),
        "d/annotations/instances_train.json is no regular file",
    ),
    Bad(
        "no folder of images",
        lambda p: after(p.file("d/annotations/instances_train.json", json.dumps(truth())), on_data(p, "d")),
        "image folder d/train does not exist",
    ),
    Bad("annotations empty", lambda p: on_data(p, p.data(b"")), "instances_train.json is not valid JSON"),
    Bad(
        "annotations cut off",
        lambda p: on_data(p, p.data(cut(json.dumps(truth()).encode()))),
        "instances_train.json is not valid JSON ... line 1",
    ),
    Bad(
        "annotations in bytes",
        lambda p: on_data(p, p.data(b"\x89\xff\x00\x01")),
        "instances_train.json is no text ... 0x89",
    ),
    Bad(
        "annotations as a list",
        lambda p: on_data(p, p.data([])),
        "instances_train.json: expected an object with a list 'images'",
    ),
    Bad(
        "annotations without images",
        lambda p: on_data(p, p.data(truth(images=[], annotations=[]))),
        "instances_train.json: expected at least one image ... got none",
    ),
    Bad(
        "annotations without categories",
        lambda p: on_data(p, p.data(truth(categories=[], annotations=[]))),
        "instances_train.json: expected at least one image and one category",
    ),
    Bad(
        "an image as text",
        lambda p: on_data(p, p.data(truth(images=["1.png"]))),
        "instances_train.json: images[0] must be an object, got '1.png'",
    ),
    Bad(
        "an image without a name",
        lambda p: on_truth(p, "images", file_name=None),
        "images[0] must have text as 'file_name', got None",
    ),
    Bad(
        "an image of half a pixel",
        lambda p: on_truth(p, "images", width=0.5),
        "images[0] must have a whole number as 'width', got 0.5",
    ),
    Bad(
        "an image of a billion pixels",
        lambda p: on_truth(p, "images", width=10**9),
        "image 1 must have a width and a height of 1 to 1000000 pixels, got 1000000000 and 30",
    ),
    Bad(
        "an image twice",
        lambda p: on_truth(p, "images", id=2),
        "instances_train.json: image id 2 is used more than once",
    ),
    Bad(
        "a category twice",
        lambda p: on_truth(p, "categories", id=2),
        "instances_train.json: category id 2 is used more than once",
    ),
    Bad("a name twice", lambda p: on_truth(p, "categories", name="dog"), "category name 'dog' is used more than once"),
    Bad(
        "a category without a name",
        lambda p: on_truth(p, "categories", name=7),
        "categories[0] must have text as 'name', got 7",
    ),
    Bad(
        "a category of True",
        lambda p: on_truth(p, "categories", id=True),
        "categories[0] must have a whole number as 'id', got True",
    ),
    Bad(
        "an object of no image",
        lambda p: on_truth(p, "annotations", image_id=9),
        "annotation 5 is for image 9 ... not among the images",
    ),
    Bad(
        "an object of no category",
        lambda p: on_truth(p, "annotations", category_id=9),
        "annotation 5 (1.png) has category 9 ... not among the categories",
    ),
    Bad(
        "an object without an image",
        lambda p: on_truth(p, "annotations", image_id="first"),
        "annotations[0] must have a whole number as 'image_id', got 'first'",
    ),
    Bad(
        "a box of NaN",
        lambda p: on_truth(p, "annotations", bbox=[1, 2, math.nan, 4]),
        "annotation 5 (1.png) has bbox [1, 2, nan, 4] ... finite",
    ),
    Bad(
        "a box without end",
        lambda p: on_truth(p, "annotations", bbox=[1, 2, math.inf, 4]),
        "annotation 5 (1.png) has bbox [1, 2, inf, 4] ... finite",
    ),
    Bad(
        "a box of three numbers",
        lambda p: on_truth(p, "annotations", bbox=[1, 2, 3]),
        "annotation 5 (1.png) has bbox [1, 2, 3] ... [left, top, width, height]",
    ),
    Bad(
        "a box of words",
        lambda p: on_truth(p, "annotations", bbox=["a", 2, 3, 4]),
        "annotation 5 (1.png) has bbox ['a', 2, 3, 4]",
    ),
    Bad(
        "a box of negative width",
        lambda p: on_truth(p, "annotations", bbox=[9, 2, -3, 4]),
        "annotation 5 (1.png) has bbox [9, 2, -3, 4] ... not negative",
    ),
    Bad("no box", lambda p: on_truth(p, "annotations", bbox=None), "annotation 5 (1.png) has no box ... bbox is None"),
    Bad(
        "half a crowd",
        lambda p: on_truth(p, "annotations", iscrowd=0.5),
        "annotation 5 (1.png) has iscrowd 0.5; expected 0 or 1",
    ),
    # their images
    Bad("an image missing", lambda p: on_data(p, p.data(**{"1": None})), "train/1.png does not exist"),
    Bad(
        "an image outside",
        lambda p: on_truth(p, "images", file_name="../../1.png"),
        "image ../../1.png is outside its folder",
    ),
    Bad("an image as the folder", lambda p: on_truth(p, "images", file_name=""), "data/train ... it is a folder"),
    Bad(
        "an image that is text",
        lambda p: on_data(p, p.data(**{"1": b"a cat"})),
        "1.png cannot be read: it is no image ... JPEG, PNG",
    ),
    Bad(
        "an image cut off",
        lambda p: on_data(p, p.data(**{"1": cut(picture("JPEG", (640, 480)))})),
        "1.png cannot be read ... truncated",
    ),
    Bad(
        "an image of another size",
        lambda p: on_data(p, p.data(**{"1": picture(size=(41, 30))})),
        "1.png is 41x30 pixels, but its annotations say 40x30",
    ),
    # check-data
    Bad("checked: data missing", lambda p: ["check-data", "nowhere"], "dataset folder nowhere does not exist"),
    Bad("checked: not JSON", lambda p: ["check-data", p.data(b"{")], "instances_train.json is not valid JSON"),
    Bad(
        "checked: no pictures",
        lambda p: ["check-data", p.data(), "--images", "0"],
        "--images ... a whole number of at least 1 ... '0'",
    ),
    Bad(
        "checked: a file for pictures",
        lambda p: ["check-data", p.data(), "--output-dir", p.photo()],
        "photo.png cannot be made: File exists",
    ),
    # checkpoints
    Bad("a checkpoint missing", lambda p: evaluating("a.pt"), "checkpoint a.pt does not exist"),
    Bad("a checkpoint of no name", lambda p: evaluating(""), "checkpoint . is a folder"),
    Bad("a checkpoint as a folder", lambda p: evaluating(p.directory("a.pt")), "a.pt is a folder"),
    Bad("a checkpoint as its run", lambda p: evaluating(str(p.run)), "run is a folder; its best model is ... best.pt"),
    Bad("a checkpoint as a link to nothing", lambda p: evaluating(p.link("a.pt")), "a.pt does not exist"),
    Bad("a checkpoint as a pipe", lambda p: evaluating(p.pipe("a.pt")), "a.pt is no regular file"),
    Bad(
        "a checkpoint empty",
        lambda p: reading(p, p.file("a.pt")),
        "checkpoint ... a.pt cannot be read: it is no file of torch's",
    ),
    Bad(
        "a checkpoint unreadable",
        lambda p: evaluating(p.unreadable("a.pt")),
        "a.pt cannot be read: Permission denied",
    ),
    Bad(
        "a checkpoint that is text",
        lambda p: exporting(p, "a.onnx", "--checkpoint", p.file("a.pt", "weights")),
        "a.pt cannot be read: it is no file of torch's",
    ),
    Bad(
        "a checkpoint that is an image",
        lambda p: attending(p, "--checkpoint", p.photo()),
        "photo.png cannot be read: it is no file of torch's",
    ),
    Bad(
        "a checkpoint cut off",
        lambda p: evaluating(p.file("a.pt", cut(Path(p.best).read_bytes()))),
        "a.pt cannot be read: it is damaged",
    ),
    Bad(
        "a checkpoint of an archive with nothing",
        lambda p: evaluating(p.file("a.pt", empty_archive())),
        "a.pt cannot be read",
    ),
    Bad(
        "a checkpoint of a number",
        lambda p: evaluating(p.saved("a.pt", 3)),
        "a.pt is no checkpoint of a detector ... no object queries",
    ),
    Bad(
        "a checkpoint of a later version",
        lambda p: evaluating(p.saved("a.pt", p.content(format="cond_detr/2"))),
        "a.pt has format 'cond_detr/2' ... 'cond_detr/1'",
    ),
    Bad(
        "a checkpoint without classes",
        lambda p: evaluating(p.saved("a.pt", p.content(classes=None))),
        "a.pt cannot be used ... classes must be a list",
    ),
    Bad(
        "a checkpoint with NaN",
        lambda p: evaluating(p.saved("a.pt", with_tensor(p, "class_head.bias", lambda t: t * math.nan))),
        "a.pt ... class_head.bias holds numbers that are not finite",
    ),
    Bad(
        "a checkpoint of whole numbers",
        lambda p: evaluating(p.saved("a.pt", with_tensor(p, "class_head.bias", lambda t: t.long()))),
        "a.pt ... class_head.bias must hold floating point numbers ... int64",
    ),
    Bad(
        "a checkpoint of another shape",
        lambda p: evaluating(p.saved("a.pt", with_tensor(p, "class_head.bias", lambda t: t[:1]))),
        "a.pt ... class_head.bias ... [2] ... [1]",
    ),
    Bad(
        "a checkpoint with a bad setting",
        lambda p: evaluating(p.saved("a.pt", with_setting(p, "model", num_heads=0))),
        "a.pt ... --num-heads must be a whole number of at least 1 ... got 0",
    ),
    Bad(
        "a checkpoint with huge claims",
        lambda p: evaluating(p.saved("a.pt", with_setting(p, "model", ffn_dim=10**5))),
        "a.pt ... linear1.bias: expected torch.Size([100000]) ... got torch.Size([256])",
    ),
    Bad("safetensors empty", lambda p: evaluating(p.file("a.safetensors")), "a.safetensors cannot be read"),
    Bad(
        "safetensors with a huge header",
        lambda p: evaluating(p.file("a.safetensors", claiming(2**62))),
        "a.safetensors cannot be read",
    ),
    Bad(
        "safetensors with a header that is none",
        lambda p: evaluating(p.file("a.safetensors", (9).to_bytes(8, "little") + b"not JSON!")),
        "a.safetensors cannot be read",
    ),
    Bad(
        "safetensors of another model",
        lambda p: evaluating(p.file("a.safetensors", safetensors.torch.save({"conv1.weight": torch.zeros(3)}))),
        "a.safetensors is no checkpoint of a detector ... no object queries",
    ),
    Bad("an address of nothing", lambda p: evaluating("https://["), "https://[ cannot be downloaded"),
    Bad(
        "an address without a lock",
        lambda p: evaluating("http://example.org/a.pt"),
        "http://example.org/a.pt is not https",
    ),
    Bad(
        "an address of another kind",
        lambda p: evaluating("s3://weights/a.pt"),
        "s3://weights/a.pt cannot be downloaded ... https://",
    ),
    # training from a checkpoint
    Bad("weights missing", lambda p: on_data(p, p.data(), "--weights", "a.pt"), "checkpoint a.pt does not exist"),
    Bad(
        "weights of another model",
        lambda p: on_data(p, p.data(), "--weights", p.saved("a.pt", {"conv9.weight": torch.zeros(3)})),
        "a.pt are of another architecture: no tensor fits",
    ),
    Bad(
        "weights with NaN",
        lambda p: on_data(
            p, p.data(), "--weights", p.saved("a.pt", {"box_head.layers.0.bias": torch.full((96,), math.nan)})
        ),
        "a.pt ... not finite",
    ),
    Bad("nothing to resume", lambda p: resuming(), "--resume: nothing to resume ... runs/"),
    Bad(
        "no run to resume",
        lambda p: resuming("--output-dir", p.out),
        "--resume: nothing to resume ... last.pt does not exist",
    ),
    Bad("resume a file that is missing", lambda p: resuming("a/last.pt"), "checkpoint a/last.pt does not exist"),
    Bad("resume from text", lambda p: resuming(p.file("last.pt", "weights")), "last.pt cannot be read"),
    Bad(
        "resume from the best", lambda p: resuming(p.best), "--resume ... best.pt is not a run's last.pt ... --weights"
    ),
    Bad(
        "resume a model",
        lambda p: resuming(p.file("last.pt", Path(p.best).read_bytes())),
        "--resume ... last.pt holds a model but no training state ... --weights",
    ),
    Bad(
        "resume what is finished",
        lambda p: resuming(str(p.run)),
        "--resume: nothing to resume ... has finished 1 epochs; more of them with --epochs",
    ),
    Bad(
        "resume with another rate",
        lambda p: resuming(str(p.run), "--lr", "3"),
        "--resume: --lr differs from what ... last.pt",
    ),
    Bad(
        "resume with another preset",
        lambda p: resuming(str(p.run), "--preset", "r50"),
        "--resume ... is of preset 'shapes', not 'r50'",
    ),
    Bad(
        "resume elsewhere",
        lambda p: resuming(str(p.run), "--output-dir", p.out),
        "--resume ... goes on in its own folder ... out",
    ),
    Bad(
        "resume with weights",
        lambda p: resuming(str(p.run), "--weights", p.best),
        "--resume and --weights exclude each other",
    ),
    Bad(
        "resume with settings",
        lambda p: resuming(str(p.run), "--config", "a.json"),
        "--resume and --config exclude each other",
    ),
    Bad(
        "a folder that holds a run",
        lambda p: on_data(p, p.data(), "--output-dir", str(p.run)),
        "--output-dir ... already holds a run",
    ),
    Bad(
        "a file for a run",
        lambda p: on_data(p, p.data(), "--output-dir", p.photo()),
        "photo.png cannot be made: File exists",
    ),
    Bad(
        "nothing to learn",
        lambda p: on_data(p, p.data(truth(annotations=[]))),
        "instances_train.json: expected objects to learn from, found none",
    ),
    # evaluate
    Bad(
        "evaluated: other classes",
        lambda p: evaluating(p.best, "--dataset-dir", p.data(altered("categories", name="bird"))),
        "instances_val.json has 2 classes ... 'bird' is not among the model's",
    ),
    Bad(
        "evaluated: an image missing",
        lambda p: evaluating(p.best, "--workers", "0", "--dataset-dir", p.data(**{"2": None})),
        "val/2.png does not exist",
    ),
    Bad(
        "evaluated: no images at once",
        lambda p: evaluating(p.best, "--batch-size", "0"),
        "--batch-size ... a whole number of at least 1 ... '0'",
    ),
    Bad(
        "evaluated: unknown precision",
        lambda p: evaluating(p.best, "--matmul-precision", "low"),
        "--matmul-precision ... 'low' ... highest",
    ),
    Bad(
        "evaluated: a file for results",
        lambda p: evaluating(p.best, "--workers", "0", "--output-dir", p.photo()),
        "photo.png cannot be made: File exists",
    ),
    Bad(
        "evaluated: into a run's folder, whose results are those of the training",
        lambda p: evaluating(p.best, "--workers", "0", "--output-dir", p.copied()),
        "run/results.json is not of an earlier evaluate; choose another --output-dir",
    ),
    Bad(
        "evaluated: over another program's results",
        lambda p: evaluating(
            p.best, "--workers", "0", "--output-dir", p.copied(results_json='{"checkpoint": "llama.pt", "AP": 1}')
        ),
        "run/results.json is not of an earlier evaluate; choose another --output-dir",
    ),
    # predict
    Bad("predicted: an image missing", lambda p: predicting(p, "a.png"), "image a.png does not exist"),
    Bad(
        "predicted: text",
        lambda p: predicting(p, p.file("a.txt", "a cat")),
        "a.txt cannot be read: it is no image ... JPEG, PNG",
    ),
    Bad("predicted: nothing", lambda p: predicting(p, p.file("a.png")), "a.png cannot be read: it is no image"),
    Bad(
        "predicted: half an image",
        lambda p: predicting(p, p.file("a.jpg", cut(picture("JPEG", (640, 480))))),
        "a.jpg cannot be read ... truncated",
    ),
    Bad("predicted: half a header", lambda p: predicting(p, p.file("a.png", picture()[:20])), "a.png cannot be read"),
    Bad("predicted: a link to nothing", lambda p: predicting(p, p.link("a.png")), "a.png does not exist"),
    Bad(
        "predicted: an image unreadable",
        lambda p: predicting(p, p.unreadable("a.png")),
        "a.png cannot be read: ... Permission denied",
    ),
    Bad("predicted: a pipe", lambda p: predicting(p, p.pipe("a.png")), "a.png cannot be read: it is no regular file"),
    Bad("predicted: a device", lambda p: predicting(p, "/dev/null"), "/dev/null cannot be read: it is no regular file"),
    Bad("predicted: an empty folder", lambda p: predicting(p, p.directory("photos")), "photos holds no image ... .jpg"),
    Bad("predicted: a pattern of nothing", lambda p: predicting(p, "*.jpg"), "no file is called *.jpg"),
    Bad("predicted: no address", lambda p: predicting(p, "http://[::1/x.jpg"), "http://[::1/x.jpg is no address"),
    Bad("predicted: a name too long", lambda p: predicting(p, "x" * 300), "xxx ... File name too long"),
    Bad(
        "predicted: a huge claim",
        lambda p: predicting(p, p.file("a.png", bomb())),
        "a.png cannot be read ... 3600000000 pixels ... limit",
    ),
    Bad(
        "predicted: a narrow image",
        lambda p: predicting(p, p.file("a.png", picture(size=(400, 2)))),
        "a.png of 400x2 pixels is too narrow",
    ),
    Bad(
        "predicted: depths",
        lambda p: after(
            Image.fromarray(np.zeros((30, 40), np.float32)).save(p.folder / "a.tif"), predicting(p, "a.tif")
        ),
        "a.tif cannot be read ... 32 bits ... expected 8 or 16",
    ),
    Bad(
        "predicted: threshold 1.5",
        lambda p: [*predicting(p, p.photo()), "--threshold", "1.5"],
        "--threshold ... a number from 0 to 1 ... '1.5'",
    ),
    Bad(
        "predicted: no threshold",
        lambda p: [*predicting(p, p.photo()), "--threshold", "nan"],
        "--threshold ... a number from 0 to 1 ... 'nan'",
    ),
    Bad(
        "predicted: half an image at once",
        lambda p: [*predicting(p, p.photo()), "--batch-size", "0.5"],
        "--batch-size ... a whole number of at least 1 ... '0.5'",
    ),
    Bad(
        "predicted: a file for pictures",
        lambda p: [*predicting(p, p.photo()), "--output-dir", p.file("a")],
        "a cannot be made: File exists",
    ),
    # attention
    Bad("drawn: no such layer", lambda p: attending(p, "--layer", "7"), "--layer ... 0 to 0, got 7"),
    Bad(
        "drawn: a layer in words",
        lambda p: attending(p, "--layer", "last"),
        "--layer: expected a whole number ... 'last'",
    ),
    Bad(
        "drawn: less than nothing",
        lambda p: attending(p, "--detections=-1"),
        "--detections ... a whole number of at least 0 ... '-1'",
    ),
    Bad("drawn: an image missing", lambda p: attending(p, "a.png"), "image a.png does not exist"),
    Bad(
        "drawn: a folder of images",
        lambda p: attending(p, p.directory("photos")),
        "photos cannot be read: it is a folder",
    ),
    Bad(
        "drawn: a narrow image",
        lambda p: attending(p, p.file("a.png", picture(size=(2, 400)))),
        "a.png of 2x400 pixels is too narrow",
    ),
    # convert
    Bad("converted: a file missing", lambda p: ["convert", "a.pt", "b.pt"], "checkpoint a.pt does not exist"),
    Bad(
        "converted: unknown suffix",
        lambda p: ["convert", p.best, "b.bin"],
        "b.bin should end in .pt, .pth, .safetensors",
    ),
    Bad(
        "converted: unknown format",
        lambda p: ["convert", p.best, "b.pt", "--to", "onnx"],
        "--to ... 'onnx' ... torchvision",
    ),
    Bad(
        "converted: classes of what has its own",
        lambda p: ["convert", p.best, "b.pt", "--classes", p.file("a.json", json.dumps(truth()))],
        "best.pt says itself ... classes",
    ),
    Bad(
        "converted: unknown preset",
        lambda p: ["convert", p.best, "b.pt", "--preset", "r5"],
        "--preset ... 'r5' ... r50",
    ),
    Bad(
        "converted: classes missing",
        lambda p: ["convert", p.best, "b.pt", "--classes", "a.json"],
        "annotation file a.json does not exist",
    ),
    Bad(
        "converted: a file as the folder",
        lambda p: ["convert", p.best, p.photo() + "/b.pt"],
        "photo.png cannot be made",
    ),
    Bad(
        "converted: into itself",
        lambda p: ["convert", f"{p.copied()}/best.pt", f"{p.folder}/run/../run/best.pt"],
        "best.pt is the source as well; choose another file",
    ),
    Bad("converted: to a folder", lambda p: ["convert", p.best, p.directory("b.pt")], "b.pt ... Is a directory"),
    Bad(
        "converted: queries of no detector",
        lambda p: [
            "convert",
            p.saved("a.pt", {"query_embed.weight": torch.zeros(5, 8), "class_embed.weight": torch.zeros(2, 8)}),
            "b.pt",
        ],
        "a.pt has the architecture of none of r50, r101 ... tensors differ",
    ),
    # export
    Bad("exported: unknown suffix", lambda p: exporting(p, "a.xyz"), "a.xyz should end in .onnx or .pt2"),
    Bad(
        "exported: another suffix",
        lambda p: exporting(p, "a.onnx", "--format", "aot"),
        "a.onnx should end in .pt2 for format aot",
    ),
    Bad(
        "exported: unknown format",
        lambda p: exporting(p, "a.onnx", "--format", "tflite"),
        "--format ... 'tflite' ... onnx",
    ),
    Bad("exported: to a folder", lambda p: exporting(p, p.directory("a.onnx")), "a.onnx is a folder"),
    Bad("exported: to a pipe", lambda p: exporting(p, p.pipe("a.onnx")), "a.onnx is no regular file"),
    Bad("exported: a file as the folder", lambda p: exporting(p, p.photo() + "/a.onnx"), "photo.png cannot be made"),
    # report
    Bad("reported: a run missing", lambda p: reporting("nowhere"), "nowhere/best.pt does not exist"),
    Bad("reported: a checkpoint", lambda p: reporting(p.best), "best.pt is a file; give the folder of the run"),
    Bad("reported: no best", lambda p: reporting(p.copied(best_pt=None)), "best.pt does not exist"),
    Bad("reported: no log", lambda p: reporting(p.copied(log_jsonl=None)), "log.jsonl does not exist"),
    Bad("reported: an empty log", lambda p: reporting(p.copied(log_jsonl="")), "log.jsonl is empty ... no epoch"),
    Bad(
        "reported: a log in words",
        lambda p: reporting(p.copied(log_jsonl="epoch 1: fine\n")),
        "log.jsonl is no log of a run: line 1 is not valid JSON",
    ),
    Bad(
        "reported: a log in bytes",
        lambda p: reporting(p.copied(log_jsonl=b"\xff\xfe")),
        "log.jsonl is no text ... 0xff",
    ),
    Bad(
        "reported: a log of lists",
        lambda p: reporting(p.copied(log_jsonl="[]\n")),
        "log.jsonl is no log of a run: line 1 must have numbers as ... train_loss",
    ),
    Bad(
        "reported: a log of text",
        lambda p: reporting(p.copied(log_jsonl=log({"epoch": 1, "train_loss": "low", "AP": []}))),
        "log.jsonl is no log of a run: line 1 must have numbers as ... train_loss",
    ),
    Bad(
        "reported: a log as a pipe",
        lambda p: after(p.copied(log_jsonl=None), p.pipe("run/log.jsonl"), reporting("run")),
        "log.jsonl is no regular file",
    ),
    Bad("reported: no settings", lambda p: reporting(p.copied(config_json=None)), "config.json does not exist"),
    Bad(
        "reported: settings in bytes",
        lambda p: reporting(p.copied(config_json=b"\xff\xfe")),
        "config.json is no text ... 0xff",
    ),
    Bad(
        "reported: settings as a folder",
        lambda p: after(p.copied(config_json=None), p.directory("run/config.json"), reporting("run")),
        "config.json is a folder",
    ),
    Bad(
        "reported: into no folder",
        lambda p: reporting(str(p.run), "--output", "nowhere/a.html"),
        "nowhere/a.html cannot be written: folder nowhere does not exist",
    ),
    # building
    Bad("a preset that is none", lambda p: Detector.from_preset("r5"), "unknown preset 'r5' ... r50, r101"),
    Bad("a preset as a number", lambda p: Detector.from_preset(50), "unknown preset 50 ... r50, r101"),
    Bad(
        "no classes",
        lambda p: Detector.from_preset("shapes", num_classes=0),
        "num_classes must be a whole number of at least 1 ... got 0",
    ),
    Bad(
        "classes as text",
        lambda p: Detector.from_preset("shapes", num_classes="80"),
        "num_classes must be a whole number ... got '80'",
    ),
    Bad(
        "a trillion classes",
        lambda p: Detector.from_preset("shapes", num_classes=10**12),
        "num_classes must be ... at least 1 and at most 100000, got 1000000000000",
    ),
    Bad(
        "a setting by position",
        lambda p: Detector.from_preset("shapes", 2, 300),
        "from_preset takes settings by name ... got 300",
    ),
    Bad(
        "a misspelt keyword of a preset",
        lambda p: preset(num_querys=3),
        "unknown setting 'num_querys' for from_preset ... did you mean num_queries?",
    ),
    Bad(
        "a keyword by its option",
        lambda p: preset(model="detr"),
        "unknown setting 'model' for from_preset; it is called kind",
    ),
    Bad("a switch as text", lambda p: preset(fused_attn="yes"), "`fused_attn` must be True or False, got 'yes'"),
    Bad(
        "queries as a list",
        lambda p: preset(num_queries=[5]),
        "`num_queries` must be a whole number of at least 1 ... got [5]",
    ),
    Bad(
        "a huge number",
        lambda p: preset(epochs=10**400),
        "`epochs` must be a whole number of at least 1 and below 2**63, got a number of more than 128 bits",
    ),
    Bad(
        "a choice as a number", lambda p: preset(projection=1), "`projection` must be one of identity, scalar ... got 1"
    ),
    Bad("a kind of another class", lambda p: preset(kind="detr"), "is of a DETR, not of a ConditionalDETR"),
    Bad(
        "a checkpoint of another class",
        lambda p: DETR.from_checkpoint(p.best),
        "best.pt is of a ConditionalDETR, not of a DETR",
    ),
    Bad("a checkpoint as a number", lambda p: Detector.from_checkpoint(3), "checkpoint 3 does not exist"),
    Bad("a checkpoint with a zero in its name", lambda p: Detector.from_checkpoint("a\x00.pt"), "does not exist"),
    Bad(
        "weights that do not fit",
        lambda p: p.model.load_weights(p.saved("a.pt", {"conv9.weight": torch.zeros(3)})),
        "a.pt are of another architecture",
    ),
    # training and evaluating
    Bad(
        "training: a misspelt keyword",
        lambda p: p.model.train(epohcs=3),
        "unknown setting 'epohcs' for train ... did you mean epochs?",
    ),
    Bad("training: nothing", lambda p: p.model.train(), "train takes settings, such as dataset_dir"),
    Bad("training: a mode", lambda p: p.model.train(False), "train takes settings by name ... got False"),
    Bad(
        "training: epochs as text",
        lambda p: p.model.train(epochs="3"),
        "`epochs` must be a whole number of at least 1, got '3'",
    ),
    Bad(
        "training: True epochs",
        lambda p: p.model.train(epochs=True),
        "`epochs` must be a whole number of at least 1, got True",
    ),
    Bad(
        "training: a rate as an array",
        lambda p: p.model.train(lr=np.zeros(2)),
        "`lr` must be a number of at least 0, got a ndarray",
    ),
    Bad(
        "training: data as a number",
        lambda p: p.model.train(dataset_dir=3),
        "`dataset_dir` must be a path or text, got 3",
    ),
    Bad(
        "training: data of a long name",
        lambda p: p.model.train(dataset_dir="x" * 300),
        "dataset folder xxx ... does not exist",
    ),
    Bad(
        "training: an architecture",
        lambda p: p.model.train(num_queries=3),
        "'num_queries' for train ... it belongs to from_preset",
    ),
    Bad(
        "training: another loss",
        lambda p: p.model.train(classification="softmax"),
        "`classification` belongs to the model",
    ),
    Bad("training: a device as a number", lambda p: p.model.train(epochs=1, device=0), "`device` must be text, got 0"),
    Bad(
        "training: a folder with a zero in its name",
        lambda p: p.model.train(epochs=1, device="cpu", output_dir="a\x00b"),
        "folder ... cannot be made",
    ),
    Bad("evaluating: data missing", lambda p: p.model.evaluate("nowhere"), "dataset folder nowhere does not exist"),
    Bad(
        "evaluating: a batch as text",
        lambda p: p.model.evaluate(batch_size="all"),
        "`eval_batch_size` must be a whole number of at least 1, got 'all'",
    ),
    Bad(
        "evaluating: half a worker",
        lambda p: p.model.evaluate(workers=0.5),
        "`workers` must be a whole number ... got 0.5",
    ),
    Bad("moving: to nowhere", lambda p: p.model.to("tpu"), "`device` must be cpu, cuda or cuda:N, got 'tpu'"),
    Bad("moving: to a GPU that is not there", lambda p: p.model.to("cuda:99"), "`device` cuda:99 ... CUDA device"),
    # predicting
    Bad(
        "predicting: threshold as text",
        lambda p: p.model.predict(p.photo(), threshold="x"),
        "threshold must be a score in [0, 1], got 'x'",
    ),
    Bad(
        "predicting: threshold a list",
        lambda p: p.model.predict(p.photo(), [0.3]),
        "threshold must be a score in [0, 1], got [0.3]",
    ),
    Bad(
        "predicting: threshold 2", lambda p: p.model.predict(p.photo(), 2), "threshold must be a score in [0, 1], got 2"
    ),
    Bad("predicting: a number", lambda p: p.model.predict(3), "an image must be a path, ... got int"),
    Bad("predicting: None", lambda p: p.model.predict(None), "an image must be a path, ... got NoneType"),
    Bad(
        "predicting: a list of None",
        lambda p: p.model.predict([None]),
        "an image must be a path, ... got NoneType",
    ),
    Bad(
        "predicting: a normalised tensor",
        lambda p: p.model.predict(torch.zeros(3, 30, 40) - 2),
        "an image tensor of floats must have values in [0, 1] ... -2",
    ),
    Bad(
        "predicting: floats",
        lambda p: p.model.predict(np.zeros((30, 40, 3))),
        "an image array must be ... uint8 ... got (30, 40, 3) float64",
    ),
    Bad(
        "predicting: channels first",
        lambda p: p.model.predict(np.zeros((3, 30, 40), np.uint8)),
        "an image array must be ... uint8 ... got (3, 30, 40)",
    ),
    Bad(
        "predicting: an array of no rows",
        lambda p: p.model.predict(np.zeros((0, 40, 3), np.uint8)),
        "image has no pixels: it is 40x0",
    ),
    Bad(
        "predicting: an image of no pixels",
        lambda p: p.model.predict(Image.new("RGB", (0, 0))),
        "image has no pixels: it is 0x0",
    ),
    Bad(
        "predicting: bytes of nothing",
        lambda p: p.model.predict(b""),
        "image cannot be read: it is no image in a format of",
    ),
    Bad("predicting: a file of text", lambda p: p.model.predict(io.StringIO("a cat")), "image cannot be read"),
    Bad(
        "predicting: channels last in a tensor",
        lambda p: p.model.predict(torch.zeros(30, 40, 3)),
        "an image tensor must be (3, H, W) ... got (30, 40, 3)",
    ),
    Bad("predicting: no such class", lambda p: p.model.predict(p.photo(), classes=["x"]), "no class 'x'; it has"),
    Bad("predicting: classes as text", lambda p: p.model.predict(p.photo(), classes="x"), "classes ... got 'x'"),
    Bad("predicting: no batch", lambda p: p.model.predict(p.photo(), batch_size=0), "batch_size must be ... got 0"),
    Bad("predicting: tiny tiles", lambda p: p.model.predict(p.photo(), tile=3), "tile must be ... got 3"),
    Bad("predicting: half tiles", lambda p: p.model.predict(p.photo(), tile=64.5), "tile must be ... got 64.5"),
    Bad(
        "predicting: tiles on each other",
        lambda p: p.model.predict(p.photo(), tile=64, tile_overlap=1),
        "tile_overlap must be a number from 0 to 0.9, got 1",
    ),
    Bad("predicting: an option that is none", lambda p: p.model.predict(p.photo(), nms=1), "no argument 'nms'"),
    Bad("predicting: over http", lambda p: p.model.predict("http://example.org/a.png"), "is not https"),
    Bad("predicting: an unknown scheme", lambda p: p.model.predict("s3://a/b.png"), "image s3://a/b.png ... not https"),
    Bad("streaming: one image", lambda p: list(p.model.stream(p.photo())), "stream takes a video or several images"),
    Bad("streaming: a number", lambda p: list(p.model.stream(3)), "expected a video or several images, got 3"),
    Bad("streaming: no video", lambda p: list(p.model.stream("no.mp4")), "video no.mp4 does not exist"),
    Bad("predict: no such video", lambda p: predicting(p, "no.mp4"), "video no.mp4 does not exist"),
    Bad("predict: a remote video", lambda p: predicting(p, "https://a/b.mp4"), "video https://a/b.mp4 ... download it"),
    Bad("predict: no such class", lambda p: predicting(p, p.photo(), "--classes", "x"), "no class 'x'"),
    Bad("predict: tiles of nothing", lambda p: predicting(p, p.photo(), "--tile", "0"), "--tile ... got '0'"),
    Bad("predict: tiny tiles", lambda p: predicting(p, p.photo(), "--tile", "3"), "tile must be ... got 3"),
    Bad(
        "predict: tiles on each other",
        lambda p: predicting(p, p.photo(), "--tile", "64", "--tile-overlap", "0.95"),
        "argument --tile-overlap: expected a number from 0 to 0.9, got '0.95'",
    ),
    Bad("predicting: a name with a zero", lambda p: p.model.predict("a\x00.png"), "cannot be read"),
    Bad(
        "drawing: on nothing",
        lambda p: draw_detections(None, p.model.predict(p.photo())),
        "an image must be a path, ... got NoneType",
    ),
    Bad(
        "saving detections: unknown suffix",
        lambda p: p.model.predict(p.photo()).save("a.svg"),
        "a.svg should end in .json or one of",
    ),
    Bad(
        "saving detections: to a number",
        lambda p: p.model.predict(p.photo()).save(3),
        "path must be a path or text, got 3",
    ),
    # saving and exporting
    Bad("saving: unknown suffix", lambda p: p.model.save("a.onnx"), "a.onnx should end in .pt, .pth or .safetensors"),
    Bad("saving: to a number", lambda p: p.model.save(3), "path must be a path or text, got 3"),
    Bad(
        "saving: into no folder",
        lambda p: p.model.save("nowhere/a.pt"),
        "nowhere/a.pt cannot be written: folder nowhere does not exist",
    ),
    Bad(
        "exporting: unknown format",
        lambda p: p.model.export("a.onnx", "tflite"),
        "unknown format 'tflite' ... onnx, torch, aot",
    ),
    Bad(
        "exporting: a list of formats",
        lambda p: p.model.export("a.onnx", ["onnx"]),
        "unknown format ['onnx'] ... onnx, torch, aot",
    ),
    Bad(
        "exporting: another suffix",
        lambda p: p.model.export("a.pt2", "onnx"),
        "a.pt2 should end in .onnx for format onnx",
    ),
    Bad("exporting: to a number", lambda p: p.model.export(3), "path must be a path or text, got 3"),
    Bad("exporting: into a file", lambda p: p.model.export(p.photo() + "/a.onnx"), "photo.png cannot be made"),
    Bad("exporting: onto a folder", lambda p: p.model.export(p.directory("a.onnx")), "a.onnx is a folder"),
    Bad(
        "exporting: where nothing can be written",
        lambda p: p.model.export("/proc/a.onnx"),
        "/proc/a.onnx cannot be written",
    ),
    Bad("exported file missing", lambda p: Exported("a.onnx"), "exported file a.onnx does not exist"),
    Bad("exported file a folder", lambda p: Exported(p.directory("a.onnx")), "a.onnx is a folder"),
    Bad("exported file a pipe", lambda p: Exported(p.pipe("a.onnx")), "a.onnx is no regular file"),
    Bad("exported file empty", lambda p: Exported(p.file("a.onnx")), "a.onnx cannot be read"),
    Bad("exported file of text", lambda p: Exported(p.file("a.onnx", "a graph")), "a.onnx cannot be read"),
    Bad("exported file of another suffix", lambda p: Exported(p.best), "best.pt must end in .onnx or .pt2"),
    Bad(
        "exported file without consent",
        lambda p: Exported(p.file("a.pt2"), trust_code="yes"),
        "a.pt2 is a program ... trust_code=True",
    ),
    Bad(
        "exported file with consent, empty",
        lambda p: Exported(p.file("a.pt2"), trust_code=True),
        "a.pt2 cannot be read",
    ),
    Bad("exported file a number", lambda p: Exported(3), "path must be a path or text, got 3"),
    # linear_sum_assignment
    Bad(
        "assignment: a list of numbers",
        lambda p: linear_sum_assignment([1, 2]),
        "expected a matrix ... got a 1-D array",
        ValueError,
    ),
    Bad(
        "assignment: nothing",
        lambda p: linear_sum_assignment(None),
        "expected a matrix ... got a 0-D array",
        ValueError,
    ),
    Bad("assignment: a ragged list", lambda p: linear_sum_assignment([[1, 2], [3]]), "inhomogeneous", ValueError),
    Bad(
        "assignment: text",
        lambda p: linear_sum_assignment([["a", "b"]]),
        "Cannot cast array data from dtype('<U1')",
        TypeError,
    ),
    Bad(
        "assignment: complex numbers",
        lambda p: linear_sum_assignment(np.zeros((2, 2), complex)),
        "expected a matrix containing numerical entries, got complex128",
        ValueError,
    ),
    Bad(
        "assignment: objects",
        lambda p: linear_sum_assignment([[{}, {}]]),
        "expected a matrix containing numerical entries, got object",
        ValueError,
    ),
    Bad(
        "assignment: NaN",
        lambda p: linear_sum_assignment([[math.nan, 1.0]]),
        "matrix contains invalid numeric entries",
        ValueError,
    ),
    Bad(
        "assignment: NaN in the second",
        lambda p: linear_sum_assignment(torch.tensor([[[1.0]], [[math.nan]]])),
        "invalid numeric entries ... problem 1",
        ValueError,
    ),
    Bad(
        "assignment: all forbidden",
        lambda p: linear_sum_assignment(torch.full((2, 2), math.inf)),
        "cost matrix is infeasible",
        ValueError,
    ),
    Bad(
        "assignment: on no device",
        lambda p: linear_sum_assignment(torch.zeros(2, 2, device="meta")),
        "expected a dense tensor on the CPU or a CUDA device ... on meta",
        ValueError,
    ),
    Bad(
        "assignment: sparse",
        lambda p: linear_sum_assignment(torch.eye(2).to_sparse()),
        "expected a dense tensor ... got torch.sparse_coo",
        ValueError,
    ),
    Bad(
        "assignment: maximize as text",
        lambda p: linear_sum_assignment([[1.0]], maximize="yes"),
        "maximize must be True or False, got 'yes'",
        TypeError,
    ),
    # match
    Bad(
        "matching: logits of one layer",
        lambda p: matched(logits=torch.rand(2, 5, 3)),
        "logits must be (L, B, Q, C) ... got (2, 5, 3)",
        ValueError,
    ),
    Bad(
        "matching: boxes of other queries",
        lambda p: matched(boxes=torch.rand(1, 2, 6, 4)),
        "boxes must be (L, B, Q, 4), here (1, 2, 5, 4) ... got (1, 2, 6, 4)",
        ValueError,
    ),
    Bad(
        "matching: labels of other images",
        lambda p: matched(target_labels=torch.zeros(3, 4, dtype=torch.int64)),
        "target_labels must be (B, T) ... got (3, 4)",
        ValueError,
    ),
    Bad(
        "matching: boxes of three numbers",
        lambda p: matched(target_boxes=torch.rand(2, 4, 3)),
        "target_boxes must be (B, T, 4) ... got (2, 4, 3)",
        ValueError,
    ),
    Bad(
        "matching: one count",
        lambda p: matched(target_count=torch.tensor(4)),
        "target_count must be (B,), here (2) ... got ()",
        ValueError,
    ),
    Bad(
        "matching: labels as floats",
        lambda p: matched(target_labels=torch.zeros(2, 4)),
        "target_labels must be an integer tensor, got torch.float32",
        ValueError,
    ),
    Bad(
        "matching: boxes as integers",
        lambda p: matched(boxes=torch.zeros(1, 2, 5, 4, dtype=torch.int64)),
        "boxes must be a floating point tensor, got torch.int64",
        ValueError,
    ),
    Bad(
        "matching: on two devices",
        lambda p: matched(boxes=torch.zeros(1, 2, 5, 4, device="meta")),
        "boxes must have the device of logits, cpu, got meta",
        ValueError,
    ),
    Bad(
        "matching: an array",
        lambda p: matched(logits=np.zeros((1, 2, 5, 3))),
        "logits must be a tensor, got ndarray",
        TypeError,
    ),
    Bad(
        "matching: None", lambda p: matched(target_count=None), "target_count must be a tensor, got NoneType", TypeError
    ),
    Bad(
        "matching: NaN",
        lambda p: matched(logits=torch.full((1, 2, 5, 3), math.nan), strict=True),
        "invalid numeric entries ... layer 0, image 0",
        ValueError,
    ),
    Bad(
        "matching: weights of two",
        lambda p: matched(weights=(1.0, 2.0)),
        "weights must be MatchWeights, got tuple",
        TypeError,
    ),
    Bad(
        "matching: weights as text",
        lambda p: matched(weights=MatchWeights(label="x")),
        "weights.label must be a number, got 'x'",
        TypeError,
    ),
    # conditional_attention
    Bad(
        "attention: three axes",
        lambda p: attend(q_content=torch.rand(2, 3, 4)),
        "q_content must be (B, H, N, Dc) ... got (2, 3, 4)",
        ValueError,
    ),
    Bad(
        "attention: other queries",
        lambda p: attend(q_spatial=torch.rand(1, 2, 4, 4)),
        "q_spatial must be (B, H, N, Ds), here (1, 2, 3, any) ... got (1, 2, 4, 4)",
        ValueError,
    ),
    Bad(
        "attention: other channels",
        lambda p: attend(k_content=torch.rand(1, 2, 5, 8)),
        "k_content must be (B, H, S, Dc), here (1, 2, any, 4) ... got (1, 2, 5, 8)",
        ValueError,
    ),
    Bad(
        "attention: other keys",
        lambda p: attend(value=torch.rand(1, 2, 6, 4)),
        "value must be (B, H, S, Dv), here (1, 2, 5, any) ... got (1, 2, 6, 4)",
        ValueError,
    ),
    Bad(
        "attention: two dtypes",
        lambda p: attend(value=torch.rand(1, 2, 5, 4).double()),
        "value must have the dtype of q_content, torch.float32, got torch.float64",
        ValueError,
    ),
    Bad(
        "attention: two devices",
        lambda p: attend(k_spatial=torch.rand(1, 2, 5, 4, device="meta")),
        "k_spatial must have the device of q_content, cpu, got meta",
        ValueError,
    ),
    Bad(
        "attention: integers",
        lambda p: conditional_attention(*[t.long() for t in operands()[0]]),
        "q_content must be a floating point tensor, got torch.int64",
        ValueError,
    ),
    Bad(
        "attention: an array",
        lambda p: attend(q_content=np.zeros((1, 2, 3, 4))),
        "q_content must be a tensor, got ndarray",
        TypeError,
    ),
    Bad("attention: no value", lambda p: attend(value=None), "value must be a tensor, got NoneType", TypeError),
    Bad(
        "attention: no channels",
        lambda p: conditional_attention(*[t[..., :0] for t in operands()[0]]),
        "q_content and q_spatial must not both have 0 channels",
        ValueError,
    ),
    Bad(
        "attention: a mask of other keys",
        lambda p: attend(key_padding_mask=torch.zeros(1, 6, dtype=torch.bool)),
        "key_padding_mask must be (B, S), here (1, 5) ... got (1, 6)",
        ValueError,
    ),
    Bad(
        "attention: a mask of floats",
        lambda p: attend(key_padding_mask=torch.zeros(1, 5)),
        "key_padding_mask must be a bool tensor, got torch.float32",
        ValueError,
    ),
    Bad(
        "attention: a mask as a list",
        lambda p: prepare_key_mask([[True]]),
        "key_padding_mask must be a tensor, got list",
        TypeError,
    ),
    Bad("attention: dropout 1", lambda p: attend(dropout_p=1.0), "dropout_p must be in [0, 1), got 1.0", ValueError),
    Bad(
        "attention: dropout NaN",
        lambda p: attend(dropout_p=math.nan),
        "dropout_p must be in [0, 1), got nan",
        ValueError,
    ),
    Bad(
        "attention: dropout as text", lambda p: attend(dropout_p="x"), "dropout_p must be a number, got 'x'", TypeError
    ),
    Bad("attention: scale 0", lambda p: attend(scale=0.0), "scale must be positive and finite, got 0.0", ValueError),
    Bad("attention: scale as text", lambda p: attend(scale="x"), "scale must be a number, got 'x'", TypeError),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("good")
    data = Place(folder, folder, None).data()  # type: ignore[arg-type]
    options = ["--preset", "shapes", "--dataset-dir", data, "--image-size", "32", "--epochs", "1", "--batch-size", "2"]
    options += ["--decoder-layers", "1", "--num-queries", "5", "--device", "cpu", "--workers", "0"]
    assert train.main([*options, "--output-dir", str(folder / "run")]) == 0
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> Detector:
    return Detector.from_checkpoint(run / "best.pt")


@pytest.fixture
def place(tmp_path: Path, run: Path, model: Detector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    def waits(*_: Any) -> None:
        pytest.fail(f"not done after {PATIENCE} seconds")

    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(PATIENCE)
    yield Place(tmp_path, run, model)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sentence_of(printed: str, name: str) -> str:
    """The only line about an error; argparse prints its usage before it."""
    lines = printed.splitlines()
    if lines and lines[0].startswith("usage: "):
        begin = next(i for i, line in enumerate(lines) if ": error: " in line)
        assert lines[begin].startswith(f"cond-detr {name}: error: ")
        lines = lines[begin:]
    else:
        assert printed.startswith("error: ")
    assert len(lines) == 1
    return lines[0]


def ended(row: Bad, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a row ends in."""
    try:
        arguments = row.make(place)
    except row.kind as error:
        return str(error)
    assert isinstance(arguments, list), "nothing was raised"
    monkeypatch.setattr(sys, "argv", ["cond-detr", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    return sentence_of(capsys.readouterr().err, arguments[0])


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_bad_input(row: Bad, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = ended(row, place, monkeypatch, capsys)
    assert "Traceback" not in sentence
    assert re.fullmatch(".*".join(["", *map(re.escape, row.says.split(" ... ")), ""]), sentence)
