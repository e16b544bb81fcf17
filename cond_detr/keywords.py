"""Settings as keywords of methods, so that editors complete them and type checkers check them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from cond_detr.config import Config, DataConfig, LossConfig, ModelConfig, RunConfig, TrainConfig
from cond_detr.errors import InputError, nearest, shown
from cond_detr.settings import all_settings

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True)
class PresetSettings(ModelConfig, LossConfig, DataConfig, TrainConfig):
    """Keywords of :meth:`cond_detr.Detector.from_preset`: ``num_classes``, and all settings of model and training."""

    num_classes: int = 91


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(LossConfig, DataConfig, TrainConfig, RunConfig):
    """Keywords of :meth:`cond_detr.Detector.train`: all settings but those of the architecture."""


def keywords_of(
    settings: Callable[P, Any],
) -> Callable[[Callable[[S, dict[str, Any]], R]], Callable[Concatenate[S, P], R]]:
    """Decorator that gives a method the fields of a dataclass of settings as keywords, visible to type checkers.

    The decorated method receives a dictionary of the keywords that were passed.

    Args:
        settings: the dataclass.
    """

    def decorate(method: Callable[[S, dict[str, Any]], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *args: P.args, **values: P.kwargs) -> R:
            return method(self, _bound(method.__name__, settings, args, values))

        _show_signature(call, method, settings)
        return call

    return decorate


def named_keywords_of(
    settings: Callable[P, Any],
) -> Callable[[Callable[[S, str, dict[str, Any]], R]], Callable[Concatenate[S, str, P], R]]:
    """Like :func:`keywords_of`, for a method whose first argument is a name."""

    def decorate(method: Callable[[S, str, dict[str, Any]], R]) -> Callable[Concatenate[S, str, P], R]:
        @functools.wraps(method)
        def call(self: S, /, name: str, *args: Any, **values: Any) -> R:
            return method(self, name, _bound(method.__name__, settings, args, values))

        _show_signature(call, method, settings)
        return cast("Callable[Concatenate[S, str, P], R]", call)

    return decorate


def _bound(method: str, settings: Callable[..., Any], args: tuple[Any, ...], values: dict[str, Any]) -> dict[str, Any]:
    """The passed arguments by name.

    Raises:
        InputError: if a keyword is not a setting, or an argument was passed by position.
    """
    known = inspect.signature(settings)
    unknown = sorted(values.keys() - known.parameters.keys())
    if unknown:
        raise InputError(
            f"unknown setting {shown(unknown[0])} for {method}; {_meant(unknown[0], list(known.parameters))}"
        )
    try:
        return known.bind(*args, **values).arguments
    except TypeError:
        raise InputError(
            f"{method} takes settings by name, such as epochs=..., got {shown(args[-1])} without one"
        ) from None


def _meant(name: str, known: list[str]) -> str:
    """What to say about a keyword that a method does not take."""
    named_by_option = {each.option[2:].replace("-", "_"): each.name for each in all_settings(Config).values()}
    if named_by_option.get(name, name) != name:
        return f"it is called {named_by_option[name]}"
    if name in all_settings(Config):
        return "it belongs to from_preset, for it decides what the network is"
    meant = nearest(name, known)
    return f"did you mean {meant}?" if meant else f"there are {', '.join(sorted(known))}"


def _show_signature(call: Any, method: Callable[..., Any], settings: Callable[..., Any]) -> None:
    own = list(inspect.signature(method).parameters.values())[:-1]
    theirs = inspect.signature(settings).parameters.values()
    call.__signature__ = inspect.Signature([*own, *theirs])
