"""How an attempt ended, in the one vocabulary of its process and of the supervisor that watches it."""

from __future__ import annotations

from enum import IntEnum

from accord.errors import (
    Fenced,
    IncompatibleSpec,
    NonFiniteError,
    StoreUnavailable,
    Unreachable,
    UserError,
    VolumeFull,
)


class ExitStatus(IntEnum):
    """Exit status of an attempt's process; one that is none of these was not chosen by the attempt."""

    SUCCEEDED = 0
    USER_ERROR = 10
    """The job itself is wrong, or came to numbers that are none: it would fail again."""
    RETRYABLE = 11
    """Worth another attempt."""
    FENCED = 12
    """A newer attempt owns the job."""
    TERMINATED = 13
    """Told to stop."""
    UNAVAILABLE = 14
    """Something it needs is away (store, Ray, room on the disk): the job is given back."""

    @classmethod
    def of(cls, error: Exception) -> ExitStatus:
        """How an attempt ends that met this error."""
        if isinstance(error, Fenced):
            return cls.FENCED
        if isinstance(error, UserError | NonFiniteError):
            return cls.USER_ERROR
        if isinstance(error, VolumeFull | StoreUnavailable | Unreachable | IncompatibleSpec):
            return cls.UNAVAILABLE
        return cls.RETRYABLE
