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
    ├── GuardError                a guard of the job stopped it: its policy or a reward is no longer what it was
    ├── NonFiniteError            loss or gradient is NaN or infinite
    └── DeadlineExceeded          a wait ended at its deadline

All of them pickle (they cross process boundaries): `args` is exactly what the constructor takes.
"""


class AccordError(Exception):
    """Base of the tree. A subclass names its own `reason` beside its base, or has that of its base."""

    reason = "internal"
    """Stable word for events, metrics and problem+json `code`."""

    def __init_subclass__(cls, *, reason: str = "") -> None:
        super().__init_subclass__()
        cls.reason = reason or cls.reason


class UserError(AccordError, reason="user_error"):
    """The caller's input is wrong."""


class SpecError(UserError, reason="invalid_spec"):
    """A job spec does not validate. `problems` holds (JSON pointer, what is wrong and what would be right)."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(f"{pointer or '/'}: {message}" for pointer, message in self.problems)


class InputError(UserError, reason="invalid_input"):
    """A file that a job names cannot be opened."""


class ModelError(UserError, reason="invalid_model"):
    """A model directory cannot be used."""


class PluginError(UserError, reason="plugin"):
    """An installed plug-in breaks its contract; what it is part of does not work until it is mended or taken away."""


class PromptError(UserError, reason="invalid_prompts"):
    """A prompt file cannot be used."""


class StoreError(AccordError, reason="store"):
    """The job store refused."""


class StoreUnavailable(StoreError, reason="store_unavailable"):
    """The store does not answer, or answers that it takes no writes."""


class StoreFull(StoreError, reason="store_full"):
    """The store has no room for another job; jobs that it has go on."""


class UnsafeStore(StoreError, reason="store_unsafe"):
    """The store is set up so that it would lose what it acknowledged, or is too old."""


class IncompatibleSpec(StoreError, reason="incompatible_spec"):
    """The stored spec of a job was written by a release that this one does not understand; another runner may."""


class JobNotFound(StoreError, reason="job_not_found"):
    """No such job."""


class Conflict(StoreError, reason="conflict"):
    """The job's state does not allow this, or an idempotency key was used with another body."""


class Fenced(StoreError, reason="fenced"):
    """Another attempt owns the job now; everything this one writes is refused."""


class ServiceError(AccordError, reason="service"):
    """A process of the service cannot start: a port is taken, a directory cannot be written."""


class Unreachable(ServiceError, reason="unreachable"):
    """Nothing answers where something should."""


class Overloaded(ServiceError, reason="overloaded"):
    """The service is busy, or something it needs is slow: the same request may succeed later."""


class CheckpointError(AccordError, reason="checkpoint"):
    """A checkpoint is torn, or belongs to another job or layout."""


class VolumeFull(AccordError, reason="volume_full"):
    """A volume took no writes until the wait for it was over."""


class MediaError(AccordError, reason="media"):
    """A clip cannot be written as a file, or a file cannot be read as a clip."""


class RewardError(AccordError, reason="reward"):
    """A required reward gave no usable score."""


class RolloutError(AccordError, reason="rollout"):
    """A group could not be sampled."""


class GuardError(AccordError, reason="guard"):
    """A guard of the job stopped it: trained rewards rise while what nobody trains on leaves its band, or a reward no
    longer judges the canaries as it did."""


class NonFiniteError(AccordError, reason="nonfinite"):
    """Loss or gradient is not finite."""


class DeadlineExceeded(AccordError, reason="deadline"):
    """A wait ended at its deadline."""


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
