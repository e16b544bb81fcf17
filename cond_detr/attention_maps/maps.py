"""Cross-attention weights of each head for a detection."""

from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn

from cond_detr.data.images import to_network_input
from cond_detr.errors import InputError, shown
from cond_detr.models.attention import AttentionMaps
from cond_detr.models.inference import inference
from cond_detr.models.model import Model
from cond_detr.models.predictions import Predictions, ranked
from cond_detr.predict.detections import detections


class DetectionMaps(NamedTuple):
    """Attention maps of one detection.

    Attributes:
        name: name of its class.
        score: in [0, 1].
        box: (4,) xyxy in fractions of the image size.
        spatial: (heads, h, w) weights of the spatial scores alone; each map sums to 1.
        content: (heads, h, w) weights of the content scores alone; likewise.
        combined: (heads, h, w) weights that the decoder uses; likewise.
    """

    name: str
    score: float
    box: Tensor
    spatial: Tensor
    content: Tensor
    combined: Tensor


@torch.inference_mode()
def detection_maps(model: Model, image: Image.Image, count: int = 1, layer: int = -1) -> list[DetectionMaps]:
    """Computes attention maps for the best detections in an image.

    Args:
        model: the model.
        image: RGB, of any size.
        count: number of detections.
        layer: index of the decoder layer; the last by default.

    Raises:
        InputError: if there is no such layer.
    """
    layers = cast("nn.ModuleList", model.network.decoder.layers)
    if type(layer) is not int or not -len(layers) <= layer < len(layers):
        raise InputError(f"`layer` must be one of the decoder's, 0 to {len(layers) - 1}, got {shown(layer)}")
    cross_attn = cast(nn.Module, layers[layer].cross_attn)
    kept: list[tuple[Any, ...]] = []
    data = model.config.data
    pixels = to_network_input(image, data.image_size, data.max_size)[None]
    with inference(model):
        hook = cross_attn.register_forward_pre_hook(lambda _, arguments: kept.append(arguments))
        try:
            predictions = model.network(pixels.to(model.device))
        finally:
            hook.remove()
        maps: AttentionMaps = cross_attn.maps(*kept[0])  # type: ignore[operator]
    height, width = (-(-side // model.stride) for side in pixels.shape[2:])
    return [
        DetectionMaps(
            name,
            score,
            box,
            *(part[0, :, query].view(-1, height, width).cpu() for part in (maps.spatial, maps.content, maps.combined)),
        )
        for name, score, box, query in best(predictions, model, count)
    ]


def best(predictions: Predictions, model: Model, count: int) -> list[tuple[str, float, Tensor, int]]:
    """Class name, score, box (4,) in fractions of the image size, and query of the best detections in one image."""
    (found,) = detections(predictions, [(1, 1)], model.classes, count, softmax=model.network.softmax)
    _, queries, _ = ranked(predictions, count, softmax=model.network.softmax)
    return list(zip(found.names, found.scores.tolist(), found.boxes, queries[0].tolist(), strict=True))


def side_shares(maps: Tensor, box: Tensor) -> dict[str, Tensor]:
    """Share of each attention map near each side of a box, at most a quarter of the box's size away.

    Args:
        maps: (heads, h, w) weights; each map sums to 1.
        box: (4,) xyxy in fractions of the image size.

    Returns:
        (heads,) shares in [0, 1] for "left", "top", "right" and "bottom". Positions that lie partly in the band count
        in part.
    """
    _, height, width = maps.shape
    left, top, right, bottom = box.tolist()
    columns, rows = maps.sum(1), maps.sum(2)

    def share(weights: Tensor, cells: int, side: float, size: float) -> Tensor:
        edges = torch.arange(cells + 1) / cells
        low, high = side - size / 4, side + size / 4
        inside = (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells
        return (weights * inside).sum(-1)

    return {
        "left": share(columns, width, left, right - left),
        "top": share(rows, height, top, bottom - top),
        "right": share(columns, width, right, right - left),
        "bottom": share(rows, height, bottom, bottom - top),
    }
