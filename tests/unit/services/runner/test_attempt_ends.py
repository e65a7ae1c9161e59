"""How an attempt's error becomes its exit status and its event, and where its processes may not look for a proxy."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from accord.errors import (
    AccordError,
    Fenced,
    GuardError,
    ModelError,
    NonFiniteError,
    RewardError,
    SpecError,
    StoreUnavailable,
    Unreachable,
    VolumeFull,
)
from accord.events import Event, Failed
from services.cli.client import on_loopback
from services.guard import without_loopback_proxy
from services.jobs.job import Reason
from services.runner.exit_status import ExitStatus, reason_of
from services.runner.launch import _ended

ENDS = [
    (SpecError([("/rewards/1", "reward clap could not be started")]), ExitStatus.USER_ERROR, "invalid_spec"),
    (ModelError("no such directory"), ExitStatus.USER_ERROR, "invalid_model"),
    (NonFiniteError("step 3: loss/video is nan"), ExitStatus.USER_ERROR, "nonfinite"),
    (GuardError("step 7: the policy pleases its rewards"), ExitStatus.GUARD, "guard"),
    (RewardError("sync is down"), ExitStatus.REWARD, "reward"),
    (AccordError("the learner ranks failed"), ExitStatus.RETRYABLE, "internal"),
    (KeyError("x"), ExitStatus.RETRYABLE, "internal"),
    (VolumeFull("no room"), ExitStatus.UNAVAILABLE, "volume_full"),
    (Unreachable("no Ray"), ExitStatus.UNAVAILABLE, "unreachable"),
    (StoreUnavailable("gone"), ExitStatus.UNAVAILABLE, "store_unavailable"),
]


class Told(list[Event]):
    """An EventSink that keeps what it gets."""

    def emit(self, event: Event) -> None:
        self.append(event)


@pytest.mark.parametrize(("error", "code", "reason"), ENDS, ids=[type(error).__name__ for error, *_ in ENDS])
@pytest.mark.parametrize("layers", [0, 2])
def test_an_error_ends_the_attempt_by_its_class_however_it_came(
    error: Exception, code: ExitStatus, reason: str, layers: int
) -> None:
    arrived = error
    for _ in range(layers):
        arrived = RayTaskError("call", "traceback", arrived, "", 1, "127.0.0.1").as_instanceof_cause()
    told = Told()
    assert _ended(told, arrived) is code
    (event,) = told
    assert isinstance(event, Failed)
    assert (event.reason, event.retryable) == (reason, code not in (ExitStatus.USER_ERROR, ExitStatus.GUARD))
    if isinstance(error, AccordError):
        assert event.message == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (ExitStatus.USER_ERROR, Reason.USER_ERROR),
        (ExitStatus.RETRYABLE, Reason.INFRASTRUCTURE),
        (ExitStatus.REWARD, Reason.REWARD),
        (ExitStatus.GUARD, Reason.GUARD),
        (ExitStatus.TERMINATED, Reason.CRASHED),
        (1, Reason.CRASHED),
        (-9, Reason.KILLED),
    ],
)
def test_a_job_shows_why_its_process_ended(status: int, reason: Reason) -> None:
    assert reason_of(status) is reason


def test_a_fenced_attempt_says_nothing() -> None:
    told = Told()
    assert _ended(told, Fenced("another owns it")) is ExitStatus.FENCED and not told


def test_loopback_is_added_to_no_proxy_in_both_spellings() -> None:
    changed = without_loopback_proxy({"http_proxy": "http://proxy:3128", "no_proxy": "example.org, 127.0.0.1"})
    hosts = "example.org,127.0.0.1,localhost,::1"
    assert changed == {"http_proxy": "http://proxy:3128", "no_proxy": hosts, "NO_PROXY": hosts}


@pytest.mark.parametrize(
    ("url", "own"),
    [("http://127.0.0.1:8420", True), ("http://[::1]:8420", True), ("http://localhost", True),
     ("http://127.0.0.1.example.org", False), ("https://accord.example.org", False), ("http://10.0.0.1", False)],
)  # fmt: skip
def test_only_this_machine_is_loopback(url: str, own: bool) -> None:
    assert on_loopback(url) is own
