"""Detection of objects in images by a model."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import nn

from cond_detr.data.images import fitted, normalise
from cond_detr.errors import InputError
from cond_detr.models.model import Model
from cond_detr.precision import fp32_products
from cond_detr.predict.detections import Detections, detections
from cond_detr.predict.search import Detect

# A thread must not find the network in the mode that another one has put it in
_ONE_AT_A_TIME = threading.Lock()


def detector_of(model: Model) -> Detect:
    """What finds the objects of any score, as many in each image as there are object queries."""
    return lambda images: detect(model, images)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts all modules of a network into evaluation mode for a block, and each back into its own."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def detect(model: Model, images: Sequence[Image.Image], top: int | None = None) -> list[Detections]:
    """Detects objects of any score in a batch of images.

    The network runs in evaluation mode, and returns to its previous mode; threads wait for each other.

    Args:
        model: the model.
        images: RGB images that have the same size after resizing for the network.
        top: largest number of detections per image; by default the number of object queries.

    Raises:
        InputError: if the weights are not fp32.
    """
    network, data = model.network, model.config.data
    weight = network.class_head.weight
    if weight.dtype != torch.float32:
        raise InputError(f"a detector must have float32 weights (autocast makes it faster), got {weight.dtype}")
    pixels = torch.stack([fitted(image, data.image_size, data.max_size) for image in images])
    with _ONE_AT_A_TIME, evaluating(network), fp32_products(model.config.train.matmul_precision, weight.device):
        predictions = network(normalise(pixels.to(weight.device)))
    return detections(predictions, [image.size for image in images], model.classes, top, softmax=network.softmax)
