"""The places where losses and attention of the transformers package can be replaced."""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any, Generic, TypeVar

from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING

from cond_detr_kernels.transformers.attention import FusedCrossAttention
from cond_detr_kernels.transformers.known import why_unknown
from cond_detr_kernels.transformers.losses import ORIGINAL, AcceleratedLoss, criterion_of, why_left

Holder = TypeVar("Holder")


class Place(ABC, Generic[Holder]):
    """A place that holds code of the package, or ours.

    Args:
        name: what it is called.
        holder: what it is a part of.
    """

    def __init__(self, name: str, holder: Holder) -> None:
        self.name = name
        self.holder = holder

    @abstractmethod
    def is_ours(self) -> bool:
        """Whether it was replaced."""

    @abstractmethod
    def why_left(self) -> str | None:
        """Why it should not be replaced; None if it can be."""

    @abstractmethod
    def replace(self) -> None:
        """Puts ours there."""

    @abstractmethod
    def restore(self) -> None:
        """Puts the package's there."""


class EveryLoss(Place[dict[str, Any]]):
    """The loss of a type, of all models: in the package's table."""

    def is_ours(self) -> bool:  # noqa: D102
        return isinstance(self.holder[self.name], AcceleratedLoss)

    def why_left(self) -> str | None:  # noqa: D102
        return why_left(self.name) if self.holder[self.name] is ORIGINAL[self.name] else OWN_LOSS

    def replace(self) -> None:  # noqa: D102
        self.holder[self.name] = AcceleratedLoss(self.name)

    def restore(self) -> None:  # noqa: D102
        self.holder[self.name] = ORIGINAL[self.name]


OWN_LOSS = "somebody gave it a loss function of their own"


class OwnLoss(Place[Any]):
    """The loss of a model or a class of models, where the package looks before its table."""

    def is_ours(self) -> bool:  # noqa: D102
        return isinstance(vars(self.holder).get("_loss_function"), AcceleratedLoss)

    def why_left(self) -> str | None:  # noqa: D102
        return OWN_LOSS if "_loss_function" in vars(self.holder) else why_left(self.name)

    def replace(self) -> None:  # noqa: D102
        self.holder._loss_function = AcceleratedLoss(self.name)

    def restore(self) -> None:  # noqa: D102
        del self.holder._loss_function


MODELING, CROSS_ATTENTION = (
    "transformers.models.conditional_detr.modeling_conditional_detr",
    "ConditionalDetrDecoderCrossAttention",
)
FUSED = f"Fused{CROSS_ATTENTION}"
ATTENTION = "the cross-attention of Conditional DETR"


def modeling() -> ModuleType:
    """The package's module of Conditional DETR."""
    return importlib.import_module(MODELING)


@cache
def theirs() -> Any:
    """The package's class of cross-attention."""
    return getattr(modeling(), CROSS_ATTENTION)


@cache
def fused() -> Any:
    """The same with our attention."""
    return type(FUSED, (FusedCrossAttention, theirs()), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """The class above, which only pickle asks for."""
    if name == FUSED:
        return fused()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LaterAttention(Place[ModuleType]):
    """The class that models to come take their cross-attention from."""

    def is_ours(self) -> bool:  # noqa: D102
        return getattr(self.holder, CROSS_ATTENTION) is fused()

    def why_left(self) -> str | None:  # noqa: D102
        return why_unknown([self.holder])

    def replace(self) -> None:  # noqa: D102
        setattr(self.holder, CROSS_ATTENTION, fused())

    def restore(self) -> None:  # noqa: D102
        setattr(self.holder, CROSS_ATTENTION, theirs())


class OwnAttention(Place[Sequence[nn.Module]]):
    """The cross-attention of a model."""

    def is_ours(self) -> bool:  # noqa: D102
        return all(type(each) is fused() for each in self.holder)

    def why_left(self) -> str | None:  # noqa: D102
        return why_unknown([modeling()])

    def replace(self) -> None:  # noqa: D102
        for each in self.holder:
            each.__class__ = fused()

    def restore(self) -> None:  # noqa: D102
        for each in self.holder:
            each.__class__ = theirs()


def places_of(model_or_class: nn.Module | type[nn.Module] | None) -> list[Place[Any]]:
    """Where something can be replaced: in all models, in one of them, or in those of a class.

    Raises:
        TypeError: if it is neither.
        ValueError: if there is nothing in it.
    """
    if model_or_class is None:
        losses = (EveryLoss(name, LOSS_MAPPING) for name, loss in ORIGINAL.items() if criterion_of(loss))
        return [*losses, LaterAttention(ATTENTION, modeling())]
    if isinstance(model_or_class, nn.Module):
        places = list(_in_model(model_or_class))
    elif isinstance(model_or_class, type) and issubclass(model_or_class, nn.Module):
        places = list(_in_class(model_or_class))
    else:
        raise TypeError(f"expected a model, a class of models or None, got {model_or_class!r}")
    if not places:
        name = (model_or_class if isinstance(model_or_class, type) else type(model_or_class)).__name__
        raise ValueError(f"{name} has no loss of the transformers package with a Hungarian matching")
    return places


def _in_model(model: nn.Module) -> Iterator[Place[Any]]:
    for module in model.modules():
        loss_type = getattr(module, "loss_type", None)
        if loss_type in ORIGINAL and criterion_of(ORIGINAL[loss_type]):
            yield OwnLoss(loss_type, module)
    attention = [module for module in model.modules() if isinstance(module, theirs())]
    if attention:
        yield OwnAttention(ATTENTION, attention)


def _in_class(kind: type[nn.Module]) -> Iterator[Place[Any]]:
    # as the package finds it when a model is made
    loss_type = next((name for name in ORIGINAL if name == kind.__name__), None)
    found = loss_type or next(iter(re.findall("|".join(ORIGINAL), kind.__name__)), None)
    if found and criterion_of(ORIGINAL[found]):
        yield OwnLoss(found, kind)
    if kind.__module__ == MODELING:
        yield LaterAttention(ATTENTION, modeling())
