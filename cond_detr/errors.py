"""The one exception for what a person can put right: a file, an option, an annotation."""

import importlib.util


class InputError(ValueError):
    """Bad input from outside. Its message is one sentence that names the file or argument, what was expected and what
    came; the commands print it and exit with code 2."""


def need(extra: str, *packages: str) -> None:
    """Raises the sentence for optional packages that are not installed; ``extra`` brings them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {' and '.join(missing)}: pip install 'cond-detr[{extra}]'")
