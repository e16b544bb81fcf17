"""Running a network for its outputs alone."""

import contextlib
import threading
from collections.abc import Iterator

from cond_detr.models.model import Model
from cond_detr.precision import fp32_products

# Modes are the network's, and the precision of products is torch's: a thread must not find what another one has set
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def inference(model: Model) -> Iterator[None]:
    """For a block, puts all modules of a network into evaluation mode, and products into the model's precision.

    Afterwards each module is in its own mode again. Threads wait for each other.
    """
    with _ONE_AT_A_TIME, fp32_products(model.config.train.matmul_precision, model.device):
        modes = [(module, module.training) for module in model.network.modules()]
        model.network.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
