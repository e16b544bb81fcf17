"""Computing in fp32 under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Within it, products have the dtype of their factors, also under autocast.

    The meta device has no autocast to turn off. A network on it has shapes alone, which is how sizes and multiply-adds
    are counted.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
