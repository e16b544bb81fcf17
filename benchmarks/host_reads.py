"""Counts how often the host asks a device for a value. On a GPU each time makes it wait for all work before."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"}


class HostReads(TorchDispatchMode):
    """Counts operations whose result, or the shape of it, the host has to know, and all operations.

    On the CPU these are the same as on a GPU, but for copies to the host, which are none here.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in {"index", "index_put", "index_put_"} and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.operations += 1
        if name in READS or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def cuda_synchronisations(call: Callable[[], object]) -> int:
    """How often a call makes the host wait for the current CUDA device, by torch's own account."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
