"""Output of a training run: checkpoints, log, curves, results, a picture, and a printed line for each epoch."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from PIL import Image

from cond_detr import distributed
from cond_detr.config import Config, to_dict
from cond_detr.data.dataset import CocoDataset
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.files import make_folder
from cond_detr.models.model import Model
from cond_detr.predict.detect import detect
from cond_detr.predict.detections import ground_truth
from cond_detr.predict.drawing import draw_detections, sheet
from cond_detr.train.loggers import Logger
from cond_detr.train.model_card import model_card
from cond_detr.train.run_folder import RunFolder
from cond_detr.version import __version__
from cond_detr.weights.checkpoint import Checkpoint

PREVIEW_IMAGES = 16
PREVIEW_THRESHOLD = 0.3
FEWEST_SHOWN = 3


class Recorder:
    """Writes a run's files; on other processes than the first it does nothing.

    Nothing is written before the first state: a run that cannot be resumed leaves its folder as it was.

    Args:
        folder: the run's folder.
        config: the run's settings.
        val_set: data set whose first images are shown.

    Attributes:
        loggers: take what log.jsonl gets.
    """

    def __init__(self, folder: RunFolder, config: Config, val_set: CocoDataset) -> None:
        self.folder = folder
        self.config = config
        self.val_set = val_set
        self.loggers: list[Logger] = []
        self.writes = distributed.rank() == 0
        self.begun = False

    def begin_logging(self, loggers: Sequence[Logger], history: list[dict[str, Any]]) -> None:
        """Tells loggers what begins, and after which epochs."""
        self.loggers = list(loggers)
        for logger in self.loggers:
            make_folder(self.folder.path)
            logger.begin(self.folder.path, to_dict(self.config), history)

    def end_logging(self) -> None:
        """Tells them that nothing more will come."""
        for logger in self.loggers:
            logger.end()

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Writes ``last.pt``, to go on from; the first time also settings and log."""
        if not self.writes:
            return
        if not self.begun:
            assert checkpoint.progress is not None
            make_folder(self.folder.path)
            self.folder.write_config(self.config)
            self.folder.write_log(checkpoint.progress.history)
            self.begun = True
        replace(checkpoint, path=self.folder.last).save()

    def save_not_finite(self, checkpoint: Checkpoint) -> None:
        """Writes ``not_finite.pt``: the state before a step whose loss is not finite."""
        if self.writes:
            replace(checkpoint, path=self.folder.not_finite).save()

    def write_epoch(self, model: Model, evaluation: Evaluation, checkpoint: Checkpoint, *, improved: bool) -> None:
        """Writes all files after an epoch, and prints its line.

        Args:
            model: the evaluated model.
            evaluation: its metrics.
            checkpoint: the state to resume from; its history ends with this epoch.
            improved: whether this is the best epoch so far, so that ``best.pt``, ``README.md``, ``results.json``
                and ``predictions.png`` are written.
        """
        if not self.writes:
            return
        assert checkpoint.progress is not None
        record = checkpoint.progress.history[-1]
        if improved:
            known = facts(record, evaluation, self.val_set)
            weights = model.network.state_dict()
            Checkpoint(self.folder.best, model.config, model.classes, weights, trained=known).save()
            self.folder.write_card(model_card(model, evaluation, known))
            self.folder.write_results(evaluation, epoch=record["epoch"], images=len(self.val_set))
            self.folder.write_predictions(preview(model, self.val_set))
        self.save_last(checkpoint)
        self.folder.write_log(checkpoint.progress.history)
        self.folder.write_curves(checkpoint.progress.history)
        for logger in self.loggers:
            logger.write(record)
            if improved:
                logger.picture("predictions", self.folder.predictions, record["epoch"])
        print(line(record, self.config.train.epochs, improved), flush=True)


def facts(record: dict[str, Any], evaluation: Evaluation, val_set: CocoDataset) -> dict[str, Any]:
    """What a checkpoint says of the epoch that it comes from, for whoever finds it later."""
    best = evaluation.best_f1
    return {
        **({"threshold": best.threshold} if best else {}),
        **{name: record[name] for name in ("epoch", "AP", "AP50", "AP75")},
        "data": val_set.annotations.name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
    }


def preview(model: Model, dataset: CocoDataset) -> Image.Image:
    """Draws detections in the first images of a data set, with the ground truth in white.

    Where no score is high enough, as in the first epochs, the best are shown all the same.
    """
    pictures = []
    records = dataset.annotations.records[:PREVIEW_IMAGES]
    for record in records:
        image = dataset.load(record.file_name, record.size)
        (found,) = detect(model, [image])
        shown = found.above(PREVIEW_THRESHOLD)
        truth = ground_truth(record, dataset.annotations.classes)
        pictures.append(draw_detections(image, shown if len(shown) else found[:FEWEST_SHOWN], truth))
    return sheet(pictures, [record.file_name for record in records])


def line(record: dict[str, Any], epochs: int, improved: bool) -> str:
    """Formats a record of the log as one line."""

    def percent(name: str) -> str:
        return "  - " if record[name] is None else f"{record[name] * 100:4.1f}"

    return (
        f"epoch {record['epoch']:3}/{epochs}  loss {record['train_loss']:7.3f}  AP {percent('AP')}  "
        f"AP50 {percent('AP50')}  AP75 {percent('AP75')}  {record['images_per_second']:6.1f} images/s"
        f"{'  best' if improved else ''}"
    )
