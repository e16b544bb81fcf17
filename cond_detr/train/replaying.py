"""Repeating steps of a training up to one that is not finite.

Everything in a step is a function of the seed and of its position, so a state and its position repeat it as it was.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cond_detr import progress
from cond_detr.config import Config
from cond_detr.data.batching import Batch
from cond_detr.errors import InputError
from cond_detr.models.model import Model
from cond_detr.precision import fp32_products
from cond_detr.train.loop import Trainer
from cond_detr.train.not_finite import first_not_finite, names_of_not_finite
from cond_detr.train.preparing import prepared
from cond_detr.train.recorder import Recorder
from cond_detr.train.run import Running, prepare
from cond_detr.train.run_folder import RunFolder
from cond_detr.train.step import TrainStep
from cond_detr.weights.buildable import check_buildable
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.progress import LOSS_NAMES

# Of a step that is not finite, as many gradients are named
MOST_NAMED = 3


@dataclass
class Found:
    """What came of repeating steps.

    Attributes:
        lines: of text.
        cause: the first thing that is not finite, in words; empty if everything is finite.
    """

    lines: list[str]
    cause: str = ""


def replay(checkpoint: Checkpoint, config: Config, running: Running, most: int | None) -> Found:
    """Repeats steps from a state on, up to the first that is not finite.

    Args:
        checkpoint: the state.
        config: its settings; the data set may be in another folder.
        running: device and other settings of running.
        most: number of steps at most; None for the rest of the epoch.

    Raises:
        InputError: if the state or the data set cannot be used.
    """
    check_buildable(checkpoint)
    if checkpoint.progress is None:
        raise InputError(
            f"{checkpoint.path} holds a model but no training state; take not_finite.pt or last.pt of a run"
        )
    weights = names_of_not_finite(iter(checkpoint.model.items()))
    if weights:
        return Found(
            [f"weights that are not finite in {checkpoint.path}: {', '.join(weights[:MOST_NAMED])}"], "weights"
        )
    data = prepare(config, running.config.threads)
    model = Model.new(config, data.train.annotations.classes)
    model.network.to(running.device)
    with tempfile.TemporaryDirectory() as folder, prepared(model.network, config.train):
        trainer = Trainer(model, data, Recorder(RunFolder(Path(folder)), config, data.val), running.config)
        trainer.restore(checkpoint)
        with fp32_products(config.train.matmul_precision, running.device):
            return _repeat(trainer, most)


def _repeat(trainer: Trainer, most: int | None) -> Found:
    """Steps up to one that is not finite."""
    done = 0
    train = trainer.config.train
    step = TrainStep(trainer.trained, trainer.trained, trainer.criterion, trainer.optimizer, train)
    left = trainer.batches.steps - trainer.progress.step
    bar = progress.bar(total=min(left, most or left), desc="repeat", unit="step", leave=False)
    for batches in trainer.groups():
        where = f"epoch {trainer.progress.epoch + 1}, step {trainer.progress.step + 1} of {trainer.batches.steps}"
        losses = trainer.backward(step, batches).tolist()
        gradients = names_of_not_finite((name, p.grad) for name, p in trainer.trained.named_parameters())
        if not all(map(math.isfinite, losses)) or gradients:
            bar.close()
            again = partial(trainer.backward, step, batches)
            return _explained(trainer, where, names_of_images(trainer, batches), losses, gradients, again)
        step.update()
        trainer.after_update()
        done += 1
        bar.update()
        if done == most:
            break
    bar.close()
    return Found([f"all losses and gradients of {done} steps are finite"])


def names_of_images(trainer: Trainer, batches: list[Batch]) -> list[str]:
    """File names of the images of a step."""
    images = trainer.data.train.annotations.images
    index = {image_id: i for i, image_id in enumerate(images.ids.tolist())}
    return [images.names[index[image_id]] for batch in batches for image_id in batch.image_ids]


def _explained(
    trainer: Trainer,
    where: str,
    images: list[str],
    losses: list[float],
    gradients: list[str],
    again: Callable[[], object],
) -> Found:
    """What is not finite in a step, from the first of it on."""
    lines = [where, f"images      {', '.join(images)}"]
    lines += [f"{name.removeprefix('train_'):20}{loss:g}" for name, loss in zip(LOSS_NAMES, losses, strict=True)]
    if module := first_not_finite(trainer.trained, again):
        cause = f"the output of {module}, whose inputs are finite"
    elif not all(map(math.isfinite, losses)):
        cause = "a loss, of finite outputs"
    else:
        cause = f"the gradient of {', '.join(gradients[:MOST_NAMED])}, of a finite loss"
    return Found([*lines, f"first not finite: {cause}"], cause)
