"""Errors whose text is meant for the person at the keyboard."""


class InputError(ValueError):
    """The user's input is wrong; the message says what, where, and what would be right.

    The command line prints it as one line and exits with status 2.
    """


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the stage and the step where it began."""
