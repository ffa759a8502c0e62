"""The exceptions that a person may see.

Every message says what was wrong, the value, and what to change on the canvas.
Internal invariants use `assert` instead.
"""


class PistachioError(ValueError):
    """Bad input or a bad setting: the message names the fix."""


class NonFiniteLossError(PistachioError):
    """The loss became NaN or infinite; the run was saved before this was raised."""


class RunConflictError(PistachioError):
    """A run folder of this name exists with other settings, or another process is writing to it."""


class Interrupted(Exception):
    """The user pressed cancel; the run was saved and can be resumed."""
