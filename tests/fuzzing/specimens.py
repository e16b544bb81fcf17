"""Valid files of each kind, with their changes and their opener. They are the same bytes whenever they are made."""

import importlib.util
import io
import json
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from cond_detr.config import to_dict
from cond_detr.export.about import KEY, About
from cond_detr.models.predictions import Ranked
from cond_detr.train.ema import WeightAverage
from cond_detr.train.optim import make_optimizer, set_lr
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.naming import from_ours
from cond_detr.weights.progress import RECORDED, Progress
from tests.conftest import write_dataset
from tests.fuzzing import openers
from tests.fuzzing.archive_changes import ARCHIVES, PICKLES
from tests.fuzzing.byte_changes import ANY_FILE, Change
from tests.fuzzing.child import Opener
from tests.fuzzing.header_changes import SAFETENSORS, in_metadata, in_order
from tests.fuzzing.json_changes import JSON, in_a_line

KINDS = ("checkpoints", "annotations", "images", "metadata", "config", "report")
# In a pickle, as text
ADDRESS = re.compile(rb"X[\x09-\x14]\0\0\0(\d{9,20})")
# EXIF's tag for rotation, and others that hold text and a fraction
ORIENTATION, MAKER, RESOLUTION = 0x0112, 0x010F, 0x011A


class Specimen(NamedTuple):
    """A valid file.

    Attributes:
        kind: one of :data:`KINDS`.
        path: the file, in a folder with whatever belongs to it.
        folder: that folder.
        data: the bytes of the file.
        opener: opens it.
        changes: what may happen to it.
    """

    kind: str
    path: Path
    folder: Path
    data: bytes
    opener: Opener
    changes: tuple[Change, ...]


def specimen(
    kind: str, folder: Path, file: str, data: bytes, opener: Opener, changes: tuple[Change, ...] = ()
) -> Specimen:
    """Writes a valid file; changes that know its format are as frequent as those of any file."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    often = max(1, round(len(ANY_FILE) / max(1, len(changes))))
    return Specimen(kind, path, folder, data, opener, (*ANY_FILE, *changes * often))


def saved(content: Any) -> bytes:
    """A file of ``torch.save``."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def saved_older(content: Any) -> bytes:
    """A file of ``torch.save`` in its older layout, of float32 tensors and of counters, which are single int64.

    It names the parts by their addresses and sorts them by these; here they are numbered in the order of the tensors.
    """
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    numbers: dict[bytes, bytes] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        key = numbers.setdefault(found[1], str(len(numbers)).encode())
        return b"X" + len(key).to_bytes(4, "little") + key

    file = io.BytesIO(ADDRESS.sub(numbered, file.getvalue()))
    for _ in range(4):  # magic number, version, machine and content
        list(pickletools.genops(file))
    end = file.tell()
    parts = {}
    for key in pickle.load(file):
        length = int.from_bytes(file.read(8), "little")
        width = 8 if length == 1 else 4
        parts[key] = length.to_bytes(8, "little") + file.read(width * length)
    keys = sorted(parts, key=int)
    return file.getvalue()[:end] + pickle.dumps(keys, protocol=2) + b"".join(parts[key] for key in keys)


def trained() -> Checkpoint:
    """A checkpoint of a run after its first epoch."""
    model = openers.small_model().copy()
    steps = openers.TRAINED_ON // model.config.train.images_per_pass
    optimizer = make_optimizer(model.network, model.config.train)
    set_lr(optimizer, 1.0)
    for _ in range(steps):
        for parameter in model.network.parameters():
            parameter.grad = torch.full_like(parameter, 1e-4)
        optimizer.step()
    average = WeightAverage(model, model.config.train.ema).model.network.state_dict()
    record = {**dict.fromkeys(RECORDED, 0.5), "epoch": 1}
    progress = Progress(openers.TRAINED_ON, model.config.train.images_per_pass, epoch=1, best_ap=0.5, history=[record])
    state = model.network.state_dict()
    return Checkpoint(Path(), model.config, model.classes, state, average, progress, optimizer.state_dict())


def checkpoints(folder: Path) -> Iterator[Specimen]:
    """Checkpoints of this package and of others, as both layouts of ``torch.save`` and as safetensors."""
    own = trained()
    others = from_ours(own.model, "conditional-detr", "original")
    backbone = {n: t.contiguous() for n, t in from_ours(own.model, "conditional-detr", "torchvision").items()}
    whole: dict[str, Any] = {}
    for name, checkpoint in (
        ("best.pt", replace(own, average=None, progress=None, optimizer=None)),
        ("last.pt", own),
        ("best.safetensors", own),
    ):
        (folder / "made").mkdir(parents=True, exist_ok=True)
        replace(checkpoint, path=folder / "made" / name).save()
        whole[name] = (folder / "made" / name).read_bytes()
    content = {"format": "cond_detr/1", "config": to_dict(own.config), "model": own.model}
    content["classes"] = {"names": list(own.classes.names), "category_ids": list(own.classes.category_ids)}
    for name, data, opener, changes in (
        ("best.pt", whole["best.pt"], openers.best, ARCHIVES),
        ("last.pt", whole["last.pt"], openers.last, ARCHIVES),
        ("best.safetensors", in_order(whole["best.safetensors"]), openers.best, SAFETENSORS),
        ("older.pt", saved_older(content), openers.best, PICKLES),
        ("foreign.pth", saved({"model": others, "epoch": 3}), openers.as_weights, ARCHIVES),
        ("foreign-older.pth", saved_older({"model": others}), openers.as_weights, PICKLES),
        ("detector.pth", saved({"model": others}), openers.as_foreign, ARCHIVES),
        ("resnet.safetensors", in_order(safetensors.torch.save(backbone)), openers.as_weights, SAFETENSORS),
    ):
        yield specimen("checkpoints", folder / name.replace(".", "-"), name, data, opener, changes)


def annotations(folder: Path) -> Iterator[Specimen]:
    """An annotation file with its images, and one with polygons, masks and crowds."""
    for name in ("boxes", "masks"):
        write_dataset(folder / name, train=3, val=1)
        file = folder / name / "annotations/instances_train.json"
        content = json.loads(file.read_text())
        if name == "masks":
            with_masks(content)
        data = json.dumps(content).encode()
        yield specimen("annotations", folder / name, str(file.relative_to(folder / name)), data, openers.dataset, JSON)


def with_masks(content: dict[str, Any]) -> None:
    """Gives some annotations other forms of their region, which COCO's format knows too."""
    first, second, third, *_ = content["annotations"]
    for each in (first, second, third):
        del each["bbox"]
    first["segmentation"] = [[1, 2, 30, 2, 30, 40.5, 1, 40]]
    second.update(segmentation={"size": [64, 64], "counts": [100, 20, 44, 20, 3912]}, iscrowd=1)
    third["segmentation"] = {"size": [64, 64], "counts": "fi?2\\1O1O1O"}
    content["images"][0]["license"] = 1
    content["info"] = {"year": 2020}


def images(folder: Path) -> Iterator[Specimen]:
    """Images of each format that is read, most of them with EXIF."""
    pixels = np.random.default_rng(0).integers(0, 256, (*openers.IMAGE_SIZE[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKER], exif[RESOLUTION] = 3, "someone", 72.0
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    for name, source, options in (
        ("a.jpg", picture, {"exif": exif}),
        ("progressive.jpg", picture, {"exif": exif, "progressive": True}),
        ("a.png", picture, {"exif": exif}),
        ("16.png", deep, {}),
        ("palette.png", picture.quantize(16), {"transparency": 3}),
        ("a.tif", picture, {"exif": exif}),
        ("packed.tif", picture, {"compression": "tiff_lzw"}),
        ("a.webp", picture, {"exif": exif}),
        ("a.gif", picture, {}),
        ("a.bmp", picture, {}),
        ("a.ppm", picture, {}),
    ):
        file = io.BytesIO()
        source.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        yield specimen("images", folder / name.replace(".", "-"), name, file.getvalue(), openers.image)


def metadata(folder: Path) -> Iterator[Specimen]:
    """A small ONNX file with the metadata of a detector, and the inputs and outputs of one."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = openers.small_model()
    found = Ranked(torch.tensor([[0.9, 0.2]]), torch.tensor([[0, 5]]), torch.rand(1, 2, 4))
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype), tensor.shape)
        for name, tensor in found._asdict().items()
    ]
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(tensor.numpy(), name))
        for name, tensor in found._asdict().items()
    ]
    source = helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 3, None, None])
    graph = helper.make_graph(nodes, "detector", [source], outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {KEY: About.of(model).write()})
    onnx.checker.check_model(made)
    changes = tuple(in_metadata(change, KEY) for change in (*JSON, *JSON, *ANY_FILE))
    yield specimen("metadata", folder, "a.onnx", made.SerializeToString(), openers.exported, changes)


def config(folder: Path) -> Iterator[Specimen]:
    """The config.json of a run, and that of the transformers package with class names."""
    settings = json.dumps(to_dict(openers.small_config()), indent=1).encode()
    yield specimen("config", folder / "run", "config.json", settings, openers.settings, JSON)
    names = json.dumps({"model_type": "conditional_detr", "id2label": {"0": "cat", "1": "dog", "2": "N/A"}}).encode()
    yield specimen("config", folder / "transformers", "config.json", names, openers.names_beside, JSON)


def report(folder: Path) -> Iterator[Specimen]:
    """The files of a run that a report is made of."""
    records = [{**dict.fromkeys(("epoch", *sorted(RECORDED)), 0.25), "epoch": i} for i in (1, 2, 3)]
    files = {
        "log.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "config.json": json.dumps(to_dict(openers.small_config()), indent=1),
        "results.json": json.dumps({"epoch": 3, "AP": 0.5, "per_class": {"star": {"AP": 0.5, "AP50": None}}}),
    }
    for name in files:
        place = folder / name.replace(".", "-")
        for other, text in files.items():
            place.mkdir(parents=True, exist_ok=True)
            (place / other).write_text(text)
        changes = (*map(in_a_line, JSON),) if name == "log.jsonl" else JSON
        yield specimen("report", place, name, files[name].encode(), openers.run, changes)


MAKERS: dict[str, Callable[[Path], Iterator[Specimen]]] = {
    maker.__name__: maker for maker in (checkpoints, annotations, images, metadata, config, report)
}


def missing(kind: str) -> str:
    """Why there can be no files of a kind; empty if there can."""
    lacking = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} not installed" if kind == "metadata" and lacking else ""


def make(folder: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, list[Specimen]]:
    """Writes the valid files of some kinds, each in a folder of its own."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return {kind: list(MAKERS[kind](folder / kind)) for kind in kinds if not missing(kind)}
