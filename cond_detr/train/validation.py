"""What an epoch ends with: metrics and the loss on the validation images, which says when a model overfits."""

import torch
from torch import Tensor

from cond_detr import distributed
from cond_detr.classes import Classes
from cond_detr.config import RunConfig
from cond_detr.data.batching import Batch
from cond_detr.data.dataset import CocoDataset
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import measure, run_over
from cond_detr.models.model import Model
from cond_detr.models.predictions import Predictions
from cond_detr.train.criterion import Criterion

# The entries of a log record
NAMES = ("val_loss", "val_loss_classification", "val_loss_l1", "val_loss_giou")


def evaluate_epoch(
    model: Model, dataset: CocoDataset, classes: Classes, how: RunConfig, workers: int
) -> tuple[Evaluation, dict[str, float | None]]:
    """COCO's metrics and the losses, by :data:`NAMES`, of a model on the validation images.

    Args:
        model: the model, in evaluation mode.
        dataset: the validation images.
        classes: classes of the model, with the category ids of the data set.
        how: says which evaluator to use, and when a silent process is lost.
        workers: number of processes that load images.
    """
    train, loss = model.config.train, ValidationLoss(model, dataset.annotations.classes)
    found = run_over(
        model,
        dataset,
        classes,
        batch_size=train.eval_batch_size,
        workers=workers,
        amp=train.amp,
        timeout=how.timeout,
        watch=loss.add,
    )
    return measure(dataset, found, how.evaluator, model.device), loss.means()


class ValidationLoss:
    """Sums the losses of batches, without groups and copies of queries, which only training has.

    Args:
        model: the model.
        classes: those of the data set, each of which is one of the model's.
    """

    def __init__(self, model: Model, classes: Classes) -> None:
        self.criterion = Criterion(model.config.loss)
        labels = [model.classes.names.index(name) for name in classes.names]
        self.labels = torch.tensor([*labels, 0], device=model.device)  # the last for padding
        self.sums = torch.zeros(len(NAMES) + 1, dtype=torch.float64, device=model.device)

    @torch.no_grad()
    def add(self, predictions: Predictions, batch: Batch) -> None:
        """Adds a batch, weighted by its number of objects; reads nothing from the device."""
        targets = batch.targets._replace(labels=self.labels[batch.targets.labels.clamp(max=len(self.labels) - 1)])
        objects = targets.counts.sum()
        losses = self.criterion(predictions, targets, objects.clamp(min=1))
        parts = torch.stack([losses.total, losses.classification, losses.l1, losses.giou]).double() * objects
        self.sums += torch.cat([parts, objects[None].double()])

    def means(self) -> dict[str, float | None]:
        """The losses over all objects of all processes, by :data:`NAMES`; None if there is no object."""
        sums: Tensor = distributed.sum_over_ranks(self.sums.clone())
        *totals, objects = sums.tolist()
        return {name: total / objects if objects else None for name, total in zip(NAMES, totals, strict=True)}
