"""The API over an in-memory store: routes, refusals, streams, files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import ServiceError, StoreFull, StoreUnavailable
from accord.events import Progress, StepCompleted, Warned
from services.api.app import create_app
from services.jobs.job import JobState, Reason
from tests.memory_store import InMemoryJobStore

ALL = {"prompt_av": "a red ball", "prompt_v": "a red ball", "prompt_a": "a beep"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", runs_dir=tmp_path / "runs", redis_url=None, ray_address=None)


@pytest.fixture
def store() -> InMemoryJobStore:
    return InMemoryJobStore()


@pytest.fixture
def client(settings: Settings, store: InMemoryJobStore) -> Iterator[TestClient]:
    with TestClient(create_app(settings, store), raise_server_exceptions=False) as made:
        made.headers["Authorization"] = f"Bearer {key_of(settings)}"
        yield made


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    for name, ident in (("train", "t"), ("held", "h")):
        line = {"id": ident, **ALL, "prompt_av": f"{name} a red ball"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return {
        "name": "a job",
        "steps": 3,
        "backbone": {"name": "ltx2"},
        "prompts": {"train": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held.jsonl")},
        "guards": {"allow_prompt_blind": True},
        "rewards": [{"name": "sync"}, {"name": "clap", "weight": 0.5}],
        "algorithm": {"name": "omninft"},
    }


def key_of(settings: Settings) -> str:
    return (settings.data_dir / "api-key").read_text().strip()


def changed(spec: dict[str, Any], pointer: str, value: Any) -> dict[str, Any]:
    """The spec with the value at a JSON pointer replaced."""
    copy: Any = json.loads(json.dumps(spec))
    place = copy
    *way, last = pointer.strip("/").split("/")
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return dict(copy)


def assert_problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    body = answer.json()
    assert body["status"] == status and body["title"] and body["detail"] and body["type"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return dict(body)


def test_submit_read_list_cancel(client: TestClient, spec: dict[str, Any]) -> None:
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["attempt"], job["steps"]) == ("queued", 0, 3)
    assert job["spec"]["prompts"]["group_size"] == 8, "defaults are shown"
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    assert [item["id"] for item in client.get("/v1/jobs").json()["items"]] == [job["id"]]
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    body = assert_problem(client.post(f"/v1/jobs/{job['id']}/cancel"), 409)
    assert body["code"] == "conflict"


def test_a_job_tells_what_departs_from_its_preset(client: TestClient, spec: dict[str, Any]) -> None:
    assert client.post("/v1/jobs", json=spec).json()["departures"] == []
    published = changed(spec, "/algorithm", {"name": "diffusion_nft", "preset": "published"})
    job = client.post("/v1/jobs", json=changed(published, "/sampling/num_steps", 8)).json()
    assert "/sampling/num_steps: 8, and preset 'published' has 10" in job["departures"]
    assert client.get(f"/v1/jobs/{job['id']}").json()["departures"] == job["departures"]


def test_a_job_that_has_ended_can_be_deleted(client: TestClient, spec: dict[str, Any], store: InMemoryJobStore) -> None:
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    assert "cancel it" in assert_problem(client.delete(f"/v1/jobs/{job_id}"), 409)["detail"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    answer = client.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 204 and not answer.content
    assert_problem(client.get(f"/v1/jobs/{job_id}"), 404)
    assert_problem(client.delete(f"/v1/jobs/{job_id}"), 404)
    assert store.folders_to_remove() == [job_id]


def test_attempts_are_bounded_by_the_service(settings: Settings, spec: dict[str, Any], store: InMemoryJobStore) -> None:
    client = TestClient(create_app(settings.model_copy(update={"max_attempts": 2}), store))
    client.headers["Authorization"] = f"Bearer {key_of(settings)}"
    asked = [client.post("/v1/jobs", json=changed(spec, "/max_attempts", number)).json() for number in (1, 100)]
    assert [job["max_attempts"] for job in asked] == [1, 2]


def test_a_full_store_is_507_and_not_worth_retrying_at_once(
    client: TestClient, spec: dict[str, Any], store: InMemoryJobStore
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreFull("delete something")

    store.enqueue = full  # type: ignore[assignment, method-assign]
    body = assert_problem(client.post("/v1/jobs", json=spec), 507)
    assert body["code"] == "store_full" and "delete something" in body["detail"]


def test_idempotency_key(client: TestClient, spec: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=spec, headers=headers)
    again = client.post("/v1/jobs", json=spec, headers=headers)
    assert again.status_code == 202 and again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
    reordered = json.dumps(dict(reversed(spec.items())), indent=2)
    assert client.post("/v1/jobs", content=reordered, headers=headers).json() == first.json()
    assert_problem(client.post("/v1/jobs", json=changed(spec, "/steps", 4), headers=headers), 409)


def test_a_replay_is_answered_although_its_file_has_gone(
    client: TestClient, spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.preflight.LATELY_S", 0.0)
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=spec, headers=headers)
    (tmp_path / "train.jsonl").unlink()
    again = client.post("/v1/jobs", json=spec, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert_problem(client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "new"}), 422)
    assert_problem(client.post("/v1/jobs", content=b"{", headers=headers), 409)


def test_jobs_that_come_together_look_at_their_files_once(
    client: TestClient, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.post("/v1/jobs", json=spec).status_code == 202
    looked: list[object] = []
    monkeypatch.setattr("services.api.preflight.unchanged", lambda seen: looked.append(seen) or True)
    monkeypatch.setattr("services.api.preflight.LATELY_S", 60.0)
    assert [client.post("/v1/jobs", json={**spec, "seed": seed}).status_code for seed in range(5)] == [202] * 5
    assert looked == []
    monkeypatch.setattr("services.api.preflight.LATELY_S", 0.0)
    assert client.post("/v1/jobs", json=spec).status_code == 202 and len(looked) == 1
    assert_problem(client.post("/v1/jobs", json=changed(spec, "/sampling/height", 33)), 422)


def test_a_replay_is_answered_by_a_release_with_other_defaults(
    client: TestClient, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(JobSpec):
        max_attempts: int = 7

    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=spec, headers=headers)
    monkeypatch.setattr("services.api.jobs.JobSpec", Later)
    again = client.post("/v1/jobs", json=spec, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert client.post("/v1/jobs", json=spec).json()["max_attempts"] == 7, "a new job has the new default"


@pytest.mark.parametrize(
    ("pointer", "value", "told"),
    [
        ("/surprise", 1, "/surprise"),
        ("/steps", True, "/steps"),
        ("/steps", "3", "/steps"),
        ("/steps", 0, "/steps"),
        ("/optimizer/learning_rate", "1e-3", "/optimizer/learning_rate"),
        ("/algorithm", {"name": "nope"}, "/algorithm"),
        ("/backbone", {"name": "nope"}, "/backbone/name"),
        ("/rewards/0", {"name": "nope"}, "/rewards/0"),
        ("/prompts/group_size", 1, "/prompts/group_size"),
        ("/sampling/frames", 24, "/sampling/frames"),
        ("/sampling/height", 33, "/sampling/height"),
        ("/backbone/path", "/nowhere/at/all", "/backbone/path"),
        ("/prompts/train", "/nowhere.jsonl", "/prompts/train"),
    ],
)
def test_a_bad_field_is_named_by_its_pointer(
    client: TestClient, spec: dict[str, Any], store: InMemoryJobStore, pointer: str, value: Any, told: str
) -> None:
    body = assert_problem(client.post("/v1/jobs", json=changed(spec, pointer, value)), 422)
    assert told in [error["pointer"] for error in body["errors"]], body
    assert all(error["detail"] for error in body["errors"])
    assert store.page().jobs == []


def test_nan_is_refused(client: TestClient, spec: dict[str, Any]) -> None:
    text = json.dumps(changed(spec, "/rewards/1/weight", float("nan")))
    body = assert_problem(client.post("/v1/jobs", content=text), 422)
    assert [error["pointer"] for error in body["errors"]] == ["/rewards/1/weight"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"steps": 1}'])
def test_a_body_that_is_no_job(client: TestClient, body: bytes) -> None:
    assert_problem(client.post("/v1/jobs", content=body), 422)


def test_bad_prompt_line_is_numbered(client: TestClient, spec: dict[str, Any], tmp_path: Path) -> None:
    good = json.dumps({"id": "a", **ALL})
    (tmp_path / "train.jsonl").write_text(f"{good}\nnot json\n")
    body = assert_problem(client.post("/v1/jobs", json=spec), 422)
    assert "line 2" in body["errors"][0]["detail"]


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic abc", "wrong"])
def test_no_key_or_a_wrong_one(client: TestClient, header: str | None) -> None:
    del client.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/jobs", "/v1/jobs/x", "/openapi.json", "/nowhere"):
        answer = client.get(path, headers=headers)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_a_key_from_the_environment(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "d", api_key="from-outside-0123")  # type: ignore[arg-type]
    client = TestClient(create_app(settings, InMemoryJobStore()))
    assert client.get("/v1/jobs", headers={"Authorization": "Bearer from-outside-0123"}).status_code == 200
    assert not (tmp_path / "d" / "api-key").exists()


def test_key_file_is_private(client: TestClient, settings: Settings) -> None:
    path = settings.data_dir / "api-key"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    create_app(settings, InMemoryJobStore())
    assert path.read_text() == before


def test_problems_for_what_is_not_there(client: TestClient) -> None:
    assert "/nowhere" in assert_problem(client.get("/nowhere"), 404)["detail"]
    answer = client.delete("/v1/jobs")
    assert_problem(answer, 405)
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]
    for path in ("", "/events", "/metrics", "/checkpoints", "/artifacts", "/artifacts/x"):
        assert_problem(client.get(f"/v1/jobs/job-unknown{path}"), 404)
    assert_problem(client.post("/v1/jobs/job-unknown/cancel"), 404)
    assert_problem(client.get("/v1/jobs?limit=1000"), 422)


def test_an_unforeseen_error_is_a_problem_without_details(settings: Settings, store: InMemoryJobStore) -> None:
    def explode(**_: object) -> None:
        raise RuntimeError("secret path /etc/x")

    store.page = explode  # type: ignore[method-assign,assignment]
    client = TestClient(create_app(settings, store), raise_server_exceptions=False)
    answer = client.get("/v1/jobs", headers={"Authorization": f"Bearer {key_of(settings)}"})
    assert_problem(answer, 500)
    assert "secret" not in answer.text


def test_store_away_is_503_with_retry_after(client: TestClient, store: InMemoryJobStore) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("gone fishing")

    for name in ("page", "ready", "stats"):
        setattr(store, name, away)
    answer = client.get("/v1/jobs")
    assert_problem(answer, 503)
    assert answer.headers["retry-after"]
    assert "gone fishing" in assert_problem(client.get("/readyz"), 503)["detail"], "the key asks why"
    assert client.get("/metrics").status_code == 200, "a scrape survives"


def test_readiness_asks_what_it_was_given(settings: Settings, store: InMemoryJobStore) -> None:
    def not_yet() -> None:
        raise ServiceError("Ray is starting")

    client = TestClient(create_app(settings, store, checks={"ray": not_yet}))
    body = assert_problem(client.get("/readyz"), 503)
    assert "ray" in body["detail"] and "starting" not in body["detail"], "the public learns which, not why"
    body = assert_problem(client.get("/readyz", headers={"Authorization": f"Bearer {key_of(settings)}"}), 503)
    assert "ray: Ray is starting" in body["detail"]


class TestBody:
    def test_too_large_by_its_length(self, client: TestClient, settings: Settings) -> None:
        assert_problem(client.post("/v1/jobs", content=b" " * (settings.max_body_bytes + 1)), 413)

    def test_too_large_in_chunks(self, client: TestClient, settings: Settings) -> None:
        sent = 0

        def chunks() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(64):
                sent += 1
                yield b" " * 65536

        assert_problem(client.post("/v1/jobs", content=chunks()), 413)

    def test_the_key_is_looked_at_first(self, client: TestClient, settings: Settings) -> None:
        del client.headers["Authorization"]
        assert_problem(client.post("/v1/jobs", content=b" " * (settings.max_body_bytes + 1)), 401)

    def test_exactly_the_limit_is_read(self, client: TestClient, settings: Settings) -> None:
        assert_problem(client.post("/v1/jobs", content=b" " * settings.max_body_bytes), 422)


class TestEvents:
    @pytest.fixture
    def job_id(self, client: TestClient, spec: dict[str, Any], store: InMemoryJobStore) -> str:
        job_id = str(client.post("/v1/jobs", json=spec).json()["id"])
        store.claim("me", 60, 1)
        for done in range(4):
            store.append(job_id, 1, Warned(code="slow", message=str(done)))
        step = StepCompleted(step=1, policy_version=1, metrics={"loss/total": None}, phase_seconds={}, samples=4)
        store.append(job_id, 1, step)
        store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
        return job_id

    def stream(self, client: TestClient, job_id: str, **headers: str) -> list[tuple[str, str]]:
        answer = client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream", **headers})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        found = []
        for block in answer.text.strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines())
            assert json.loads(fields["data"]) is not None
            found.append((fields.get("id", ""), fields["event"]))
        return found

    def test_stream_ends_with_the_job_and_resumes(self, client: TestClient, job_id: str) -> None:
        everything = self.stream(client, job_id)
        kinds = [kind for _, kind in everything]
        assert kinds == ["state", "state", *["warning"] * 4, "step", "state", "end"]
        rest = self.stream(client, job_id, **{"Last-Event-ID": everything[3][0]})
        assert rest == everything[4:]
        assert self.stream(client, job_id, **{"Last-Event-ID": everything[-2][0]}) == [("", "end")]

    def test_progress_arrives_without_a_place_in_the_history(
        self, client: TestClient, spec: dict[str, Any], store: InMemoryJobStore
    ) -> None:
        job_id = str(client.post("/v1/jobs", json=spec).json()["id"])
        store.claim("me", 60, 1)
        store.append(job_id, 1, Progress(phase="rollout", step=1, done=3, total=4))
        assert client.get("/v1/jobs").json()["items"][0]["progress"]["done"] == 3
        end = threading.Timer(0.5, lambda: store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE))
        end.start()
        told = self.stream(client, job_id)
        end.join()
        assert ("", "progress") in told and told[-1] == ("", "end")

    def test_json_page(self, client: TestClient, job_id: str) -> None:
        url, headers = f"/v1/jobs/{job_id}/events", {"Accept": "Application/JSON"}
        page = client.get(url, headers=headers, params={"limit": 3}).json()
        assert [item["event"]["type"] for item in page["items"]] == ["state", "state", "warning"]
        assert not page["finished"]
        rest = client.get(url, headers=headers, params={"after": page["next"]}).json()
        assert len(rest["items"]) == 5 and rest["finished"]
        assert rest["items"][3]["event"]["metrics"] == {"loss/total": None}

    def test_a_cursor_that_is_none(self, client: TestClient, job_id: str) -> None:
        assert_problem(client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "abc"}), 400)


class TestFiles:
    @pytest.fixture
    def run(self, client: TestClient, spec: dict[str, Any], settings: Settings) -> tuple[str, Path]:
        job_id = str(client.post("/v1/jobs", json=spec).json()["id"])
        folder = settings.runs_dir / job_id
        (folder / "clips").mkdir(parents=True)
        (folder / "clips" / "a.mp4").write_bytes(bytes(range(256)) * 4)
        (folder / "report.html").write_text("<h1>hi</h1>")
        (settings.data_dir / "secret").write_text("no")
        (folder / "link.json").symlink_to(settings.data_dir / "secret")
        names = {"clip": "clips/a.mp4", "report": "report.html", "up": "../../data/secret", "link": "link.json",
                 "gone": "gone.json", "abs": str(settings.data_dir.resolve() / "secret"), "dir": "clips"}  # fmt: skip
        kinds = {"clip": "video/mp4", "report": "text/html; charset=utf-8"}
        listed = [
            {"id": ident, "name": name, "media_type": kinds.get(ident, "application/json"), "bytes": 1, "sha256": "0"}
            for ident, name in names.items()
        ]
        (folder / "artifacts.json").write_text(json.dumps({"job_id": job_id, "artifacts": listed}))
        return job_id, folder

    def test_download_by_id_with_ranges(self, client: TestClient, run: tuple[str, Path]) -> None:
        url = f"/v1/jobs/{run[0]}/artifacts/clip"
        whole = client.get(url)
        assert whole.status_code == 200 and len(whole.content) == 1024
        assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
        part = client.get(url, headers={"Range": "bytes=10-19"})
        assert part.status_code == 206 and part.content == bytes(range(10, 20))
        assert part.headers["content-range"] == "bytes 10-19/1024"

    @pytest.mark.parametrize("ident", ["up", "link", "gone", "abs", "dir", "nope", "clips%2Fa.mp4", "..%2F..%2Fx"])
    def test_nothing_outside_the_manifest_and_the_folder(
        self, client: TestClient, run: tuple[str, Path], ident: str
    ) -> None:
        assert_problem(client.get(f"/v1/jobs/{run[0]}/artifacts/{ident}"), 404)

    def test_a_report_runs_without_an_origin(self, client: TestClient, run: tuple[str, Path]) -> None:
        answer = client.get(f"/v1/jobs/{run[0]}/artifacts/report")
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.headers["content-disposition"].startswith("inline")

    def test_curves_and_checkpoints(self, client: TestClient, run: tuple[str, Path]) -> None:
        job_id, folder = run
        assert client.get(f"/v1/jobs/{job_id}/metrics").json() == {"steps": [], "metrics": {}, "phase_seconds": {}}
        rows = [
            StepCompleted(
                step=step, policy_version=step, metrics={"grad_norm": step / 2, "loss/total": None},
                phase_seconds={"learn": 1.0}, samples=4,
            ).model_dump_json()
            for step in (1, 2, 3)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 4, "metr')
        url = f"/v1/jobs/{job_id}/metrics"
        series = client.get(url).json()
        assert series["steps"] == [1, 2, 3] and series["metrics"]["grad_norm"] == [0.5, 1.0, 1.5]
        assert series["metrics"]["loss/total"] == [None] * 3 and series["phase_seconds"]["learn"] == [1.0] * 3
        picked = client.get(url, params={"names": "grad_norm", "since_step": 2}).json()
        assert picked["steps"] == [3] and list(picked["metrics"]) == ["grad_norm"]
        for name in ("step-000001", "step-000002"):
            (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / "step-000001" / "manifest.json").write_text('{"step": 1}')
        found = client.get(f"/v1/jobs/{job_id}/checkpoints").json()
        assert [entry["step"] for entry in found] == [1], "one without a manifest is not complete"


class TestPages:
    def test_pages_ask_for_the_key(self, client: TestClient) -> None:
        del client.headers["Authorization"]
        for path in ("/", "/jobs/job-x"):
            answer = client.get(path)
            assert answer.status_code == 401 and 'name="key"' in answer.text
        assert client.get("/static/job.js").status_code == 200
        assert client.post("/session", data={"key": "wrong"}).status_code == 401

    def test_a_cookie_reads_but_does_not_write(
        self, client: TestClient, settings: Settings, spec: dict[str, Any]
    ) -> None:
        job_id = client.post("/v1/jobs", json=changed(spec, "/name", "x - y")).json()["id"]
        del client.headers["Authorization"]
        assert client.get("/", params={"key": key_of(settings)}).status_code == 401, "no key in an address"
        answer = client.post("/session", data={"key": key_of(settings)}, follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and key_of(settings) not in cookie
        assert client.get("/v1/jobs").status_code == 200
        page = client.get(f"/jobs/{job_id}")
        assert page.status_code == 200 and job_id in page.text and "reward/{reward}/mean" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"] and "<script>" not in page.text
        assert_problem(client.post("/v1/jobs", json=spec), 401)
        assert_problem(client.post(f"/v1/jobs/{job_id}/cancel"), 401)

    def test_a_forged_or_old_cookie_is_refused(self, client: TestClient) -> None:
        del client.headers["Authorization"]
        long, seal = "9" * 5000, "0" * 64
        values = ("99999999999.abc", "1.abc", "", "x", f"{'a' * 32}.{long}.{seal}", f"{'a' * 32}.9999999999.{seal}",
                  "٣" * 32, f"{'a' * 32}.٣٣٣٣٣٣٣٣٣٣.{seal}", f"{'a' * 32}.9999999999.é{seal[1:]}")  # fmt: skip
        for value in values:
            for url in ("/v1/jobs", "/", "/jobs/job-x"):
                answer = client.get(url, headers={"Cookie": f"accord_session={value}".encode()})
                assert answer.status_code == 401, value

    def test_a_name_is_text(self, settings: Settings, store: InMemoryJobStore) -> None:
        from services.jobs.store import Submission

        store.enqueue(Submission("job-x", "<script>alert(1)</script>", "{}", 1))
        client = TestClient(create_app(settings, store), headers={"Authorization": f"Bearer {key_of(settings)}"})
        assert "<script>alert" not in client.get("/jobs/job-x").text


def test_prometheus_says_the_queue_and_the_latency(client: TestClient, spec: dict[str, Any]) -> None:
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    client.get(f"/v1/jobs/{job_id}")
    text = client.get("/metrics").text
    assert 'accord_queue_jobs{state="queued"} 1.0' in text and 'accord_queue_jobs{state="failed"} 0.0' in text
    assert 'route="/v1/jobs/{job_id}"' in text and job_id not in text
    assert 'accord_build_info{version="' in text
