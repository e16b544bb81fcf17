"""Replacing losses and attention of the transformers package's detectors, and taking it back."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cond_detr_kernels.transformers.places import Place, places_of

ALREADY = "it is replaced already"


@dataclass
class Acceleration:
    """What was replaced, and what was not.

    Attributes:
        replaced: names of the losses, as in the package's ``LOSS_MAPPING``, and of the attention.
        left: why others were left as they are, by name.
    """

    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"replaced: {', '.join(self.replaced) or 'nothing'}"]
        return "\n".join(lines + [f"left: {name}, as {why}" for name, why in self.left.items()])


def accelerate(model_or_class: nn.Module | type[nn.Module] | None = None) -> Acceleration:
    """Makes detectors of the transformers package train faster: same losses, same gradients, same names.

    Matching, classification and box losses of all layers are computed at once and without reading a value from the
    device; Conditional DETR's cross-attention is :func:`cond_detr_kernels.conditional_attention`.

    Args:
        model_or_class: a model, also one in a wrapper such as DistributedDataParallel; or a class of models; or None
            for all. The attention of a model that is there already is replaced only if that model is given.

    Returns:
        What was replaced and what was left, and why: code of the package that this was not tested with is left alone.

    Raises:
        TypeError: if it is neither.
        ValueError: if it has no loss of the package with a Hungarian matching.
    """
    # all reasons first, so that an error leaves everything as it was
    places = [(place, ALREADY if place.is_ours() else place.why_left()) for place in places_of(model_or_class)]
    done = Acceleration()
    for place, why in places:
        if why is None:
            place.replace()
            done.replaced.append(place.name)
        else:
            done.left[place.name] = why
    return done


def restore(model_or_class: nn.Module | type[nn.Module] | None = None) -> list[str]:
    """Takes back what :func:`accelerate` replaced with the same argument.

    Models that were built in between keep their attention, until they are given themselves.

    Returns:
        The names of what was taken back.

    Raises:
        TypeError, ValueError: as there.
    """
    taken: list[Place[Any]] = [place for place in places_of(model_or_class) if place.is_ours()]
    for place in taken:
        place.restore()
    return [place.name for place in taken]
