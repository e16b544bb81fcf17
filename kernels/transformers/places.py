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
from cond_detr_kernels.transformers.losses import ORIGINAL, OWN, AcceleratedLoss, is_for_detection, why_left

Holder = TypeVar("Holder")
MODELING = "transformers.models.conditional_detr.modeling_conditional_detr"
CROSS_ATTENTION = "ConditionalDetrDecoderCrossAttention"
ATTENTION = "the cross-attention of Conditional DETR"


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
        return why_left(self.name) if self.holder[self.name] is ORIGINAL[self.name] else OWN

    def replace(self) -> None:  # noqa: D102
        self.holder[self.name] = AcceleratedLoss(self.name)

    def restore(self) -> None:  # noqa: D102
        self.holder[self.name] = ORIGINAL[self.name]


class ModelLoss(Place[nn.Module]):
    """The loss of a model, where the package looks before its table."""

    def is_ours(self) -> bool:  # noqa: D102
        return isinstance(vars(self.holder).get("_loss_function"), AcceleratedLoss)

    def why_left(self) -> str | None:  # noqa: D102
        return OWN if "_loss_function" in vars(self.holder) else why_left(self.name)

    def replace(self) -> None:  # noqa: D102
        setattr(self.holder, "_loss_function", AcceleratedLoss(self.name))  # noqa: B010 - no tensor, no module

    def restore(self) -> None:  # noqa: D102
        del self.holder._loss_function


class LossOfModels:
    """An attribute of a class: the loss of each of its models, by the model's own type."""

    def __get__(self, model: Any, kind: type | None = None) -> Any:
        if model is None:
            return self
        accelerated = is_for_detection(model.loss_type) and why_left(model.loss_type) is None
        return AcceleratedLoss(model.loss_type) if accelerated else LOSS_MAPPING[model.loss_type]


class ClassLoss(Place[type]):
    """The loss of all models of a class."""

    def is_ours(self) -> bool:  # noqa: D102
        return isinstance(vars(self.holder).get("_loss_function"), LossOfModels)

    def why_left(self) -> str | None:  # noqa: D102
        return OWN if "_loss_function" in vars(self.holder) else why_left(self.name)

    def replace(self) -> None:  # noqa: D102
        self.holder._loss_function = LossOfModels()  # type: ignore[attr-defined]

    def restore(self) -> None:  # noqa: D102
        del self.holder._loss_function  # type: ignore[attr-defined]


@cache
def modeling() -> ModuleType:
    """The package's module of Conditional DETR."""
    return importlib.import_module(MODELING)


@cache
def theirs() -> Any:
    """The package's class of cross-attention; None in releases that have no such class."""
    found = getattr(modeling(), CROSS_ATTENTION, None)
    return found if found is not None and found.__module__ == MODELING else None


@cache
def fused() -> Any:
    """The same with our attention."""
    return type(FUSED, (FusedCrossAttention, theirs()), {"__module__": __name__}) if theirs() else None


FUSED = f"Fused{CROSS_ATTENTION}"


def __getattr__(name: str) -> Any:
    """The class above, which only pickle asks for."""
    if name == FUSED:
        return fused()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LaterAttention(Place[object]):
    """The class that models to come take their cross-attention from, for as long as somebody wants it to be ours."""

    # what it was asked for: classes of models, or None for all
    wanted: set[object] = set()  # noqa: RUF012 - shared by all

    def is_ours(self) -> bool:  # noqa: D102
        return self.holder in self.wanted

    def why_left(self) -> str | None:  # noqa: D102
        there = getattr(modeling(), CROSS_ATTENTION, None)
        return OWN if theirs() and there not in (theirs(), fused()) else why_unknown([modeling()])

    def replace(self) -> None:  # noqa: D102
        self.wanted.add(self.holder)
        setattr(modeling(), CROSS_ATTENTION, fused())

    def restore(self) -> None:  # noqa: D102
        self.wanted.discard(self.holder)
        if not self.wanted and getattr(modeling(), CROSS_ATTENTION) is fused():
            setattr(modeling(), CROSS_ATTENTION, theirs())


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
        losses = (EveryLoss(name, LOSS_MAPPING) for name in ORIGINAL if is_for_detection(name))
        return [*losses, LaterAttention(ATTENTION, None)]
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
        # not getattr: wrappers pass on the attributes of what is in them
        loss_type = vars(module).get("loss_type")
        if isinstance(loss_type, str) and is_for_detection(loss_type):
            yield ModelLoss(loss_type, module)
    if theirs():
        attention = [module for module in model.modules() if type(module) in (theirs(), fused())]
        if attention:
            yield OwnAttention(ATTENTION, attention)


def _in_class(kind: type[nn.Module]) -> Iterator[Place[Any]]:
    # as the package finds it when a model is made
    names = [kind.__name__] if kind.__name__ in ORIGINAL else re.findall("|".join(ORIGINAL), kind.__name__)
    if names and is_for_detection(names[0]):
        yield ClassLoss(names[0], kind)
    if kind.__module__ == MODELING:
        yield LaterAttention(ATTENTION, kind)
