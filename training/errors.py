"""The exceptions that a person may see.

Every message says what was wrong, the value, and what to change on the canvas.
Internal invariants use `assert` instead.
"""


class PistachioError(ValueError):
    """Bad input or a bad setting: the message names the fix."""


class NonFiniteLossError(PistachioError):
    """The loss became NaN or infinite; the run was saved before this was raised."""


class DeviceMemoryError(PistachioError):
    """The device ran out of memory; the run was saved. `is_first_step`: of this sitting, so the plan was at fault."""

    def __init__(self, message: str, *, is_first_step: bool):
        super().__init__(message)
        self.is_first_step = is_first_step


class RunConflictError(PistachioError):
    """A run folder of this name exists with other settings, or another process is writing to it."""


class Interrupted(Exception):
    """The user pressed cancel; the run was saved and can be resumed."""
