"""How an attempt ended, said once: the error it met, the exit status of its process, the reason that its job shows."""

from __future__ import annotations

from enum import IntEnum

from accord.errors import (
    Fenced,
    GuardError,
    IncompatibleSpec,
    NonFiniteError,
    RewardError,
    StoreUnavailable,
    Unreachable,
    UserError,
    VolumeFull,
)
from services.jobs.job import Reason


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
    REWARD = 15
    """A reward is down; worth another attempt."""
    GUARD = 16
    """A guard of the job stopped it: it would do the same again."""

    @classmethod
    def of(cls, error: Exception) -> ExitStatus:
        """How an attempt ends that met this error."""
        if isinstance(error, Fenced):
            return cls.FENCED
        if isinstance(error, UserError | NonFiniteError):
            return cls.USER_ERROR
        if isinstance(error, VolumeFull | StoreUnavailable | Unreachable | IncompatibleSpec):
            return cls.UNAVAILABLE
        if isinstance(error, GuardError):
            return cls.GUARD
        return cls.REWARD if isinstance(error, RewardError) else cls.RETRYABLE


_REASONS: dict[int, Reason] = {
    ExitStatus.USER_ERROR: Reason.USER_ERROR,
    ExitStatus.RETRYABLE: Reason.INFRASTRUCTURE,
    ExitStatus.REWARD: Reason.REWARD,
    ExitStatus.GUARD: Reason.GUARD,
}


def reason_of(status: int) -> Reason:
    """What a job shows of an attempt without a result; a negative status is the signal that its process died of."""
    return Reason.KILLED if status < 0 else _REASONS.get(status, Reason.CRASHED)
