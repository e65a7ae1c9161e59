"""A job as the control plane knows it: its states, the one transition table, and why it ended.

An *attempt* is one leased execution of a job and is numbered by the fencing `epoch`. A write that carries an older
epoch than the job's is refused.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field

from accord.config.job import JobSpec
from accord.errors import IncompatibleSpec, SpecError
from accord.events import Progress


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    """An attempt owns it and is setting up."""
    RUNNING = "running"
    """An attempt has reported from the inside."""
    CANCELLING = "cancelling"
    """The owner was asked to stop and has its grace period to do so."""
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


_S = JobState

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.STARTING, _S.CANCELLED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.QUEUED, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.QUEUED, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
    _S.CANCELLED: frozenset(),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
}
"""The only legal moves. An attempt that ends while it is being cancelled may still succeed or fail: the result wins."""

TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
ACTIVE = frozenset({_S.STARTING, _S.RUNNING, _S.CANCELLING})
"""States in which an attempt holds a lease."""


class Reason(StrEnum):
    """Why a job changed state; a label of metrics, so the set is closed."""

    NONE = ""
    USER_ERROR = "user_error"
    """The job or a file it names is wrong; not retried."""
    INFRASTRUCTURE = "infrastructure"
    """The attempt gave up for a cause outside the job; retried."""
    REWARD = "reward"
    """A reward gave no usable score, or could not be started; retried."""
    CRASHED = "crashed"
    """The attempt's process ended by itself without saying why; retried."""
    KILLED = "killed"
    """The attempt's process died of a signal (out of memory, an operator); retried."""
    LEASE_LOST = "lease_lost"
    """The owner stopped reporting; retried."""
    GUARD = "guard"
    """A guard of the job saw its policy diverge; not retried."""
    TIMEOUT = "timeout"
    """`max_runtime_s` was over; not retried."""
    DRAINED = "drained"
    """The owner gave it back (deploy, Ctrl-C, or it cannot run it now); requeued without counting as a lost attempt."""
    CANCELLED = "cancelled"
    """A user cancelled it."""


class JobSummary(BaseModel):
    """A job without its spec. Times are Unix seconds on the store's clock.

    A record may come from another release: a state or reason that this one does not know stays the text it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str
    name: str
    state: JobState | str = Field(default=JobState.QUEUED, union_mode="left_to_right")
    reason: Reason | str = Field(default=Reason.NONE, union_mode="left_to_right")
    message: str = ""
    waiting: str = ""
    """Why a queued job is not being run although runners have seen it; empty once it is claimed."""
    epoch: int = 0
    """Number of the latest attempt; 0 before the first."""
    lost_attempts: int = 0
    """Attempts lost to infrastructure; at `max_attempts` the job fails."""
    max_attempts: int
    owner: str = ""
    """Which supervisor holds or held the latest lease."""
    step: int = 0
    """Last completed optimizer step."""
    steps: int
    progress: Progress | None = None
    """The latest of the running attempt."""
    created_at: float
    updated_at: float
    started_at: float | None = None
    """When the first attempt was claimed."""
    finished_at: float | None = None

    @property
    def finished(self) -> bool:
        """True once nothing more can happen to it."""
        return self.state in TERMINAL or self.finished_at is not None


class Job(JobSummary):
    """One job."""

    spec_json: str
    """The resolved job spec as JSON text."""

    @cached_property
    def spec(self) -> JobSpec:
        """The job spec, parsed once. Raises IncompatibleSpec: it was valid once, so another release wrote it."""
        try:
            return JobSpec.parse(self.spec_json)
        except SpecError as error:
            raise IncompatibleSpec(f"this release cannot read the spec of {self.id}: {error}") from error
