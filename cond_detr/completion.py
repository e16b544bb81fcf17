"""Completion of commands and options in the shell: scripts for bash, zsh and fish."""

import argparse
import importlib

from cond_detr.cli import COMMANDS, PACKAGES
from cond_detr.errors import InputError, shown
from cond_detr.presets import PRESETS

SHELLS = ("bash", "zsh", "fish")
ALWAYS = ("--help", "--version", "--completion")


def script(shell: str) -> str:
    """A script that completes ``cond-detr`` in a shell; what is no option is completed as a file.

    Raises:
        InputError: if the shell is none of :data:`SHELLS`.
    """
    if shell not in SHELLS:
        raise InputError(f"--completion must be {', '.join(SHELLS[:-1])} or {SHELLS[-1]}, got {shown(shell)}")
    options = {name: options_of(name) for name in COMMANDS}
    return for_fish(options) if shell == "fish" else for_bash(options, zsh=shell == "zsh")


def options_of(command: str) -> dict[str, argparse.Action]:
    """The options of a command, by their names."""
    module = importlib.import_module(f"cond_detr.{PACKAGES.get(command, command)}.__main__")
    actions = module.parser()._actions
    return {name: action for action in actions for name in action.option_strings if name.startswith("--")}


def choices_of(action: argparse.Action) -> str:
    """What can follow an option, where that is listed."""
    choices = PRESETS if "--preset" in action.option_strings else action.choices
    return " ".join(map(str, choices)) if choices else ""


def for_bash(options: dict[str, dict[str, argparse.Action]], *, zsh: bool) -> str:
    """A script for bash, which zsh takes as well."""
    words = {name: " ".join(found) for name, found in options.items()}
    lists = [f"    {name}) words='{text}' ;;" for name, text in words.items()]
    choices = {
        f"{name}:{option}": text
        for name, found in options.items()
        for option, action in found.items()
        if (text := choices_of(action))
    }
    chosen = [f"    {place}) words='{text}' ;;" for place, text in choices.items()]
    lines = [
        "_cond_detr() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    words='{' '.join([*COMMANDS, *ALWAYS])}'",
        '  elif [ "${current#-}" != "$current" ]; then',
        '    case "${COMP_WORDS[1]}" in',
        *lists,
        "    esac",
        "  else",
        '    case "${COMP_WORDS[1]}:$before" in',
        *chosen,
        "    esac",
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -F _cond_detr cond-detr",
    ]
    first = ["autoload -U +X compinit && compinit", "autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    return "\n".join([*first, *lines]) + "\n"


def for_fish(options: dict[str, dict[str, argparse.Action]]) -> str:
    """A script for fish, with what commands and options do."""
    lines = [f"complete -c cond-detr -n __fish_use_subcommand -a {n} -d {quoted(w)}" for n, w in COMMANDS.items()]
    for name, found in options.items():
        for option, action in found.items():
            text = choices_of(action)
            what = quoted((action.help or "").replace("%(default)s", str(action.default)).partition(" (default")[0])
            after = f" -x -a {quoted(text)}" if text else "" if action.nargs == 0 else " -r"
            condition = f"-n '__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c cond-detr {condition} -l {option.removeprefix('--')}{after} -d {what}")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Text in quotes, for fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
