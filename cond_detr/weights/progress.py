"""The state of a training run that a checkpoint carries, so that another process can resume it."""

from dataclasses import dataclass, field, fields
from typing import Any

from cond_detr.errors import InputError

# The losses of a step, summed over an epoch; log.jsonl holds their means under these names
LOSS_NAMES = ("train_loss", "train_loss_classification", "train_loss_l1", "train_loss_giou")
# The entries of a log record that curves and printed lines need
RECORDED = {"epoch", "seconds", "images_per_second", *LOSS_NAMES, "lr", "AP", "AP50", "AP75"}

# Larger than any loss, rate or time
LARGEST = 1e12


def is_over(history: list[dict[str, Any]], epochs: int, patience: int) -> bool:
    """Whether a run has done its epochs, or none of the last ``patience`` has raised its AP.

    Args:
        history: the records of the finished epochs.
        epochs: the setting of that name.
        patience: the setting of that name; 0 for no end before the last epoch.
    """
    if len(history) >= epochs or not patience:
        return len(history) >= epochs
    measured = [record["AP"] for record in history]
    if not measured or None in measured:
        return False
    return len(measured) - 1 - measured.index(max(measured)) >= patience


@dataclass
class Progress:
    """The state of a training run between two steps.

    Attributes:
        num_images: size of the training set, by which steps are counted.
        images_per_step: images in one optimiser step, over all processes.
        epoch: finished epochs.
        step: finished steps of the current epoch.
        seconds: time spent on those steps.
        loss_sums: sums of the four :data:`LOSS_NAMES` over those steps.
        best_ap: best AP of all epochs, in [0, 1]; -1 before the first.
        history: the records of log.jsonl, one for each finished epoch.
    """

    num_images: int
    images_per_step: int

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * len(LOSS_NAMES))
    best_ap: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, values: Any) -> "Progress":
        """Checks the progress read from a checkpoint file.

        Args:
            values: what the file holds: a dictionary with an entry for each attribute.

        Raises:
            InputError: if an entry is missing or unknown, or has a value that no training run can have.
        """
        if not isinstance(values, dict):
            raise InputError(f"progress must be a dictionary, got {type(values).__name__}")
        names = {entry.name for entry in fields(cls)}
        if values.keys() != names:
            raise InputError(f"progress must have exactly the entries {', '.join(sorted(names))}")
        _check_numbers(values)
        _check_losses(values["loss_sums"], values["history"], values["epoch"])
        return cls(**values)


def _check_numbers(values: dict[str, Any]) -> None:
    for name, least in (("num_images", 1), ("images_per_step", 1), ("epoch", 0), ("step", 0)):
        if type(values[name]) is not int or values[name] < least:
            raise InputError(f"progress: {name} must be a whole number of at least {least}")
    for name, least in (("seconds", 0), ("best_ap", -1)):
        if not _is_number(values[name]) or values[name] < least:
            raise InputError(f"progress: {name} must be a finite number of at least {least}")
    if values["step"] and not values["seconds"]:
        raise InputError("progress: seconds must be more than 0 after a step")


def _check_losses(sums: Any, history: Any, epoch: int) -> None:
    if not isinstance(sums, list) or len(sums) != len(LOSS_NAMES) or not all(map(_is_number, sums)):
        raise InputError(f"progress: loss_sums must be {len(LOSS_NAMES)} finite numbers")
    if not isinstance(history, list) or len(history) != epoch or not all(map(is_record, history)):
        raise InputError("progress: history must be records of losses and metrics")
    if any(record["epoch"] != i + 1 for i, record in enumerate(history)):
        raise InputError(f"progress: history must have a record of each of {epoch} epochs")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def is_record(value: Any) -> bool:
    """Whether a value is a record of log.jsonl; a metric that could not be measured is None."""
    return (
        isinstance(value, dict)
        and value.keys() >= RECORDED
        and all(isinstance(name, str) and (entry is None or _is_number(entry)) for name, entry in value.items())
    )
