"""Errors whose text is meant for the person at the keyboard."""

from fairpriv.secrets import masked


class InputError(ValueError):
    """The user's input is wrong; the message says what, where, and what would be right.

    The command line prints it as one line and exits with status 2. Secrets within it are masked: messages quote what
    was given, and they are printed, kept in results and sent to loggers.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the stage and the step where it began."""
