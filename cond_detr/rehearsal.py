"""A first step with the largest batch there can be: memory that is too small should show in the first minute."""

import torch

from cond_detr.config import Config
from cond_detr.criterion import Criterion
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.data.coco import CocoDataset
from cond_detr.errors import InputError
from cond_detr.models.detector import Detector
from cond_detr.step import forward_backward


def largest_images(config: Config, dataset: CocoDataset) -> tuple[int, int]:
    """(height, width) of the largest padded batch. A wide and a tall image may meet where batches are of any images."""
    data = config.data
    widths, heights = zip(*(record.size for record in dataset.annotations.records), strict=True)
    longest = max(max(w, h) / min(w, h) for w, h in zip(widths, heights, strict=True))
    long = min(data.max_size, round(longest * data.image_size))
    step = max(1, data.size_step)
    short, long = (-(-side // step) * step for side in (data.image_size, long))
    tall = any(h > w for w, h in zip(widths, heights, strict=True))
    wide = any(w > h for w, h in zip(widths, heights, strict=True))
    if tall and wide and not data.size_step:
        return long, long
    return (long, short) if tall and not wide else (short, long)


def empty_batch(batch_size: int, height: int, width: int, targets: int) -> Batch:
    """Black images, each with so many targets."""
    labels, boxes = torch.zeros(targets, dtype=torch.int64), torch.full((targets, 4), 0.5)
    return Batch(
        torch.zeros(batch_size, 3, height, width),
        torch.zeros(batch_size, height, width, dtype=torch.bool),
        pad_targets([labels] * batch_size, [boxes] * batch_size),
        image_ids=(0,) * batch_size,
        sizes=[(width, height)] * batch_size,
    )


def rehearse(model: Detector, criterion: Criterion, config: Config, dataset: CocoDataset, device: torch.device) -> None:
    """Forward and backward of the largest batch; the model is left as it was.

    Raises:
        InputError: it does not fit into the device's memory.
    """
    if not fits(config.train.batch_size, model, criterion, config, dataset, device):
        height, width = largest_images(config, dataset)
        raise InputError(
            f"{config.train.batch_size} images of {width}x{height} pixels, the largest batch there can be, do not fit "
            f"into the memory of {device}; lower --batch-size (and raise --accumulate), or --image-size"
        )


def largest_batch_size(
    model: Detector, criterion: Criterion, config: Config, dataset: CocoDataset, device: torch.device, most: int
) -> int:
    """How many images, of ``most``, a backward pass may have on the device: its memory holds the largest ones, and what
    training keeps beside them.

    Raises:
        InputError: not even one.
    """
    # AdamW's two moments, and the buffer in which processes exchange gradients
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kept = torch.empty(3 * trained, device=device)
    fitting, failing = 0, most + 1
    while failing - fitting > 1:
        candidate = min(2 * fitting or 1, (fitting + failing) // 2)
        if fits(candidate, model, criterion, config, dataset, device):
            fitting = candidate
        else:
            failing = candidate
    del kept
    if fitting == 0:
        raise InputError(f"--batch-size auto: not even one image fits into the memory of {device}; lower --image-size")
    return fitting


def fits(
    batch_size: int,
    model: Detector,
    criterion: Criterion,
    config: Config,
    dataset: CocoDataset,
    device: torch.device,
) -> bool:
    """Whether there is memory for the largest batch of so many images, twice for CUDA graphs, which have their own."""
    height, width = largest_images(config, dataset)
    most = max(len(record.labels) for record in dataset.annotations.records)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        batch = empty_batch(batch_size, height, width, most).to(device)
        graphs = None
        if config.train.cuda_graphs and device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            forward_backward(model, criterion, batch, batch.targets.counts.sum(), config.train.amp)
            needed = torch.cuda.max_memory_allocated(device) - before
            graphs = torch.empty(needed, dtype=torch.uint8, device=device)
        forward_backward(model, criterion, batch, batch.targets.counts.sum(), config.train.amp)
        del graphs
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
