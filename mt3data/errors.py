"""Defines the error that commands print as one line, and the advice for missing packages."""

import importlib.util
import re

# Control characters, but for line break and tab; characters that reorder text; broken UTF-8.
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONG_WORD = re.compile(r"\S{400,}")
MAX_MESSAGE = 2000  # characters


class UserError(ValueError):
    """Bad input or a mistake in how a command was called.

    The message has what was seen, what was expected and what to do. The commands print it as one line
    and exit with 2. Any other exception is a bug of mt3kit and keeps its traceback.

    Messages repeat names and values from files that anybody may have made. Control characters in
    them are escaped. The commands print long ones shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns text whose control characters are written as escapes: "\\u001b[2J".

    Unescaped they could clear the terminal or change other lines. The escapes are those of JSON.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(message: str) -> str:
    """Returns a message of at most MAX_MESSAGE characters, without the middle of long words."""
    message = _LONG_WORD.sub(lambda word: f"{word[0][:200]}...{word[0][-100:]}", message)
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE - 605]} ... {message[-600:]}"
    return message


def install_hint(extra: str = "") -> str:
    """Returns what to run in order to install mt3kit, for messages to users.

    No release is published yet. After the first one, this is the only place to change.

    Args:
        extra: a name from [project.optional-dependencies]; "" for the required packages alone.
    """
    return f"run pip install '.{extra and f'[{extra}]'}' in a clone of mt3kit"


def require_package(module: str, extra: str, purpose: str) -> None:
    """Raises a UserError where a package that only some commands need is not installed.

    Args:
        module: name by which the package is imported.
        extra: name from [project.optional-dependencies] that brings it.
        purpose: what needs it, for the message: "--beats auto".
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{purpose} needs {module}, which is not installed; {install_hint(extra)}")
