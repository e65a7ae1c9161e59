"""Ray Train's trainer as the learner needs it: restarts after deaths only, and nothing left behind."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer
from typing_extensions import override

from accord.errors import ours

_TRANSIENT = (RuntimeError, ConnectionError, TimeoutError, MemoryError, RayError)
"""What a rank meets when a peer or its own process dies: torch's RuntimeError, a broken connection, Ray's errors."""

_LOSS = "ACCORD_FORMER_LOSS"
"""Environment variable of a rank's process in which the controller leaves what it tells."""


def restarts(limit: int) -> FailureConfig:
    """How often the group, and its controller, may start again."""
    return FailureConfig(max_failures=limit, controller_failure_limit=limit)


def would_repeat(error: BaseException) -> bool:
    """True for what a restarted rank would raise again: an error of ours, or a fault in the code or its files."""
    if ours(error) is not None:
        return True
    of_ray = type(error).__module__.partition(".")[0] == "ray"  # a start that took too long, a failed health check
    return isinstance(error, Exception) and not isinstance(error, _TRANSIENT) and not of_ray


class RestartAfterDeaths(DefaultFailurePolicy):
    """Restarts the group after a death, never after an error that would only come again."""

    @override
    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(would_repeat(error) for error in failures.values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class TellLoss(WorkerGroupCallback):
    """Runs in the controller: tells the first rank of a group, before the page, what ended the group before it."""

    def __init__(self) -> None:
        self.loss = ""

    @override
    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        errors: dict[int, Exception] = worker_group_status.errors
        if errors:
            what = "; ".join(f"rank {rank}: {type(error).__name__}" for rank, error in sorted(errors.items()))
            self.loss = json.dumps({"at": time.time(), "what": what})

    @override
    def after_worker_group_start(self, worker_group: Any) -> None:
        if self.loss:
            worker_group.execute_single(0, _remember, self.loss)
            self.loss = ""


def _remember(loss: str) -> None:
    os.environ[_LOSS] = loss


def former_loss() -> tuple[float, str] | None:
    """When and by what the group's former life ended, on the first rank, once; None when this is its first."""
    loss = os.environ.pop(_LOSS, "")
    if not loss:
        return None
    told = json.loads(loss)
    return float(told["at"]), str(told["what"])


class Trainer(TorchTrainer):
    """Without the detached cleaner of placement groups, which outlives a killed attempt when Ray has no dashboard.

    Ray itself removes the group's placement when the attempt's driver is gone.
    """

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        limits: Any = self.run_config.failure_config
        parts["failure_policy"] = RestartAfterDeaths(limits)
        return super()._initialize_and_run_controller(**parts)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
        return [*kept, TellLoss()]
