"""Running a network for its outputs alone."""

import contextlib
import os
import threading
from collections.abc import Iterator

from cond_detr.models.model import Model
from cond_detr.precision import fp32_products

# Modes are the network's, and the precision of products is torch's: a thread must not find what another one has set
_one_at_a_time = threading.RLock()


def _anew() -> None:
    """In a process that was forked while another thread had the lock, nobody would ever release it."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


os.register_at_fork(after_in_child=_anew)


@contextlib.contextmanager
def inference(model: Model) -> Iterator[None]:
    """For a block, puts all modules of a network into evaluation mode, and products into the model's precision.

    Afterwards each module is in its own mode again. Threads wait for each other.
    """
    with _one_at_a_time, fp32_products(model.config.train.matmul_precision, model.device):
        modes = [(module, module.training) for module in model.network.modules()]
        model.network.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
