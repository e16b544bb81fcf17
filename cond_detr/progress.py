"""Where a training stands: what a checkpoint carries so that another process can go on."""

from dataclasses import dataclass, field, fields
from typing import Any

from cond_detr.errors import InputError

# Of a step: what is summed up over an epoch, and what log.jsonl calls the means
LOSS_NAMES = ("train_loss", "train_loss_classification", "train_loss_l1", "train_loss_giou")
# What curves and lines of the log are made of
RECORDED = {"epoch", "seconds", "images_per_second", *LOSS_NAMES, "lr", "AP", "AP50", "AP75"}

# What no loss, rate or time comes to
LARGEST = 1e30


@dataclass
class Progress:
    """Where training stands, between any two steps.

    Attributes:
        num_images, images_per_step: what the steps were counted with.
        epoch: epochs finished.
        step: steps done in the epoch under way.
        seconds: time spent on them.
        loss_sums: (4,) sums over those steps of :data:`LOSS_NAMES`.
        best_ap: of all epochs; -1 before the first.
        history: the records of log.jsonl.
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
        """The progress in a file.

        Raises:
            InputError: an entry is missing or unknown, or has a value that no training comes to.
        """
        if not isinstance(values, dict):
            raise InputError(f"progress must be a dictionary, got {type(values).__name__}")
        names = {entry.name for entry in fields(cls)}
        if values.keys() != names:
            raise InputError(f"progress must have exactly the entries {', '.join(sorted(names))}")
        for name, least in (("num_images", 1), ("images_per_step", 1), ("epoch", 0), ("step", 0)):
            if type(values[name]) is not int or values[name] < least:
                raise InputError(f"progress: {name} must be a whole number of at least {least}")
        for name, least in (("seconds", 0), ("best_ap", -1)):
            if not _is_number(values[name]) or values[name] < least:
                raise InputError(f"progress: {name} must be a finite number of at least {least}")
        if values["step"] and not values["seconds"]:
            raise InputError("progress: seconds must be more than 0 after a step")
        sums, history = values["loss_sums"], values["history"]
        if not isinstance(sums, list) or len(sums) != len(LOSS_NAMES) or not all(map(_is_number, sums)):
            raise InputError(f"progress: loss_sums must be {len(LOSS_NAMES)} finite numbers")
        if not isinstance(history, list) or len(history) != values["epoch"] or not all(map(_is_record, history)):
            raise InputError("progress: history must be records of losses and metrics")
        if len(history) != values["epoch"] or any(record["epoch"] != i + 1 for i, record in enumerate(history)):
            raise InputError(f"progress: history must have a record of each of {values['epoch']} epochs")
        return cls(**values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _is_record(value: Any) -> bool:
    """A metric that could not be measured is None."""
    return (
        isinstance(value, dict)
        and value.keys() >= RECORDED
        and all(isinstance(name, str) and (entry is None or _is_number(entry)) for name, entry in value.items())
    )
