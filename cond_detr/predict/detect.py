"""Detection of objects in images by a model."""

from collections.abc import Sequence

import torch
from PIL import Image

from cond_detr.data.images import fitted, normalise
from cond_detr.errors import InputError
from cond_detr.models.inference import inference
from cond_detr.models.model import Model
from cond_detr.predict.detections import Detections, detections
from cond_detr.predict.search import Detect


def detector_of(model: Model) -> Detect:
    """What finds the objects of any score, as many in each image as there are object queries."""
    return lambda images: detect(model, images)


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
    with inference(model):
        predictions = network(normalise(pixels.to(weight.device)))
    return detections(predictions, [image.size for image in images], model.classes, top, softmax=network.softmax)
