"""Batches on their way to the device."""

from collections.abc import Iterable, Iterator

import torch

from cond_detr.data.batching import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on ``device``; on CUDA copied from pinned memory beside the step before, on a stream of their own."""
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(copies)
        for tensor in moved.tensors():
            tensor.record_stream(current)  # or its memory could be used for the next copy too early
        yield moved
