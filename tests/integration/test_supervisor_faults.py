"""What a supervisor survives: odd jobs, odd answers of the store, a runs volume without room, a Ray that is away."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest

from accord.events import Warned
from accord.ids import new_job_id
from services.jobs.job import JobState, Reason
from services.jobs.store import Submission
from services.node.embedded import EmbeddedStore
from services.node.service import prepare_directories
from services.runner import attempt, supervisor
from services.runner.runner_port import watched_at
from tests.integration import fake_attempt
from tests.integration.service import free_port
from tests.integration.test_service_supervisor import Bench
from tests.integration.volume import Volume, mounted


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, server: EmbeddedStore) -> Iterator[Bench]:
    made = Bench(tmp_path, server)
    made.store._redis.flushall()
    yield made
    made.stop.set()
    if made.thread.ident is not None:
        made.thread.join(20)
        assert not made.thread.is_alive()
    made.store.close()


@pytest.fixture
def volume(bench: Bench) -> Iterator[Volume]:
    with mounted(bench.settings.runs_dir, "2m") as made:
        bench.settings.__dict__["min_free_bytes"] = 64 * 1024
        yield made
        bench.stop.set()
        if bench.thread.ident is not None:
            bench.thread.join(20)


def gauge(bench: Bench, check: str) -> float:
    return bench.metrics.gauge("accord_runner_can_claim").labels(check=check)._value.get()


def errors(bench: Bench, where: str) -> float:
    return bench.metrics.counter("accord_runner_errors_total").labels(where=where)._value.get()


def test_a_job_of_another_release_waits_and_the_next_one_runs(bench: Bench) -> None:
    spec = bench.store.get(bench.submit("succeed")).spec_json
    strange = Submission(new_job_id(), "strange", spec.replace('{"name"', '{"invented": 1, "name"', 1), 1)
    assert strange.spec_json != spec
    bench.store.enqueue(strange)
    bench.thread.start()
    job = bench.wait(strange.id, lambda job: job.waiting)
    assert "/invented" in job.waiting
    assert (job.state, job.reason, job.lost_attempts) == (JobState.QUEUED, Reason.DRAINED, 0)
    bench.state(bench.submit("succeed"), JobState.SUCCEEDED)


def test_a_fault_with_one_job_costs_that_job_an_attempt(bench: Bench) -> None:
    def command(job_id: str, epoch: int) -> list[str]:
        if bench.store.get(job_id).name == "odd":
            raise RuntimeError("no such thing")
        return fake_attempt.command(job_id, epoch)

    bench.supervisor.command = command
    odd, other = bench.submit("odd", max_attempts=2), bench.submit("succeed")
    bench.thread.start()
    job = bench.state(odd, JobState.FAILED)
    assert (job.lost_attempts, job.reason) == (
        2,
        Reason.INFRASTRUCTURE,
    ) and "RuntimeError: no such thing" in job.message
    bench.state(other, JobState.SUCCEEDED)
    assert errors(bench, "attempt") == 2


@pytest.mark.parametrize("part", ["beat", "events", "observe", "claim", "conclude"])
def test_an_odd_answer_costs_nothing(bench: Bench, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part raises what it never should, the first two times it is asked."""
    left = [0] * 2

    def odd(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if left:
                left.pop()
                raise ValueError("'PERHAPS' is not a valid Beat")
            return real(*arguments, **options)

        return call

    place = {"observe": bench.supervisor.training, "conclude": supervisor}.get(part, bench.store)
    name = "conclude_unfinished" if part == "conclude" else part
    monkeypatch.setattr(place, name, odd(getattr(place, name)))
    kind, end = ("crash", JobState.FAILED) if part == "conclude" else ("long", JobState.SUCCEEDED)
    first, second = bench.submit(kind, max_attempts=1), bench.submit("succeed")
    bench.thread.start()
    assert bench.state(first, end).epoch == 1
    assert bench.state(second, JobState.SUCCEEDED).epoch == 1
    assert bench.thread.is_alive()


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_volume_without_room_stops_the_claims_and_loses_nothing(bench: Bench, volume: Volume, how: str) -> None:
    if how == "full":
        volume.fill()
    else:
        volume.remount("ro")
    prepare_directories(bench.settings)  # a runner starts nevertheless
    job_id = bench.submit("succeed")
    bench.thread.start()
    job = bench.wait(job_id, lambda job: job.waiting)
    assert str(bench.settings.runs_dir) in job.waiting
    assert (job.state, job.epoch, gauge(bench, "runs"), gauge(bench, "ray")) == (JobState.QUEUED, 0, 0.0, 1.0)
    if how == "full":
        volume.empty()
    else:
        volume.remount("rw")
    job = bench.state(job_id, JobState.SUCCEEDED)
    assert (job.epoch, job.lost_attempts, job.waiting, gauge(bench, "runs")) == (1, 0, "", 1.0)


def test_a_running_job_waits_for_room_and_goes_on(bench: Bench, volume: Volume) -> None:
    job_id = bench.submit("write")
    bench.thread.start()
    bench.state(job_id, JobState.RUNNING)
    volume.fill()
    bench.wait(job_id, lambda _: warnings(bench, job_id))
    assert bench.store.get(job_id).state is JobState.RUNNING
    volume.empty()
    (volume.path / "enough").touch()
    job = bench.state(job_id, JobState.SUCCEEDED)
    assert (job.epoch, job.lost_attempts, set(warnings(bench, job_id))) == (1, 0, {"volume_full"})


def test_a_job_that_waited_too_long_for_room_is_given_back(bench: Bench, volume: Volume) -> None:
    bench.environment["ACCORD_DISK_WAIT_S"] = "0.3"
    job_id = bench.submit("write", max_attempts=1)
    bench.thread.start()
    bench.state(job_id, JobState.RUNNING)
    volume.fill()
    job = bench.wait(job_id, lambda job: job.state is JobState.QUEUED and job.waiting)
    assert (job.epoch, job.lost_attempts, job.reason) == (1, 0, Reason.DRAINED)
    volume.empty()
    (volume.path / "enough").touch()
    job = bench.state(job_id, JobState.SUCCEEDED)
    assert (job.epoch, job.lost_attempts) == (2, 0)


def test_a_log_that_cannot_be_written_fails_nothing(bench: Bench, volume: Volume) -> None:
    volume.fill()
    program = "import sys; from accord import logs; {} print('x' * 9999); print('y', file=sys.stderr); sys.exit(0)"
    ends = []
    for prepare in ("logs.forgive_output();", ""):
        with (volume.path / "log").open("wb") as log:
            command = [sys.executable, "-c", program.format(prepare)]
            ends.append(subprocess.run(command, stdout=log, stderr=log, timeout=60).returncode == 0)
    assert ends == [True, False], "the second shows that the log could not be written"
    volume.empty()
    job_id = bench.submit("succeed")
    (volume.path / job_id).mkdir()
    (volume.path / job_id / "logs").touch()  # not a folder
    bench.thread.start()
    assert bench.state(job_id, JobState.SUCCEEDED).epoch == 1


def warnings(bench: Bench, job_id: str) -> list[str]:
    return [entry.event.code for entry in bench.store.events(job_id) if isinstance(entry.event, Warned)]


class Health(grpc.GenericRpcHandler):
    """Ray's control service, as far as a health check sees it."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"\x08\x01")


@pytest.fixture
def ray(bench: Bench) -> Iterator[grpc.Server]:
    with futures.ThreadPoolExecutor(2) as pool:
        made = grpc.server(pool, handlers=[Health()])
        bench.environment["RAY_ADDRESS"] = f"127.0.0.1:{made.add_insecure_port('127.0.0.1:0')}"
        yield made
        made.stop(None).wait(5)


def test_no_job_is_claimed_while_ray_is_away(bench: Bench, ray: grpc.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    settings = bench.settings.model_copy(update={"metrics_port": free_port()})
    probe = httpx.Client(base_url=f"http://127.0.0.1:{settings.metrics_port}", trust_env=False)
    job_id = bench.submit("succeed")
    bench.thread.start()
    with watched_at(settings, bench.metrics, bench.supervisor.gate), probe:
        job = bench.wait(job_id, lambda job: job.waiting)
        assert "no Ray answers at 127.0.0.1" in job.waiting
        assert (job.state, job.epoch, gauge(bench, "ray"), gauge(bench, "runs")) == (JobState.QUEUED, 0, 0.0, 1.0)
        not_ready = probe.get("/readyz")
        assert not_ready.status_code == 503 and "no Ray answers at" in not_ready.text
        ray.start()
        job = bench.state(job_id, JobState.SUCCEEDED)
        assert (job.epoch, job.lost_attempts, gauge(bench, "ray")) == (1, 0, 1.0)
        assert probe.get("/readyz").text == "ready\n"
        assert 'accord_runner_can_claim{check="ray"} 1.0' in probe.get("/metrics").text


def test_an_attempt_that_ends_with_its_ray_is_given_back(bench: Bench, ray: grpc.Server) -> None:
    ray.start()
    job_id = bench.submit("killed once", max_attempts=1)
    bench.thread.start()
    bench.state(job_id, JobState.RUNNING)
    ray.stop(None).wait(5)
    bench.child(job_id, 1).kill()
    job = bench.state(job_id, JobState.QUEUED)
    assert (job.lost_attempts, job.reason) == (0, Reason.DRAINED) and "no Ray answers" in job.waiting


def test_giving_back_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "MAX_RELEASES", 1)
    job_id = bench.submit("away", max_attempts=1)
    bench.thread.start()
    job = bench.state(job_id, JobState.FAILED)
    assert (job.epoch, job.lost_attempts, job.reason, job.message) == (2, 1, Reason.INFRASTRUCTURE, "Ray is away")


def test_a_store_that_was_away_for_the_lease_costs_no_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.submit("killed once", max_attempts=1)
    bench.thread.start()
    bench.state(job_id, JobState.RUNNING)
    monkeypatch.setattr(bench.store, "beat", threading.Barrier(2, timeout=0.01).wait)  # raises for ever
    job = bench.state(job_id, JobState.SUCCEEDED, epoch=2)
    assert job.lost_attempts == 0


def test_a_reward_that_is_down_is_told_apart(bench: Bench) -> None:
    bench.thread.start()
    job = bench.state(bench.submit("reward down", max_attempts=1), JobState.FAILED)
    assert (job.reason, job.message) == (Reason.REWARD, "sync is down")
