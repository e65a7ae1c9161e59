"""What happens to a job, as typed events. One sink takes them all; logs, Redis, Prometheus and pages read the same.

Events are built strictly and read leniently (`read_event`): another release may have written them.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Phase = Literal["rollout", "reward", "learn", "publish", "checkpoint", "startup", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Those of every step first, in their order."""


class Event(BaseModel):
    """Fields every event has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="null")

    at: float = Field(default_factory=time.time)
    """Unix time in seconds."""


class StateChanged(Event):
    """The job moved to another state."""

    type: Literal["state"] = "state"
    state: str
    reason: str = ""
    attempt: int = 0


class Progress(Event):
    """Something long advanced: drives live bars. `done` of `total` within `phase` of `step`.

    Not history: the newest one replaces the one before it.
    """

    type: Literal["progress"] = "progress"
    phase: Phase
    step: int
    done: int
    total: int
    detail: str = ""


class StepCompleted(Event):
    """One optimizer step is done and published."""

    type: Literal["step"] = "step"
    step: int
    policy_version: int
    metrics: dict[str, float | None]
    """Flat names such as `reward/sync/mean`, `loss/video`, `grad_norm`; null when undefined."""
    phase_seconds: dict[Phase, float]
    samples: int
    """Clips sampled for this step."""

    @property
    def seconds(self) -> float:
        """Wall time of the step itself: an attempt's first step carries its start-up as well."""
        return sum(value for phase, value in self.phase_seconds.items() if phase != "startup")


class CheckpointSaved(Event):
    """A checkpoint is complete on disk (its manifest was written last)."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    bytes: int
    seconds: float


class RewardSummary(BaseModel):
    """Mean over valid scores with its standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    mean: float | None
    sem: float | None
    n: int


class ChangeSummary(RewardSummary):
    """A mean of paired differences, with the interval that holds the true one in 95 of 100 evaluations."""

    low: float | None = None
    high: float | None = None
    """Both None with fewer than two prompts."""


class EvaluationDone(Event):
    """Held-out prompts were sampled and scored with a fixed set of seeds."""

    type: Literal["evaluation"] = "evaluation"
    step: int
    role: str
    rewards: dict[str, RewardSummary]
    held_out: dict[str, RewardSummary]
    """Metrics nobody trains on: distance to the clean world, diversity, shuffled-pair controls."""


class ProcessLost(Event):
    """A process died and what is done about it."""

    type: Literal["process_lost"] = "process_lost"
    process: str
    outcome: str
    recovery_seconds: float | None = None


class Warned(Event):
    """Something to know that did not stop the job."""

    type: Literal["warning"] = "warning"
    code: str
    message: str


class Failed(Event):
    """The attempt failed; whether the job goes on is the state machine's word."""

    type: Literal["failed"] = "failed"
    reason: str
    message: str
    retryable: bool


class Gap(Event):
    """Steps up to here are no longer among the events; made when events are read. The run folder has their curves."""

    type: Literal["gap"] = "gap"
    dropped: int
    """Step events of this job that are gone by now."""


class OpaqueEvent(Event):
    """An event that this release does not understand, passed on as it came."""

    model_config = ConfigDict(extra="allow")

    type: str
    __pydantic_extra__: dict[str, Any]


KnownEvent = Annotated[
    StateChanged | Progress | StepCompleted | CheckpointSaved | EvaluationDone | ProcessLost | Warned | Failed | Gap,
    Field(discriminator="type"),
]
JobEvent = KnownEvent | OpaqueEvent
_KNOWN: TypeAdapter[KnownEvent] = TypeAdapter(KnownEvent)
JOB_EVENT: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)


def read_event(text: str | bytes) -> JobEvent:
    """Parse an event of this or another release. One that is not understood stays whole, as an OpaqueEvent; of one that
    is, fields that are not known are left out.

    Raises ValueError when it is no event at all: not a JSON object with a `type`.
    """
    try:
        return _KNOWN.validate_json(text, extra="ignore")
    except ValidationError:
        return OpaqueEvent.model_validate_json(text)


class EventSink(Protocol):
    """Takes events. `emit` raises `Fenced` when the attempt no longer owns the job."""

    def emit(self, event: Event) -> None:
        """Deliver one event, in order."""
