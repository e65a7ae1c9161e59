"""What every request meets first: conditional requests, HEAD, sessions, prefixes, streams, errors in one form."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from accord.config.settings import Settings
from accord.errors import ServiceError
from accord.ids import new_job_id
from services.api.app import create_app
from services.api.auth import KEY_FILE, Keeper, api_key
from services.api.limits import Refusal, Slots
from services.api.readiness import Readiness
from services.jobs.job import JobState, Reason
from services.jobs.store import Submission
from tests.memory_store import InMemoryJobStore

KEY = "a-key-for-these-tests"


def settings_in(folder: Path, **more: Any) -> Settings:
    return Settings(data_dir=folder / "data", runs_dir=folder / "runs", api_key=KEY, **more)


@pytest.fixture
def store() -> InMemoryJobStore:
    return InMemoryJobStore()


@pytest.fixture
def client(tmp_path: Path, store: InMemoryJobStore) -> Iterator[TestClient]:
    yield made(settings_in(tmp_path), store)


def made(settings: Settings, store: InMemoryJobStore, **more: Any) -> TestClient:
    app = create_app(settings, store, check_spec=lambda _: None)
    return TestClient(app, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False, **more)


@pytest.fixture
def job_id(store: InMemoryJobStore, tmp_path: Path) -> str:
    job = store.enqueue(Submission(new_job_id(), "n", "{}", 3))[0].id
    store.claim("me", 60, 1)
    store.finish(job, 1, JobState.SUCCEEDED, Reason.NONE)
    folder = tmp_path / "runs" / job
    folder.mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(b"0123456789" * 100)
    entry = {"id": "clip", "name": "clip.mp4", "media_type": "video/mp4", "bytes": 1000, "sha256": "0"}
    (folder / "artifacts.json").write_text(json.dumps({"artifacts": [entry]}))
    return job


def places(job_id: str) -> list[str]:
    base = f"/v1/jobs/{job_id}"
    return ["/v1/jobs", base, f"{base}/artifacts", f"{base}/checkpoints", f"{base}/metrics", f"{base}/artifacts/clip"]


class TestConditional:
    def test_what_is_known_is_not_sent_again(self, client: TestClient, job_id: str) -> None:
        for place in places(job_id):
            first = client.get(place)
            tag = first.headers["etag"]
            assert first.status_code == 200 and "no-store" not in first.headers["cache-control"]
            for known in (tag, f'"x", W/{tag}', "*"):
                again = client.get(place, headers={"If-None-Match": known})
                assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == tag, place
            assert client.get(place, headers={"If-None-Match": '"other"'}).content == first.content

    def test_a_change_has_another_tag(self, client: TestClient, store: InMemoryJobStore, job_id: str) -> None:
        before = client.get("/v1/jobs").headers["etag"]
        store.enqueue(Submission(new_job_id(), "m", "{}", 3))
        assert client.get("/v1/jobs", headers={"If-None-Match": before}).status_code == 200

    def test_head_is_get_without_a_body(self, client: TestClient, job_id: str) -> None:
        for place in [*places(job_id), "/healthz", "/metrics", "/", f"/jobs/{job_id}", "/openapi.json"]:
            get, head = client.get(place), client.head(place)
            assert head.status_code == get.status_code == 200 and head.content == b"", place
            assert head.headers["content-type"] == get.headers["content-type"]
            if place != "/metrics":
                assert head.headers["content-length"] == get.headers["content-length"]
        assert client.head(f"/v1/jobs/{job_id}/events").headers["content-type"].startswith("text/event-stream")
        assert client.head("/v1/jobs/job-none").status_code == 404
        assert client.head(f"/v1/jobs/{job_id}/cancel").status_code == 405


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "status", "allow"),
        [
            ("GET", "/v1/jobs/", 404, ""),
            ("GET", "/static", 404, ""),
            ("GET", "/static/%00", 404, ""),
            ("GET", "/static/" + "x" * 300, 404, ""),
            ("POST", "/static/job.js", 405, "GET, HEAD"),
            ("PUT", "/v1/jobs", 405, "GET, HEAD, POST"),
            ("GET", "/v1/jobs/job-x/cancel", 405, "POST"),
            ("BREW", "/healthz", 405, "GET, HEAD"),
            ("GET", "/v1/jobs/%00", 404, ""),
            ("GET", "/v1/jobs/a:ev", 404, ""),
            ("GET", "/v1/jobs?after=x:y", 422, ""),
            ("GET", "/v1/jobs?limit=%D9%A3%00", 422, ""),
        ],
    )
    def test_every_error_is_a_problem(
        self, client: TestClient, method: str, path: str, status: int, allow: str
    ) -> None:
        answer = client.request(method, path, headers={"Host": "elsewhere.example"}, follow_redirects=False)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert answer.headers.get("allow", "") == allow
        assert "elsewhere" not in str(answer.headers) + answer.text

    def test_a_range_that_is_not_there(self, client: TestClient, job_id: str) -> None:
        url = f"/v1/jobs/{job_id}/artifacts/clip"
        for text, status in (("bytes=5000-", 416), ("bytes=x", 400), ("pages=1", 400)):
            answer = client.get(url, headers={"Range": text})
            assert answer.status_code == status and answer.json()["detail"], text
            assert answer.headers["content-type"] == "application/problem+json"

    def test_a_host_header_that_is_no_host(self, client: TestClient) -> None:
        for host in ("[", "a b", "x" * 1000, "\u00e9".encode()):
            assert client.get("/nowhere", headers={"Host": host}).status_code == 404
            assert client.get("/", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "cursor", ["abc", "18446744073709551616", "0-18446744073709551616", "٣", "1-", "-1", "18446744073709551615"]
    )
    def test_a_cursor_that_was_never_given(self, client: TestClient, job_id: str, cursor: str) -> None:
        url = f"/v1/jobs/{job_id}/events"
        for arguments in ({"params": {"after": cursor}}, {"headers": {"Last-Event-ID": cursor.encode()}}):
            answer = client.get(url, **arguments)
            assert answer.status_code == 400 and "earlier answer" in answer.json()["detail"]

    def test_a_body_is_told_twice_what_stands_twice(self, client: TestClient, store: InMemoryJobStore) -> None:
        answer = client.post("/v1/jobs", content=b'{"steps": 1, "steps": 2}')
        assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/steps"

    def test_errors_of_a_big_body_are_few(self, client: TestClient) -> None:
        body = json.dumps({f"f{n}": n for n in range(9000)}).encode()
        answer = client.post("/v1/jobs", content=body)
        assert answer.status_code == 422 and len(answer.json()["errors"]) == 51 and len(answer.content) < 20_000
        answer = client.post("/v1/jobs", content=b"\\" * 1_000_000)
        assert answer.status_code == 422 and len(answer.content) < 1000

    def test_a_form_is_small(self, client: TestClient) -> None:
        assert client.post("/session", content=b"&" * 1_000_000).status_code == 413
        assert client.post("/session", content=b"&" * 4000).status_code == 400
        assert client.post("/session", content=b"\xff\x00").status_code == 401


class TestKeyFile:
    def test_it_is_never_there_without_its_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = Settings(data_dir=tmp_path)
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("power cut")))
            with pytest.raises(ServiceError, match="power cut"):
                api_key(settings)
        assert list(tmp_path.iterdir()) == []

    def test_the_first_of_several_makes_it(self, tmp_path: Path) -> None:
        settings, found = Settings(data_dir=tmp_path), []
        gate = threading.Barrier(8)
        threads = [threading.Thread(target=lambda: (gate.wait(), found.append(api_key(settings)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(found) == 8 and len(set(found)) == 1
        assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]

    @pytest.mark.parametrize("text", ["", "\n", "short\n", "two words that are long\n"])
    def test_a_file_without_a_key_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / KEY_FILE).write_text(text)
        with pytest.raises(ServiceError, match="remove the file"):
            create_app(Settings(data_dir=tmp_path), InMemoryJobStore())


def test_a_readiness_check_runs_once_however_many_ask() -> None:
    gate, asked = threading.Event(), []
    readiness = Readiness({"slow": lambda: (asked.append(1), gate.wait(20), None)[2]})

    async def ask_all() -> list[dict[str, str]]:
        tasks = [asyncio.ensure_future(readiness.failures()) for _ in range(50)]
        await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask_all()) == [{}] * 50 and asked == [1]


class TestSessions:
    def test_an_ended_session_is_over_on_every_api(self, tmp_path: Path, store: InMemoryJobStore) -> None:
        one, two = (made(settings_in(tmp_path), store) for _ in range(2))
        del one.headers["Authorization"], two.headers["Authorization"]
        cookie = one.post("/session", data={"key": KEY}, follow_redirects=False).headers["set-cookie"]
        stolen = {"Cookie": cookie.partition(";")[0]}
        assert two.get("/v1/jobs", headers=stolen).status_code == 200
        assert "Sign out" in one.get("/").text
        out = one.post("/session/end", follow_redirects=False)
        assert out.status_code == 303 and 'accord_session=""' in out.headers["set-cookie"]
        fresh = made(settings_in(tmp_path), store)
        del fresh.headers["Authorization"]
        for client in (one, fresh):
            assert client.get("/v1/jobs", headers=stolen).status_code == 401
            assert client.get("/", headers=stolen).status_code == 401

    def test_a_ticket_opens_one_session(self, client: TestClient) -> None:
        del client.headers["Authorization"]
        ticket = Keeper(KEY).new_ticket()
        first = client.get("/", params={"ticket": ticket}, follow_redirects=False)
        assert first.status_code == 303 and first.headers["location"] == "/"
        assert client.get("/v1/jobs").status_code == 200
        client.cookies.clear()
        assert client.get("/", params={"ticket": ticket}, follow_redirects=False).status_code == 401
        for other in (Keeper("another-key-of-length").new_ticket(), Keeper(KEY).new_session(), "x", "é" * 50):
            assert client.get("/", params={"ticket": other}, follow_redirects=False).status_code == 401

    def test_a_ticket_is_no_session(self, client: TestClient) -> None:
        del client.headers["Authorization"]
        cookie = {"Cookie": f"accord_session={Keeper(KEY).new_ticket()}"}
        assert client.get("/v1/jobs", headers=cookie).status_code == 401


class TestPrefix:
    @pytest.mark.parametrize("cut", [True, False])
    @pytest.mark.parametrize("told", ["setting", "header"])
    def test_links_lead_through_the_proxy(
        self, tmp_path: Path, store: InMemoryJobStore, job_id: str, cut: bool, told: str
    ) -> None:
        client = made(settings_in(tmp_path, root_path="/a/b" if told == "setting" else None), store)
        if told == "header":
            client.headers["X-Forwarded-Prefix"] = "/a/b/"
        at = "" if cut else "/a/b"
        job = client.get(f"{at}/v1/jobs/{job_id}").json()
        assert job["links"]["self"] == f"/a/b/v1/jobs/{job_id}" and job["links"]["page"] == f"/a/b/jobs/{job_id}"
        page = client.get(f"{at}/jobs/{job_id}").text
        assert 'href="/a/b/static/style.css"' in page and 'data-root="/a/b"' in page
        assert client.get(f"{at}/static/job.js").status_code == 200
        answer = client.post(f"{at}/session", data={"key": KEY}, follow_redirects=False)
        assert answer.headers["location"] == "/a/b/" and "Path=/a/b;" in answer.headers["set-cookie"]
        assert client.get(f"{at}/openapi.json").json()["servers"] == [{"url": "/a/b"}]
        assert client.get(f"{at}/healthz").status_code == 200

    @pytest.mark.parametrize("header", ["//elsewhere.example", "/a b", '/a"><script>', "http://x", "/" + "a" * 5000])
    def test_a_prefix_that_is_no_path_is_ignored(self, client: TestClient, job_id: str, header: str) -> None:
        answer = client.get(f"/v1/jobs/{job_id}", headers={"X-Forwarded-Prefix": header})
        assert answer.json()["links"]["self"] == f"/v1/jobs/{job_id}"


class TestStreams:
    def test_slots_are_counted_and_given_back(self) -> None:
        slots = Slots(3, 2)
        assert [slots.take("a"), slots.take("a"), slots.take("a")] == [None, None, Refusal.CLIENT]
        assert [slots.take("b"), slots.take("c")] == [None, Refusal.ALL]
        slots.free("a")
        assert [slots.take("c"), slots.take("a")] == [None, Refusal.ALL]

    def test_one_client_holds_so_many_and_a_closed_one_counts_no_more(
        self, tmp_path: Path, store: InMemoryJobStore
    ) -> None:
        job = store.enqueue(Submission(new_job_id(), "n", "{}", 3))[0].id
        app = create_app(settings_in(tmp_path, max_streams_per_client=2), store)
        asyncio.run(_hold_streams(app, f"/v1/jobs/{job}/events"))


async def _hold_streams(app: Any, path: str) -> None:
    """Three streams where two fit; then one leaves and another comes."""
    first, second, third = (_Caller(path) for _ in range(3))
    tasks = [asyncio.ensure_future(app(caller.scope, caller.receive, caller.send)) for caller in (first, second)]
    assert await first.status() == await second.status() == 200
    await app(third.scope, third.receive, third.send)
    assert await third.status() == 429
    first.gone.set()
    await asyncio.wait_for(tasks[0], 20)
    fourth = _Caller(path)
    tasks.append(asyncio.ensure_future(app(fourth.scope, fourth.receive, fourth.send)))
    assert await fourth.status() == 200
    for caller in (second, fourth):
        caller.gone.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)


class _Caller:
    """One ASGI request that stays until it goes."""

    def __init__(self, path: str) -> None:
        self.scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"authorization", f"Bearer {KEY}".encode())], "client": ("10.0.0.1", 1), "server": ("x", 80),
            "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self.gone = asyncio.Event()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status.set_result(message["status"])

    async def status(self) -> int:
        return await asyncio.wait_for(asyncio.shield(self._status), 20)
