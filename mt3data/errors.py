"""Defines the error that commands print as one line, and the advice for missing packages."""


class UserError(ValueError):
    """Bad input or a mistake in how a command was called.

    The message has what was seen, what was expected and what to do. The commands print it as one line
    and exit with 2. Any other exception is a bug of mt3kit and keeps its traceback.
    """


def install_hint(extra: str = "") -> str:
    """Returns what to run in order to install mt3kit, for messages to users.

    No release is published yet. After the first one, this is the only place to change.

    Args:
        extra: a name from [project.optional-dependencies]; "" for the required packages alone.
    """
    return f"run pip install '.{extra and f'[{extra}]'}' in a clone of mt3kit"
