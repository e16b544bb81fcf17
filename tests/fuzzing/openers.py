"""Opening a file as the package's commands and its Python interface do.

An opener returns what was said about the file on the way, and raises InputError if it is refused. What the checks at
the entrance let through is used, so that a value that is good for nothing is noticed here.
"""

import contextlib
import functools
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cond_detr.check_data import __main__ as check_data
from cond_detr.check_data.findings import check_split, contact_sheet
from cond_detr.config import Config, DataConfig, RunConfig, configure
from cond_detr.data import open_split, shapes
from cond_detr.data.annotations import ImageRecord
from cond_detr.data.batching import collate
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.description import describe_data
from cond_detr.data.images import InputSize, open_image
from cond_detr.data.layouts import FolderLoader, exif_convention
from cond_detr.errors import InputError
from cond_detr.evaluate.coco_metrics import evaluate_table
from cond_detr.export import Exported
from cond_detr.models.model import Model, new_network
from cond_detr.predict.sources import readable
from cond_detr.presets import preset
from cond_detr.report.page import page
from cond_detr.train.__main__ import new_config
from cond_detr.train.loop import Data, Trainer
from cond_detr.train.recorder import Recorder
from cond_detr.train.run_folder import RunFolder
from cond_detr.weights.buildable import check_buildable
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.foreign import classes_beside, open_checkpoint
from cond_detr.weights.opening import open_model
from cond_detr.weights.transfer import load_weights
from tests.fuzzing.child import Opener

SIDE = 64
TRAINED_ON = 4
# Size of the valid images
IMAGE_SIZE = (60, 40)


def small_config() -> Config:
    """The smallest detector."""
    sizes = {"d_model": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 32, "num_queries": 5}
    return configure(preset("shapes"), {**sizes, "epochs": 4, "batch_size": 2, "ema": 0.9})


@functools.cache
def splits() -> Data:
    """A few of the built-in images."""
    sets = []
    for split in ("train", "val"):
        annotations, load = shapes.make_split(split, TRAINED_ON)
        sets.append(CocoDataset(annotations, load, small_config().data, 8, train=split == "train"))
    return Data(*sets)


@functools.cache
def small_model() -> Model:
    """A small detector of the built-in classes, always the same one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Model.new(small_config(), splits().train.annotations.classes)
    model.network.eval()
    return model


def accepted_by_one(*openers: Opener) -> Opener:
    """Opens a file in several ways. It is refused if all of them refuse it; what any of them says is returned."""

    def opener(path: Path) -> list[str]:
        said, refused = list[str](), 0
        for each in openers:
            try:
                said += each(path)
            except InputError as error:
                refused += 1
                said.append(str(error))
        if refused == len(openers):
            raise InputError(said[0])
        return said

    return opener


def as_detector(path: Path) -> list[str]:
    """As ``predict`` opens a checkpoint."""
    model = open_model(path)
    with torch.no_grad():
        model.network(torch.zeros(1, 3, SIDE, SIDE))
    return []


def as_weights(path: Path) -> list[str]:
    """As ``train --weights`` opens a checkpoint."""
    model = small_model().copy()
    load_weights(model, str(path))
    with torch.no_grad():
        model.network(torch.zeros(1, 3, SIDE, SIDE))
    return []


def as_foreign(path: Path) -> list[str]:
    """As a published detector is opened; none is small enough to be among the valid files."""
    with contextlib.suppress(InputError):
        open_checkpoint(str(path))
    return as_weights(path)


def as_training(path: Path) -> list[str]:
    """As ``train --resume`` opens a checkpoint."""
    checkpoint = Checkpoint.load(path)
    check_buildable(checkpoint)
    model = Model.new(checkpoint.config, splits().train.annotations.classes)
    recorder = Recorder(RunFolder(path.parent), checkpoint.config, splits().val)
    trainer = Trainer(model, splits(), recorder, RunConfig(workers=0))
    trainer.restore(checkpoint)
    trainer.optimizer.zero_grad()
    model.network(torch.zeros(1, 3, SIDE, SIDE)).logits.sum().backward()
    trainer.optimizer.step()
    return []


def best(path: Path) -> list[str]:
    """A checkpoint for prediction."""
    return accepted_by_one(as_detector, as_weights)(path)


def last(path: Path) -> list[str]:
    """A checkpoint to resume from."""
    return accepted_by_one(as_detector, as_training)(path)


def dataset(path: Path) -> list[str]:
    """An annotation file of training images, as ``check-data`` and the training open it."""
    return as_checked(path) + as_trained_on(path)


def as_checked(path: Path) -> list[str]:
    """As ``check-data`` opens a data set."""
    folder, printed = path.parents[1], io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        check_data.main([str(folder)])
        with contextlib.suppress(InputError):
            contact_sheet(check_split(folder, "train"), 4)
    return [line.partition(": ")[2] for line in printed.getvalue().splitlines() if line.startswith("problem: ")]


def as_trained_on(path: Path) -> list[str]:
    """As the training opens a data set: every image is loaded and augmented, and COCO's metrics are computed."""
    data = DataConfig(dataset_dir=path.parents[1], image_size=SIDE, max_size=SIDE)
    train_set = open_split(data, "train", 8)
    describe_data(train_set)
    for images in (train_set, as_evaluated(train_set)):
        batch = collate([images[i] for i in range(min(len(images), 8))])
        if isinstance(batch, InputError):
            raise batch
    evaluate_table(train_set.annotations, np.array([[0, 1, 2, 30, 20, 0.5, 0]], np.float64))
    return []


def as_evaluated(images: CocoDataset) -> CocoDataset:
    """The same images as in evaluation."""
    return CocoDataset(images.annotations, images.load, images.data, images.input_size.stride, train=False)


def image(path: Path) -> list[str]:
    """An image, as ``predict`` and the training open it."""

    def as_predicted(path: Path) -> list[str]:
        (found,) = readable([path], InputSize(SIDE, SIDE, 8))
        if isinstance(found, InputError):
            raise found
        return []

    def as_stored(path: Path) -> list[str]:
        open_image(path.read_bytes(), turn=False)
        return []

    def as_annotated(path: Path) -> list[str]:
        record = ImageRecord(1, path.name, IMAGE_SIZE, *(torch.zeros(0, 4).numpy(), torch.zeros(0).long().numpy()))
        turn, _ = exif_convention(FolderLoader(path.parent), [record], "auto")
        FolderLoader(path.parent, turn)(path.name, IMAGE_SIZE)
        return []

    return accepted_by_one(as_predicted, as_stored, as_annotated)(path)


def exported(path: Path) -> list[str]:
    """An ONNX file."""
    detector = Exported(path)
    try:
        found = detector.predict(Image.new("RGB", (SIDE, SIDE)), threshold=0)
    except InputError as error:  # names the image, which may be too narrow for the sizes in the file
        raise InputError(f"{path}: {error}") from None
    assert len(found.names) == len(found.boxes)
    found.to_json()
    return []


def settings(path: Path) -> list[str]:
    """The config.json of a run, as ``train --config`` opens it. Models of any size are asked for, but not made."""
    config = new_config({"config": path})
    RunFolder(path.parent).finished()
    try:
        with torch.device("meta"):
            new_network(config, 6)
    except InputError as error:  # names the setting, which an option may have given too
        raise InputError(f"{path}: {error}") from None
    return []


def names_beside(path: Path) -> list[str]:
    """The config.json beside weights of the transformers package."""
    classes = classes_beside(path.with_name("model.safetensors"))
    if classes is None:
        raise InputError(f"{path} names no classes")
    return []


def run(path: Path) -> list[str]:
    """A file of a run beside its best.pt, as ``report`` opens it."""
    folder = RunFolder(path.parent)
    folder.finished()
    page(small_model(), splits().val, folder, 0)
    return []
