"""Declaration of settings: a dataclass field holds a setting's type, default, bounds, choices and help.

The command-line options (:mod:`cond_detr.options`), the checks of Python keywords and of files, and config.json follow
from it. To add a setting, only change its dataclass and the code that uses it.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cond_detr.errors import MOST, InputError, shown

T = TypeVar("T")
# Exclusive limits of 64-bit integers and of doubles
LARGEST_INT = 2**63
LARGEST_FLOAT = sys.float_info.max
# What types are called in messages
WANTED = {bool: "True or False", str: "text", Path: "a path"}


def setting(
    default: Any,
    help: str,
    *,
    least: float = 0,
    below: float | None = None,
    most: float | None = None,
    option: str | None = None,
    group: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Declares a setting: a field of a dataclass of settings, called a section.

    Args:
        default: the paper's value for ResNet-50.
        help: what the setting does, for the command line and for Python.
        least: smallest number allowed.
        below: exclusive upper limit of a number; none by default.
        most: largest number allowed; none by default.
        option: name of the command-line option without dashes, if it differs from the field's.
        group: title of its group in ``--help``; by default the section's.
        metavar: placeholder for the value in ``--help``.
    """
    bounds = {"least": least, "below": below, "most": most}
    about = {"help": help, **bounds, "option": option, "group": group, "metavar": metavar}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Setting:
    """A declared setting.

    Attributes:
        name: name of the field, also the Python keyword.
        section: name of its section in :class:`cond_detr.config.Config`; empty if config.json does not hold it.
        type: annotation of the field.
        default: the paper's value.
        about: what :func:`setting` declared beside the default, by name.
    """

    name: str
    section: str
    type: Any
    default: Any
    about: Mapping[str, Any]

    @property
    def option(self) -> str:
        """Name of the command-line option, with dashes."""
        return "--" + (self.about["option"] or self.name).replace("_", "-")

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that a value may have: the members of a union, or the single type."""
        return get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The strings allowed by the ``Literal`` types among :attr:`kinds`."""
        return tuple(choice for kind in self.kinds if get_origin(kind) is Literal for choice in get_args(kind))

    def check(self, value: Any) -> Any:
        """Checks a value; returns it as stored: a Python number, a string, True, False or None.

        Raises:
            InputError: if the setting cannot have that value.
        """
        for kind in self.kinds:
            if self._fits(value, kind):
                return _stored(value, kind)
        wanted = " or ".join(dict.fromkeys(self._wanted(kind) for kind in self.kinds if kind is not NoneType))
        raise InputError(f"`{self.name}` must be {wanted}{self._limit_passed(value)}, got {shown(value)}")

    def parse(self, text: str) -> Any:
        """Parses the value of the command-line option.

        Raises:
            InputError: if the setting cannot have that value.
        """
        for kind in self.kinds:
            if kind in (int, float):
                try:
                    return self.check(kind(text))
                except ValueError:  # InputError is one
                    continue
            elif kind in (str, Path) or text in get_args(kind):
                return text
        return self.check(text)

    def _fits(self, value: Any, kind: Any) -> bool:
        if get_origin(kind) is Literal:
            return isinstance(value, str) and value in get_args(kind)
        if kind not in (int, float):
            return isinstance(value, kind)
        if not isinstance(value, Integral if kind is int else Real) or isinstance(value, bool):
            return False
        try:
            number = kind(value)
            most = self.about["most"]
            return bool(self.about["least"] <= number < self._limit(kind)) and (most is None or bool(number <= most))
        except OverflowError:  # a whole number that no float can hold
            return False

    def _limit(self, kind: Any) -> float:
        below: float | None = self.about["below"]
        return below if below is not None else LARGEST_INT if kind is int else LARGEST_FLOAT

    def _limit_passed(self, value: Any) -> str:
        """Names the limit of the type to whom passed it; it stands in no other message."""
        if not isinstance(value, (str, Real)) or any(self.about[name] is not None for name in ("below", "most")):
            return ""
        try:
            number = float(value)
        except OverflowError:
            number = sys.float_info.max
        except ValueError:
            return ""
        if int in self.kinds and number >= LARGEST_INT:
            return " and below 2**63"
        return " and finite" if float in self.kinds and number >= LARGEST_FLOAT else ""

    def _wanted(self, kind: Any) -> str:
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            return f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0])
        if kind in (int, float):
            bounded = "" if self.about["below"] is None else f" and below {self.about['below']}"
            bounded += "" if self.about["most"] is None else f" and at most {self.about['most']}"
            return f"a {'whole ' * (kind is int)}number of at least {self.about['least']}{bounded}"
        return WANTED.get(kind, kind.__name__)


def _stored(value: Any, kind: Any) -> Any:
    """Converts numbers to Python's types and paths to strings, for JSON."""
    if kind in (int, float):
        return kind(value)
    return str(value) if kind is Path else value


@cache
def declared(section: Any, name: str = "") -> dict[str, Setting]:
    """The settings that a section declares, by name.

    Args:
        section: a dataclass whose fields are made by :func:`setting`.
        name: name of the section in :class:`cond_detr.config.Config`.
    """
    types = get_type_hints(section)
    return {
        each.name: Setting(each.name, name, types[each.name], each.default, each.metadata)
        for each in fields(section)
        if each.metadata
    }


def sections_of(config: type) -> Iterator[tuple[str, type]]:
    """Yields name and type of each section of a configuration such as :class:`cond_detr.config.Config`."""
    for name, kind in get_type_hints(config).items():
        if is_dataclass(kind):
            yield name, kind  # type: ignore[misc]


@cache
def all_settings(config: type) -> dict[str, Setting]:
    """The settings of all sections of a configuration by name; names are unique across sections."""
    return {name: each for title, section in sections_of(config) for name, each in declared(section, title).items()}


def change(section: T, values: Mapping[str, Any]) -> T:
    """Returns a copy of a section with some values changed.

    Args:
        section: an instance of a dataclass of settings.
        values: the new values by name of the setting.

    Raises:
        InputError: if a setting cannot have its new value.
    """
    kind: Any = type(section)
    known = declared(kind)
    return replace(section, **{name: known[name].check(value) for name, value in values.items()})  # type: ignore[type-var]


def from_dict(values: Any, kind: type[T]) -> T:
    """Makes a dataclass of settings from nested dictionaries: the inverse of ``dataclasses.asdict``, with checks.

    Args:
        values: what a file holds.
        kind: the dataclass.

    Raises:
        InputError: if a setting is unknown to this version, or cannot have its value.
    """
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} must be settings by name, got {shown(values)}")
    types = get_type_hints(kind)
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    unknown = [shown(name)[1:-1] if isinstance(name, str) else shown(name) for name in values if name not in names]
    if unknown:
        more = f" and {len(unknown) - MOST} more" * (len(unknown) > MOST)
        raise InputError(
            f"unknown settings for {kind.__name__}: {', '.join(sorted(unknown)[:MOST])}{more}; "
            f"known are {', '.join(sorted(names))}"
        )
    section: Any = kind
    known = declared(section)
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            read[name] = known[name].check(value)
        elif is_dataclass(types[name]):
            read[name] = from_dict(value, types[name])
        elif isinstance(value, types[name]):
            read[name] = value
        else:
            raise InputError(f"{name} must be {WANTED.get(types[name], types[name].__name__)}, got {shown(value)}")
    return kind(**read)
