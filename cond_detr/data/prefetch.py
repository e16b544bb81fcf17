"""Copying batches to the device ahead of their use."""

from collections.abc import Iterable, Iterator

import torch

from cond_detr.data.batching import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches on a device; to CUDA they are copied on a separate stream, during the previous step."""
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(copies)
        for tensor in moved.tensors():
            tensor.record_stream(current)  # or its memory could be used for the next copy too early
        yield moved
