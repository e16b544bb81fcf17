"""Settings on the command line: an option for each declared setting, and files of settings."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

from cond_detr.config import Config, RunConfig, read_dict
from cond_detr.errors import InputError
from cond_detr.files import read_json
from cond_detr.presets import configured
from cond_detr.settings import Setting, all_settings, declared, sections_of

# Titles of the sections in --help, in this order
TITLES = {
    "model": "model",
    "loss": "loss",
    "data": "data",
    "train": "training",
}
RUNNING = "running"


def add_settings(parser: argparse.ArgumentParser, config: type = Config) -> None:
    """Adds an option for each setting of a configuration, in a group for each section.

    Args:
        parser: a parser with ``argument_default=argparse.SUPPRESS``, so that its result holds given options only.
        config: the configuration, a dataclass of sections.
    """
    for section, kind in sections_of(config):
        add_section(parser, TITLES.get(section, section), declared(kind, section).values())


def add_section(parser: argparse.ArgumentParser, title: str, settings: Iterable[Setting]) -> None:
    """Adds options for some settings, in the group of the given title or in the group that the setting names."""
    groups = {group.title: group for group in parser._action_groups}
    for each in settings:
        wanted = each.about["group"] or title
        if wanted not in groups:
            groups[wanted] = parser.add_argument_group(wanted)
        add_option(groups[wanted], each)


def add_option(group: argparse._ActionsContainer, each: Setting, **changes: Any) -> None:
    """Adds the option of a setting.

    Args:
        group: parser, or group of one, to add it to.
        each: the setting.
        changes: arguments of ``add_argument`` that replace those derived from the setting.
    """
    names = [each.option, *ALIASES.get(each.name, ())]
    shown = str(each.about["help"]).replace("%", "%%")
    if bool in each.kinds:
        group.add_argument(
            *names, dest=each.name, **{"action": argparse.BooleanOptionalAction, "help": shown, **changes}
        )
        return
    if all(get_origin(kind) is Literal for kind in each.kinds):
        kind_of: dict[str, Any] = {"choices": each.choices}
    else:
        kind_of = {"type": _parser_of(each), "metavar": each.about["metavar"] or ("X" if float in each.kinds else "N")}
    default = "" if each.default is None or "default" in shown else f" (r50: {each.default})"
    if not each.section and each.default is not None:
        default = f" (default: {each.default})"
    group.add_argument(*names, dest=each.name, **{"help": shown + default, **kind_of, **changes})


# Aliases of options
ALIASES = {"dataset_dir": ("--coco-path",)}


def _parser_of(each: Setting) -> Any:
    def parse(text: str) -> Any:
        try:
            return each.parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(expected(str(error))) from None

    return parse


def expected(sentence: str) -> str:
    """Rewords the message "`setting` must be X, got Y" for argparse, which names the option itself."""
    return "expected " + sentence.partition(" must be ")[2]


def given(options: Mapping[str, Any], section: type) -> dict[str, Any]:
    """Selects from parsed options those that are settings of a section, or of any section of a configuration."""
    names = all_settings(section) | declared(section)
    return {name: value for name, value in options.items() if name in names}


def read_config(path: Path) -> Config:
    """Reads settings from a file such as the config.json of a run.

    What the file does not say is as in the preset that it names, by default r50, and follows from what it says as it
    would from options.

    Raises:
        InputError: if it is missing, is not JSON, or holds an unknown setting or a value that a setting cannot have.
    """
    values = read_json(path, "settings file")
    try:
        config = read_dict(values)
        said = {
            name: getattr(getattr(config, section), name)
            for section, kind in sections_of(Config)
            for name in declared(kind, section)
            if name in values.get(section, ())
        }
        return configured(config.preset, said)
    except InputError as error:
        raise InputError(f"settings file {path}: {error}") from None


def add_running(parser: argparse._ActionsContainer, names: Sequence[str]) -> None:
    """Adds the options of some settings of :class:`cond_detr.config.RunConfig`, by name."""
    for name in names:
        add_option(parser, declared(RunConfig)[name], default=declared(RunConfig)[name].default)
