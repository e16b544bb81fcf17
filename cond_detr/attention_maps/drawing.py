"""Plots of attention maps, as in Figures 1 and 4 of the paper."""

from typing import Any

import torch
from PIL import Image

from cond_detr.attention_maps.maps import DetectionMaps, side_shares
from cond_detr.predict.lettering import families, in_figure


def draw(image: Image.Image, found: DetectionMaps) -> Any:
    """Plots attention maps over the image: spatial, content and combined weights in rows, heads in columns.

    The title of a head names the side of the box near which at least half of its spatial weight lies, if any.

    Args:
        image: RGB.
        found: maps of one detection.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    heads = len(found.spatial)
    aspect = image.height / image.width
    figure = Figure(figsize=(1.3 * heads + 0.5, 3 * 1.3 * aspect + 0.8), layout="constrained")
    axes = figure.subplots(3, heads, squeeze=False)
    left, top, right, bottom = (found.box * torch.tensor([image.width, image.height] * 2)).tolist()
    grey = image.convert("L")
    shares = side_shares(found.spatial, found.box)
    sides = ["".join(f", {side}" for side, share in shares.items() if share[head] >= 0.5) for head in range(heads)]
    for row, name in zip(axes, ("spatial", "content", "combined"), strict=True):
        for head, (axis, weights) in enumerate(zip(row, getattr(found, name), strict=True)):
            axis.imshow(grey, cmap="gray", extent=(0, image.width, image.height, 0))
            axis.imshow(
                weights.numpy(),
                cmap="inferno",
                alpha=0.65,
                extent=(0, image.width, image.height, 0),
                interpolation="bilinear",
            )
            axis.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="cyan", linewidth=1.5)
            )
            axis.set(xlim=(0, image.width), ylim=(image.height, 0), xticks=[], yticks=[])
            if name == "spatial":
                axis.set_title(f"head {head + 1}{sides[head]}", fontsize=10)
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(f"{in_figure(found.name)} {found.score:.2f}", fontsize=10, family=families([found.name]))
    return figure
