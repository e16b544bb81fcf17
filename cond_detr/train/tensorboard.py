"""Learning curves for TensorBoard, with the numbers of log.jsonl."""

from pathlib import Path
from typing import Any

from cond_detr.errors import need


class Events:
    """Writes TensorBoard's event files.

    Args:
        folder: folder for the event files.
        next_epoch: first epoch to write, counted from 1; events of an interrupted run from there on are dropped.

    Raises:
        InputError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, next_epoch: int) -> None:
        need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=next_epoch)

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record of log.jsonl."""
        for name, value in record.items():
            if name != "epoch" and value is not None:
                group = "precision" if name.startswith("AP") else "loss" if "loss" in name else "run"
                self.writer.add_scalar(f"{group}/{name}", value, record["epoch"])
        self.writer.flush()
