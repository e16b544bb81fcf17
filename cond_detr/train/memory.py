"""A trial step with the largest possible batch, so that a lack of memory shows in the first minute."""

import torch
from torch import nn

from cond_detr.config import Config
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.mosaic import IMAGES
from cond_detr.errors import InputError
from cond_detr.models.model import Model
from cond_detr.train.criterion import Criterion
from cond_detr.train.cuda_graphs import why_not
from cond_detr.train.freezing import train_unfrozen
from cond_detr.train.step import forward_backward


def largest_images(config: Config, dataset: CocoDataset) -> tuple[int, int]:
    """(height, width) in pixels of the largest possible padded batch.

    If batches are not made of images of similar size, a wide and a tall image may be in the same batch.
    """
    data = config.data
    sizes = dataset.annotations.images.sizes
    longest = float((sizes.max(1) / sizes.min(1)).max())
    long = min(data.max_size, round(longest * data.image_size))
    step = max(1, data.size_step)
    short, long = (-(-side // step) * step for side in (data.image_size, long))
    tall, wide = (sizes[:, 1] > sizes[:, 0]).any(), (sizes[:, 0] > sizes[:, 1]).any()
    if tall and wide and not data.size_step:
        return long, long
    return (long, short) if tall and not wide else (short, long)


def empty_batch(batch_size: int, height: int, width: int, targets: int) -> Batch:
    """Makes a batch of black images (height, width), each with ``targets`` targets."""
    labels, boxes = torch.zeros(targets, dtype=torch.int64), torch.full((targets, 4), 0.5)
    return Batch(
        torch.zeros(batch_size, 3, height, width, dtype=torch.uint8),
        torch.zeros(batch_size, height, width, dtype=torch.bool),
        pad_targets([labels] * batch_size, [boxes] * batch_size),
        image_ids=(0,) * batch_size,
        sizes=[(width, height)] * batch_size,
    )


def most_targets(dataset: CocoDataset) -> int:
    """The most targets that an image can have: a mosaic has those of several images."""
    return int(dataset.annotations.counts.max()) * (IMAGES if dataset.data.mosaic else 1)


def rehearse(model: Model, network: nn.Module, criterion: Criterion, dataset: CocoDataset) -> None:
    """Runs forward and backward of the largest possible batch; leaves the model unchanged.

    Raises:
        InputError: if it does not fit into the memory of the device.
    """
    batch_size = model.config.train.images_per_pass
    if not fits(batch_size, model, network, criterion, dataset):
        height, width = largest_images(model.config, dataset)
        raise InputError(
            f"{batch_size} images of {width}x{height} pixels, the largest batch there can be, do not fit into the "
            f"memory of {model.device}; lower `batch_size` (and raise `accumulate`), or `image_size`"
        )


def largest_batch_size(model: Model, network: nn.Module, criterion: Criterion, dataset: CocoDataset, most: int) -> int:
    """Searches for the largest batch size whose backward pass fits into the memory of the model's device.

    The largest images are tried, with the memory reserved that the optimiser and the exchange of gradients take.

    Args:
        model: the model.
        network: its network, or that with training queries.
        criterion: the loss.
        dataset: the training set.
        most: largest batch size to try.

    Raises:
        InputError: if not even one image fits.
    """
    # AdamW's two moments, and the buffer in which processes exchange gradients
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    kept = torch.empty(3 * trained, device=model.device)
    fitting, failing = 0, most + 1
    while failing - fitting > 1:
        candidate = min(2 * fitting or 1, (fitting + failing) // 2)
        if fits(candidate, model, network, criterion, dataset):
            fitting = candidate
        else:
            failing = candidate
    del kept
    if fitting == 0:
        raise InputError(
            f"`batch_size` auto: not even one image fits into the memory of {model.device}; lower `image_size`"
        )
    return fitting


def fits(batch_size: int, model: Model, network: nn.Module, criterion: Criterion, dataset: CocoDataset) -> bool:
    """Whether forward and backward of the largest batch fit into memory, twice with CUDA graphs.

    CUDA graphs have a memory pool of their own, beside that of eager mode.

    Args:
        batch_size: number of images.
        model: the model.
        network: its network, or that with training queries; it is left unchanged.
        criterion: the loss.
        dataset: the training set.
    """
    device, train = model.device, model.config.train
    height, width = largest_images(model.config, dataset)
    most = most_targets(dataset)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    train_unfrozen(network, model.network, train.freeze)
    try:
        batch = empty_batch(batch_size, height, width, most).to(device)
        graphs = None
        if train.cuda_graphs and why_not(model.config, model.network, device) is None:
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            forward_backward(network, criterion, batch, batch.targets.counts.sum(), train.amp)
            needed = torch.cuda.max_memory_allocated(device) - before
            graphs = torch.empty(needed, dtype=torch.uint8, device=device)
        forward_backward(network, criterion, batch, batch.targets.counts.sum(), train.amp)
        del graphs
    except torch.OutOfMemoryError:
        return False
    finally:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
