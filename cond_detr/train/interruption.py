"""SIGINT and SIGTERM during training: the state is saved before the training stops."""

import signal
import threading
from types import FrameType
from typing import Any

import torch

from cond_detr import distributed


class Interrupted(Exception):  # noqa: N818 - not an error
    """SIGINT or SIGTERM stopped the training, and its state has been saved.

    Args:
        signal_number: the signal.
        where: message that says where training stopped.

    Attributes:
        exit_code: 128 plus the number of the signal, as a shell reports it.
    """

    def __init__(self, signal_number: int, where: str) -> None:
        super().__init__(where)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Context manager that records SIGINT and SIGTERM instead of stopping at once.

    A second signal has its usual effect. Signals only reach the main thread.

    Attributes:
        received: number of the signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if main else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])

    def on_any_rank(self, device: torch.device) -> bool:
        """Whether any process has received a signal, so that all of them stop together."""
        return distributed.any_rank(bool(self.received), device)

    def raise_if_stopped(self, device: torch.device, where: str) -> None:
        """Stops the training if any process has received a signal.

        Raises:
            Interrupted: if so, with the message ``where``.
        """
        if self.on_any_rank(device):
            raise Interrupted(self.received or signal.SIGTERM, where)
