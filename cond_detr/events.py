"""A run's curves for TensorBoard; log.jsonl has the same numbers."""

from pathlib import Path
from typing import Any

from cond_detr.errors import need


class Events:
    """Writes a record per epoch.

    Args:
        folder: for the event files.
        next_epoch: the first epoch that will be written; what an interrupted run wrote from there on is dropped.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, next_epoch: int) -> None:
        need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=next_epoch)

    def write(self, record: dict[str, Any]) -> None:
        """A record of log.jsonl."""
        for name, value in record.items():
            if name != "epoch" and value is not None:
                group = "precision" if name.startswith("AP") else "loss" if "loss" in name else "run"
                self.writer.add_scalar(f"{group}/{name}", value, record["epoch"])
        self.writer.flush()
