"""Detection of objects in images by a model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from cond_detr.data.images import ImageLike, InputSize, fitted, is_one, no_image, normalise, open_image
from cond_detr.errors import InputError
from cond_detr.models.model import Model
from cond_detr.precision import fp32_products
from cond_detr.predict.detections import Detections, check_threshold, detections


def predict(model: Model, images: ImageLike | Sequence[ImageLike], threshold: float) -> Any:
    """Detects objects in images; see :meth:`cond_detr.Detector.predict`."""
    return each_image(images, threshold, model.input_size, lambda image: detect(model, [image], threshold)[0])


def each_image(
    images: ImageLike | Sequence[ImageLike],
    threshold: float,
    size: InputSize,
    detect_in: Callable[[Image.Image], Detections],
) -> Any:
    """Opens images one after the other and applies a detector to each.

    Args:
        images: a path, the bytes or file of an image, PIL image or (H, W, 3) uint8 RGB array, or a sequence.
        threshold: lowest score to report; only checked here.
        size: of the network's input; images that are too narrow for it are refused.
        detect_in: detects objects in an RGB image.

    Returns:
        The detections of each image: a list for a sequence, else a single item.

    Raises:
        InputError: if an image cannot be read or is too small, or the threshold is not in [0, 1].
    """
    check_threshold(threshold)

    def found_in(image: ImageLike) -> Detections:
        return replace(detect_in(open_image(image, size=size)), image=image)

    if is_one(images):
        return found_in(images)
    try:
        several = iter(images)
    except TypeError:
        raise no_image(images) from None
    return [found_in(image) for image in several]


@torch.no_grad()
def detect(model: Model, images: Sequence[Image.Image], threshold: float, top: int | None = None) -> list[Detections]:
    """Detects objects in a batch of images.

    The network runs in evaluation mode, and returns to its previous mode.

    Args:
        model: the model.
        images: RGB images that have the same size after resizing for the network.
        threshold: lowest score to report, in [0, 1].
        top: largest number of detections per image; by default the number of object queries.

    Raises:
        InputError: if the weights are not fp32.
    """
    network, data = model.network, model.config.data
    weight = network.class_head.weight
    if weight.dtype != torch.float32:
        raise InputError(f"a detector must have float32 weights (autocast makes it faster), got {weight.dtype}")
    pixels = torch.stack([fitted(image, data.image_size, data.max_size) for image in images])
    modes = [(module, module.training) for module in network.modules()]
    try:
        with fp32_products(model.config.train.matmul_precision, weight.device):
            predictions = network.eval()(normalise(pixels.to(weight.device)))
    finally:
        for module, mode in modes:
            module.training = mode
    found = detections(predictions, [image.size for image in images], model.classes, top, softmax=network.softmax)
    return [each.above(threshold) for each in found]
