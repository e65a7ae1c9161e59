"""`accord up`, `accord api` and the other commands as real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from services.jobs.redis_store import RedisJobStore
from services.node.embedded import EmbeddedStore
from services.processes import marked
from tests.integration.service import REPOSITORY, free_port

KEY = "a-key-for-these-tests"
ACCORD = [sys.executable, "-m", "services.cli.main"]


def environment(root: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCORD_", "RAY_", "REDIS_"))}
    places = {"ACCORD_DATA_DIR": str(root / "data"), "ACCORD_RUNS_DIR": str(root / "runs")}
    places["ACCORD_INPUT_ROOTS"] = f"{root}:{REPOSITORY}"
    return {**kept, **places, "COLUMNS": "200", "NO_COLOR": "1", **more}


def run(root: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ACCORD, *arguments], env=environment(root, **more), capture_output=True, text=True, timeout=90
    )


def start(root: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    with (root / "out.log").open("ab") as log:
        return subprocess.Popen(
            [*ACCORD, *arguments], env=environment(root, **more), stdout=log, stderr=log, start_new_session=True
        )


def await_http(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 150) -> float:
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return time.monotonic() - began
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def leftovers(root: Path) -> list[str]:
    """Processes, temporary folders, sockets and shared memory of a service on `root`."""
    places = (root / "data", root / "data" / "demo")
    left = [f"{found.pid} {found.name()}" for place in places for found in marked("ACCORD_DATA_DIR", str(place))]
    left += [str(path) for path in (root / "data").rglob("*") if path.is_socket()]
    left += [name for name in ("ray.json", "store.url", "ray-token") if (root / "data" / name).exists()]
    return left


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory, short enough for sockets; it and shared memory must be empty afterwards."""
    before = set(Path("/dev/shm").glob("*"))
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)
        assert list(Path(folder).glob("accord-*")) == []
    assert set(Path("/dev/shm").glob("*")) - before == set()


def prompts(folder: Path) -> None:
    for name in ("train", "held"):
        line = {"id": name, "prompt_av": f"{name} ball", "prompt_v": "a ball", "prompt_a": "a beep"}
        (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")


JOB = """
name = "from a file"
steps = 2
[backbone]
name = "ltx2"
[prompts]
train = "train.jsonl"
held_out = "held.jsonl"
[guards]
allow_prompt_blind = true
[[rewards]]
name = "sync"
[algorithm]
name = "omninft"
"""


class TestUp:
    @pytest.mark.timeout(240)
    def test_ready_in_time_private_and_gone_after_ctrl_c(self, tmp_path: Path, temporary: Path) -> None:
        port = free_port()
        process = start(tmp_path, "up", "--port", str(port), TMPDIR=str(temporary))
        try:
            took = await_http(f"http://127.0.0.1:{port}/readyz", process, tmp_path / "out.log")
            assert took < 60, "30 s on an idle machine; a test machine is rarely idle"
            assert sorted(open_to_others(tmp_path)) == []
            key = (tmp_path / "data" / "api-key").read_text().strip()
            assert key not in (tmp_path / "out.log").read_text(), "terminals and logs are kept"
            link = run(tmp_path, "sign-in", ACCORD_PORT=str(port)).stdout.strip()
            assert key not in link and httpx.get(link, follow_redirects=True).status_code == 200
            second = run(tmp_path, "up", "--port", str(free_port()))
            assert second.returncode == 2 and "another service" in second.stderr
            assert run(tmp_path, "jobs", ACCORD_PORT=str(port)).returncode == 0
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 0, (tmp_path / "out.log").read_text()
        assert leftovers(tmp_path) == []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))

    @pytest.mark.timeout(240)
    @pytest.mark.parametrize("after_s", [0.7, 3.0, 6.0])
    @pytest.mark.parametrize("command", ["up", "demo"])
    def test_ctrl_c_at_any_moment(self, tmp_path: Path, temporary: Path, command: str, after_s: float) -> None:
        process = start(tmp_path, command, ACCORD_PORT=str(free_port()), TMPDIR=str(temporary))
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        process.wait(40)
        assert leftovers(tmp_path) == []
        assert "Traceback" not in (tmp_path / "out.log").read_text()

    @pytest.mark.timeout(240)
    def test_sigkill_leaves_nothing(self, tmp_path: Path, temporary: Path) -> None:
        port = free_port()
        process = start(tmp_path, "up", "--port", str(port), TMPDIR=str(temporary))
        await_http(f"http://127.0.0.1:{port}/readyz", process, tmp_path / "out.log")
        process.kill()
        process.wait(5)
        deadline = time.monotonic() + 40
        while marked("ACCORD_DATA_DIR", str(tmp_path / "data")):
            assert time.monotonic() < deadline, leftovers(tmp_path)
            time.sleep(0.1)


def open_to_others(root: Path) -> list[str]:
    """Listening sockets of the service that other machines could reach."""
    ours = {process.pid for process in marked("ACCORD_DATA_DIR", str(root / "data"))}
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    found = [conn for conn in psutil.net_connections("inet") if conn.status == psutil.CONN_LISTEN and conn.pid in ours]
    assert found
    return [f"{conn.pid} {conn.laddr}" for conn in found if conn.laddr.ip not in loopback]


class TestClearRefusals:
    def test_port_in_use(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = run(tmp_path, "up", "--port", str(port))
        assert done.returncode == 2
        assert f"port {port}" in done.stderr and "--port" in done.stderr and done.stderr.count("\n") == 1
        assert leftovers(tmp_path) == []

    def test_data_directory_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = run(tmp_path, "up", ACCORD_DATA_DIR=str(tmp_path / "file" / "data"))
        assert done.returncode == 2
        assert "cannot be written" in done.stderr and "ACCORD_DATA_DIR" in done.stderr and done.stderr.count("\n") == 1

    def test_rewards_exposed_without_a_token(self, tmp_path: Path) -> None:
        done = run(tmp_path, "up", ACCORD_REWARDS_HOST="0.0.0.0")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "ACCORD_REWARDS_HOST: 0.0.0.0 is beyond loopback; set ACCORD_REWARDS_TOKEN" in done.stderr
        token = tmp_path / "token"
        named = {"ACCORD_REWARDS_HOST": "0.0.0.0", "ACCORD_REWARDS_TOKEN_FILE": str(token)}
        done = run(tmp_path, "up", ACCORD_PORT=str(free_port()), **named)
        assert done.returncode == 2 and f"{token} has no token" in done.stderr, done.stderr

    @pytest.mark.parametrize("command", ["up", "api", "runner"])
    def test_store_does_not_answer(self, tmp_path: Path, command: str) -> None:
        url = f"redis://:hush@127.0.0.1:{free_port()}/0"
        done = run(tmp_path, command, REDIS_URL=url, ACCORD_PORT=str(free_port()))
        assert done.returncode == 3 and done.stderr.count("\n") == 1, done.stderr
        assert "does not answer" in done.stderr and "hush" not in done.stderr


class TestApiProcess:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[EmbeddedStore]:
        with EmbeddedStore(tmp_path / "server") as running:
            yield running

    @pytest.mark.timeout(180)
    def test_a_killed_api_loses_nothing(self, tmp_path: Path, server: EmbeddedStore) -> None:
        """kill -9 during a storm of POSTs; clients repeat with their keys: every job is there once."""
        port = free_port()
        settings = {"REDIS_URL": server.url, "ACCORD_PORT": str(port), "ACCORD_API_KEY": KEY}
        job = tmp_path / "job.toml"
        job.write_text(JOB)
        prompts(tmp_path)
        spec = json.loads(run(tmp_path, "validate", str(job)).stdout)
        process = start(tmp_path, "api", **settings)
        base = f"http://127.0.0.1:{port}"
        try:
            await_http(f"{base}/readyz", process, tmp_path / "out.log")
            accepted: dict[str, str] = {}
            clients = [threading.Thread(target=post_until_accepted, args=(base, spec, f"key-{n}", accepted))
                       for n in range(24)]  # fmt: skip
            for client in clients:
                client.start()
            while len(accepted) < 5:
                time.sleep(0.005)
            process.kill()
            process.wait(5)
            process = start(tmp_path, "api", **settings)
            await_http(f"{base}/readyz", process, tmp_path / "out.log")  # the storm may be over before the kill
            for client in clients:
                client.join(60)
            assert len(accepted) == 24
            stored = RedisJobStore(server.url).page(limit=100).jobs
            assert sorted(job.id for job in stored) == sorted(accepted.values())
            refused_unread(port)
        finally:
            process.terminate()
            assert process.wait(20) == 0

    @pytest.mark.timeout(120)
    def test_submit_watch_cancel_from_the_command_line(self, tmp_path: Path, server: EmbeddedStore) -> None:
        port = free_port()
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")  # nobody listens
        settings = {"REDIS_URL": server.url, "ACCORD_PORT": str(port), **proxies, "no_proxy": ""}
        job = tmp_path / "job.toml"
        job.write_text(JOB)
        prompts(tmp_path)
        process = start(tmp_path, "api", **settings)
        try:
            await_http(f"http://127.0.0.1:{port}/readyz", process, tmp_path / "out.log")
            sent = run(tmp_path, "submit", str(job), "--set", "steps=5", "--idempotency-key", "x", **settings)
            assert sent.returncode == 0, sent.stderr
            job_id = sent.stdout.strip()
            again = run(tmp_path, "submit", str(job), "--set", "steps=5", "--idempotency-key", "x", **settings)
            assert again.stdout.strip() == job_id
            assert job_id in run(tmp_path, "jobs", **settings).stdout
            assert run(tmp_path, "cancel", job_id, **settings).stdout.strip() == f"{job_id} is cancelled"
            watched = run(tmp_path, "watch", job_id, **settings)
            assert watched.returncode == 1 and "cancelled" in watched.stdout
            assert run(tmp_path, "cancel", job_id, **settings).returncode == 2
            assert run(tmp_path, "watch", "job-none", **settings).returncode == 2
            bad = run(tmp_path, "submit", str(job), "--set", "steps=-1", **settings)
            assert bad.returncode == 2 and "/steps" in bad.stderr
        finally:
            process.terminate()
            assert process.wait(20) == 0


def post_until_accepted(base: str, spec: dict[str, Any], key: str, accepted: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": key}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = httpx.post(f"{base}/v1/jobs", json=spec, headers=headers, timeout=10)
        except httpx.HTTPError:
            time.sleep(0.1)
            continue
        assert answer.status_code == 202, answer.text
        accepted[key] = answer.json()["id"]
        return


def refused_unread(port: int) -> None:
    """A body that is announced too large is refused before a byte of it was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 60000000\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(1024).startswith(b"HTTP/1.1 413")


def test_the_api_leaves_torch_and_ray_alone() -> None:
    modules = "services.api.app, services.cli.commands"
    code = f"import sys, {modules}; print(sorted({{'torch', 'ray', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
