"""Every error Accord raises on purpose, in one tree.

    AccordError
    ├── UserError                 the job, a file or a call is wrong; retrying does not help
    │   ├── SpecError             a field of a job spec (carries JSON pointers)
    │   ├── InputError            a file that a job names is missing, not allowed, too big or no regular file
    │   ├── ModelError            a model directory is missing, torn or unsafe
    │   ├── PluginError           an installed plug-in breaks its contract (names package, class and hook)
    │   └── PromptError           a prompt file is missing, empty or has a bad line
    ├── StoreError                the job store
    │   ├── StoreUnavailable      no answer, or it refuses writes
    │   ├── StoreFull             no room for another job
    │   ├── UnsafeStore           it would lose what it acknowledges, or cannot be used at all
    │   ├── IncompatibleSpec      a stored job that this release cannot read
    │   ├── JobNotFound
    │   ├── Conflict              illegal transition, or a key reused with another body
    │   └── Fenced                a newer attempt owns the job: stop at once
    ├── ServiceError              a process of the service cannot start
    │   ├── Unreachable           nothing answers where something should
    │   └── Overloaded            more is asked than can be done now; ask again later
    ├── CheckpointError           a checkpoint is torn or does not fit
    ├── VolumeFull                a volume is full, over quota or read-only, and stayed so
    ├── MediaError                a clip cannot be written or read as a file
    ├── RewardError               a whole reward is down (one bad clip is an invalid score, never this)
    ├── RolloutError              a group could not be sampled within its tries
    ├── NonFiniteError            loss or gradient is NaN or infinite
    └── DeadlineExceeded          a wait ended at its deadline

All of them pickle (they cross process boundaries): `args` is exactly what the constructor takes.
"""


class AccordError(Exception):
    """Base of the tree."""

    reason = "internal"
    """Stable word for events, metrics and problem+json `code`."""


class UserError(AccordError):
    """The caller's input is wrong."""

    reason = "user_error"


class SpecError(UserError):
    """A job spec does not validate. `problems` holds (JSON pointer, what is wrong and what would be right)."""

    reason = "invalid_spec"

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(f"{pointer or '/'}: {message}" for pointer, message in self.problems)


class InputError(UserError):
    """A file that a job names cannot be opened."""

    reason = "invalid_input"


class ModelError(UserError):
    """A model directory cannot be used."""

    reason = "invalid_model"


class PluginError(UserError):
    """An installed plug-in breaks its contract; what it is part of does not work until it is mended or taken away."""

    reason = "plugin"


class PromptError(UserError):
    """A prompt file cannot be used."""

    reason = "invalid_prompts"


class StoreError(AccordError):
    """The job store refused."""

    reason = "store"


class StoreUnavailable(StoreError):
    """The store does not answer, or answers that it takes no writes."""

    reason = "store_unavailable"


class StoreFull(StoreError):
    """The store has no room for another job; jobs that it has go on."""

    reason = "store_full"


class UnsafeStore(StoreError):
    """The store is set up so that it would lose what it acknowledged, or is too old."""

    reason = "store_unsafe"


class IncompatibleSpec(StoreError):
    """The stored spec of a job was written by a release that this one does not understand; another runner may."""

    reason = "incompatible_spec"


class JobNotFound(StoreError):
    """No such job."""

    reason = "job_not_found"


class Conflict(StoreError):
    """The job's state does not allow this, or an idempotency key was used with another body."""

    reason = "conflict"


class Fenced(StoreError):
    """Another attempt owns the job now; everything this one writes is refused."""

    reason = "fenced"


class ServiceError(AccordError):
    """A process of the service cannot start: a port is taken, a directory cannot be written."""

    reason = "service"


class Unreachable(ServiceError):
    """Nothing answers where something should."""

    reason = "unreachable"


class Overloaded(ServiceError):
    """The service is busy, or something it needs is slow: the same request may succeed later."""

    reason = "overloaded"


class CheckpointError(AccordError):
    """A checkpoint is torn, or belongs to another job or layout."""

    reason = "checkpoint"


class VolumeFull(AccordError):
    """A volume took no writes until the wait for it was over."""

    reason = "volume_full"


class MediaError(AccordError):
    """A clip cannot be written as a file, or a file cannot be read as a clip."""

    reason = "media"


class RewardError(AccordError):
    """A required reward gave no usable score."""

    reason = "reward"


class RolloutError(AccordError):
    """A group could not be sampled."""

    reason = "rollout"


class NonFiniteError(AccordError):
    """Loss or gradient is not finite."""

    reason = "nonfinite"


class DeadlineExceeded(AccordError):
    """A wait ended at its deadline."""

    reason = "deadline"


def ours(error: BaseException | None) -> AccordError | None:
    """The error of this tree inside an error that crossed processes, as itself; None when there is none.

    Ray wraps what a task raises, in one layer for each process on the way, and a layer carries the class in name only.
    """
    while error is not None:
        inner = getattr(error, "cause", None)
        if isinstance(inner, BaseException):
            error = inner
        elif isinstance(error, AccordError):
            return error
        else:
            error = error.__cause__
    return None
