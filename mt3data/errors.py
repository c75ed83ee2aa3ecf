"""The one kind of error that the commands turn into a single line."""


class UserError(ValueError):
    """Bad input or a mistake in how a command was called.

    The message says what was seen, what was expected and what to do; the commands print it as one
    line and exit with 2. Any other exception is a bug of ours and keeps its traceback.
    """
