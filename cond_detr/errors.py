"""The one exception for what a person can put right: a file, an option, an annotation."""


class InputError(ValueError):
    """Bad input from outside. Its message is one sentence that names the file or argument, what was expected and what
    came; the commands print it and exit with code 2."""
