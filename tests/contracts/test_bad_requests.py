"""A thousand requests as nobody should send them, to the API as it is served: each gets an answer that blames the
request, and nobody else waits for it."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from accord.ids import new_job_id
from tests.contracts.live_api import KEY, LiveApi, live_api

REQUESTS = 1000
FREEZE_S = 10.0
"""A `/healthz` that takes longer than this waited for somebody's request; on a busy machine it takes 0.1 s."""

RAW_WORDS = [
    "%00", "a%00b", "%FF", "%ED%A0%80", "..", "%2e%2e%2f", "a:ev", "%3Aev", "*", "{}", "%25", "%", "%zz", "x" * 300,
    "%E2%80%A8", "%D9%A3", "-1", "0", "18446744073709551616", "9" * 300, "NaN", "null", "true", "%F0%9F%98%80", "",
    "'", "%22", "a%20b", "%0d%0aX:%20y", "job-", "JOB-X", "job-none", "~nouser", "1e999", "0-0", "0-", "-",
    "٣".encode(),
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**64, 10**400, 1e308, -0.0, "", "x" * 300, "x" * 70_000, "\x00", "a\u2028b", "..",
    "~nouser/x", "/dev/zero", "/", [], {}, [[]], {"name": 1}, {"name": "nope"}, {"\x00": 1}, ["x"] * 3000,
    {f"k{n}": n for n in range(3000)}, "job-x:ev", "\ud7ff",
    "1e5", "*", 0.1, 1, 2,
]  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One request as it goes over the wire, and how it was made."""

    kind: str
    data: bytes
    heard: bool = True
    """False where the connection may end without an answer: what was sent is not the beginning of a request."""


class Maker:
    """Makes bad requests out of good ones; the same seed makes the same ones."""

    def __init__(self, seed: int, api: LiveApi) -> None:
        self.random = random.Random(seed)
        self.api = api
        self.kinds: list[Callable[[], Call]] = [
            self.path, self.path, self.query, self.query, self.headers, self.headers, self.spec, self.spec, self.spec,
            self.body, self.form, self.method, self.noise, self.cursor, self.ident, self.cookie, self.host,
        ]  # fmt: skip

    def calls(self, count: int) -> list[Call]:
        return [self.random.choice(self.kinds)() for _ in range(count)]

    def request(self, kind: str, method: str, path: bytes, body: bytes = b"", **headers: bytes) -> Call:
        given = {b"Host": b"x", b"Authorization": b"Bearer " + KEY.encode(), b"Connection": b"close"}
        given |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
        if body and b"Content-Length" not in given and b"Transfer-Encoding" not in given:
            given[b"Content-Length"] = str(len(body)).encode()
        head = b"".join(name + b": " + value + b"\r\n" for name, value in given.items())
        return Call(kind, method.encode() + b" " + path + b" HTTP/1.1\r\n" + head + b"\r\n" + body)

    def job(self) -> str:
        return self.random.choice([*self.api.jobs.values(), new_job_id()])

    def place(self) -> str:
        job = self.job()
        return self.random.choice(
            ["/", "/healthz", "/readyz", "/v1/jobs", "/openapi.json", "/static/job.js", f"/jobs/{job}",
             f"/v1/jobs/{job}",
             *(f"/v1/jobs/{job}/{word}" for word in ("events", "metrics", "checkpoints", "artifacts", "cancel")),
             *(f"/v1/jobs/{job}/artifacts/{ident}" for ident in ("clip", "report", "nul", "long", "up", "gone"))]
        )  # fmt: skip

    def word(self) -> bytes:
        word = self.random.choice(RAW_WORDS)
        return word if isinstance(word, bytes) else word.encode()

    def verb(self) -> str:
        return self.random.choice(["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS"])

    def path(self) -> Call:
        parts = self.place().encode().split(b"/")
        at = self.random.randrange(1, len(parts))
        parts[at] = self.random.choice([self.word(), parts[at] + self.word(), parts[at] + b"/", b""])
        return self.request("path", self.random.choice([self.verb(), "DELETE"]), b"/".join(parts))

    def query(self) -> Call:
        names = [b"limit", b"after", b"state", b"names", b"since_step", b"ticket", b"key", self.word()]
        pairs = [self.random.choice(names) + b"=" + self.word() for _ in range(self.random.choice([1, 2, 5, 400]))]
        return self.request("query", self.verb(), self.place().encode() + b"?" + b"&".join(pairs))

    def headers(self) -> Call:
        seal = b"0" * 64
        nasty = [
            b"", b"\xff\xfe", b"x" * 3000, b"9" * 5000, b",,,;;;===", b'"', b"*", b"bytes=-1", b"bytes=0-1,2-3,5000-",
            b"bytes=9999999999999999999999-", b"Bearer ", b"Bearer \xff", b"Basic Og==", "٣".encode(),
            b"text/event-stream",
            b"application/json", b"//x", b"/a", b"[", b"[::1", b"a b", b"1.1.1.1, x", b"https", b"-1",
            b"gzip, chunked",
            b"accord_session=" + "٣".encode() * 40, b"accord_session=" + b"a" * 32 + b"." + b"9" * 5000 + b"." + seal,
            b"accord_session=" + b"a" * 32 + b".9999999999." + b"\xe9" * 64, b"accord_session=99999999999.abc",
        ]  # fmt: skip
        names = [
            "Cookie", "Authorization", "Last_Event_ID", "Idempotency_Key", "Range", "If_Range", "If_None_Match", "Host",
            "If_Modified_Since", "Accept", "X_Forwarded_For", "X_Forwarded_Proto", "X_Forwarded_Prefix", "Content_Type",
            "Expect", "Upgrade", "Content_Length", "Transfer_Encoding", "Accept_Encoding",
        ]  # fmt: skip
        given = {
            name: self.random.choice(nasty) for name in self.random.sample(names, self.random.choice([1, 1, 2, 4]))
        }
        call = self.request("headers", self.verb(), self.place().encode(), **given)
        # What announces a body that does not come is ended by this side.
        return Call(call.kind, call.data, heard=not {"Content_Length", "Transfer_Encoding", "Expect"} & set(given))

    def cursor(self) -> Call:
        path = f"/v1/jobs/{self.job()}/events".encode()
        accept = self.random.choice([b"application/json", b"text/event-stream"])
        cursor = self.random.choice(
            [b"18446744073709551616", b"18446744073709551615", b"9223372036854775808-1", b"1-18446744073709551616",
             "٣".encode(), b"9" * 41, b"-", b"1-", b"-1", b"$", b">", b"+", b"0-0-0", self.word()]
        )  # fmt: skip
        if self.random.random() < 0.5:
            return self.request("cursor", "GET", path + b"?after=" + quote(cursor).encode(), Accept=accept)
        return self.request("cursor", "GET", path, Accept=accept, Last_Event_ID=cursor)

    def ident(self) -> Call:
        """A job's id with something at its end or in it that means more in a key, a path or an address."""
        job = self.job()
        odd = self.random.choice(
            [f"{job}:ev", f"{job}%3Aev", f"{job}%00", job.upper(), job[:-1], f"{job}%2F", f"{job}%20", f"..%2F{job}",
             f"{job}*", "job-" + "x" * 300, f"{{{job}}}", "job-%ED%A0%80"]
        )  # fmt: skip
        tail = self.random.choice(
            ["", "/events", "/metrics", "/artifacts", "/checkpoints", "/artifacts/clip", "/cancel"]
        )
        base = self.random.choice(["/v1/jobs/", "/v1/jobs/", "/jobs/", "/v1/jobs?after="])
        verb = "POST" if tail == "/cancel" else self.random.choice(["GET", "GET", "HEAD", "DELETE"])
        return self.request("ident", verb, (base + odd + tail).encode())

    def cookie(self) -> Call:
        """No key, and a session that nobody gave."""
        head, seal = b"accord_session=" + b"a" * 32 + b".", b"." + b"0" * 64
        cookie = self.random.choice(
            [head + b"9" * 5000 + seal, head + "٣".encode() * 10 + seal, head + b"9999999999." + b"\xe9" * 64,
             b"accord_session=99999999999." + b"\xe9" * 64, b"accord_session=" + b"9" * 5000 + b".x", b"accord_session",
             b"accord_session=" + b"\xff" * 100, b";" * 3000, b"accord_session=\"\\777\\000\"", b"=;=;accord_session=."]
        )  # fmt: skip
        return self.request("cookie", self.verb(), self.place().encode(), Authorization=b"", Cookie=cookie)

    def host(self) -> Call:
        host = self.random.choice([b"[", b"[::1", b"a b", b"\xe9", b"x" * 3000, b"x:y", b"//x", b"@", b"%", b""])
        return self.request("host", self.verb(), self.place().encode() + self.random.choice([b"", b"/"]), Host=host)

    def spec(self) -> Call:
        """A good job with some of its values replaced."""
        tree: Any = copy.deepcopy(self.api.spec)
        for _ in range(self.random.choice([1, 1, 2, 5])):
            self._spoil(tree)
        text = json.dumps(tree, ensure_ascii=self.random.random() < 0.5)
        return self.request("spec", "POST", b"/v1/jobs", text.encode(), Idempotency_Key=self.word())

    def _spoil(self, tree: Any) -> None:
        holder = tree
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = self.random.choice(
                [*keys, "labels", "sampling", "new\x00field"] if isinstance(holder, dict) else keys or [0]
            )
            inner = holder.get(key) if isinstance(holder, dict) else holder[key] if keys else None
            if isinstance(inner, dict | list) and inner and self.random.random() < 0.8:
                holder = inner
                continue
            with contextlib.suppress(IndexError):
                holder[key] = copy.deepcopy(self.random.choice(VALUES))
            return

    def body(self) -> Call:
        good = json.dumps(self.api.spec).encode()
        cut = self.random.randrange(len(good))
        bodies = [
            good[:cut], good[:cut] + self.word() + good[cut:], good[:-1] + b"," + good[1:], b"[" * 100_000,
            b"\xef\xbb\xbf" + good,
            b'{"a":' * 50_000, b"9" * 10_000, b'{"steps": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}', b"\xff" * 50_000,
            b"null", b'"x"', b"NaN", b"x" * 1_000_000, b"x" * 1_100_000, good.decode().encode("utf-16"),
            json.dumps({f"f{n}": 1 for n in range(24_000)}).encode(), b"[" + b"1," * 400_000 + b"1]",
        ]  # fmt: skip
        body = self.random.choice(bodies)
        if self.random.random() < 0.2:
            chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
            return self.request("body", "POST", b"/v1/jobs", chunks, Transfer_Encoding=b"chunked")
        return self.request("body", "POST", b"/v1/jobs", body, Content_Type=self.word())

    def form(self) -> Call:
        bodies = [b"&" * 4000, b"&" * 100_000, b"key=" + self.word(), b"\xff\x00", b"key=" + quote("x" * 1000).encode()]
        path = self.random.choice([b"/session", b"/session/end"])
        return self.request("form", "POST", path, self.random.choice(bodies))

    def method(self) -> Call:
        verbs = ["PATCH", "TRACE", "PROPFIND", "LOCK", "SUBSCRIBE", "M-SEARCH", "PURGE"]
        return self.request("method", self.random.choice(verbs), self.place().encode())

    def noise(self) -> Call:
        lines = [
            b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\r\n" * 1000 + b"x",
            b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"POST /v1/jobs HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", self.random.randbytes(300),
            b"GET /healthz HTTP/1.1\r\n\r\n" * 50, b"GET / HTTP/1.1\r\nHost",
        ]  # fmt: skip
        return Call("noise", self.random.choice(lines), heard=False)


def answer_to(api: LiveApi, call: Call) -> tuple[int, bytes]:
    """(status, beginning of the answer); status 0 when the connection ended without one."""
    with api.connect() as connection:
        with contextlib.suppress(ConnectionError):  # an early answer may close what is still being sent
            connection.sendall(call.data)
            if not call.heard:
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):
                answer += more
    if not answer:
        return 0, b""
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12]), answer


class Pulse:
    """Asks for `/healthz` all the while, from a thread of its own."""

    def __init__(self, api: LiveApi) -> None:
        self.slowest, self.wrong, self.asked = 0.0, 0, 0
        self._api, self._over = api, threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _beat(self) -> None:
        with self._api.client as client:
            while not self._over.wait(0.02):
                began = time.monotonic()
                self.wrong += client.get("/healthz").status_code != 200
                self.asked += 1
                self.slowest = max(self.slowest, time.monotonic() - began)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    folder: Path = tmp_path_factory.mktemp("api")
    with live_api(folder, header_timeout_s=5, body_timeout_s=5) as running:
        yield running


@pytest.mark.parametrize("seed", [20_260, 7])
def test_a_thousand_bad_requests(api: LiveApi, seed: int) -> None:
    calls = Maker(seed, api).calls(REQUESTS)
    with Pulse(api) as pulse, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda call: answer_to(api, call), calls))
    seen = Counter((call.kind, status) for call, (status, _) in zip(calls, answers, strict=True))
    broken = [
        (call.kind, status, call.data[:300], answer[-300:])
        for call, (status, answer) in zip(calls, answers, strict=True)
        if status >= 500 or (status == 0 and call.heard)
    ]
    assert not broken, (len(broken), broken[:5])
    unlike = [
        (call.data[:200], answer[:400])
        for call, (status, answer) in zip(calls, answers, strict=True)
        if status >= 400 and b"application/problem+json" not in answer and b"text/html" not in answer
    ]
    assert not unlike, unlike[:5]
    assert pulse.wrong == 0 and pulse.asked > 10 and pulse.slowest < FREEZE_S
    for kind in (
        "path",
        "query",
        "headers",
        "spec",
        "body",
        "form",
        "method",
        "noise",
        "cursor",
        "ident",
        "cookie",
        "host",
    ):
        assert sum(count for (name, _), count in seen.items() if name == kind) > 10, seen
    with api.client as client:
        assert client.post("/v1/jobs", json=api.spec).status_code == 202, "a good job is still taken"
        listed = client.get("/v1/jobs", params={"limit": 100}).json()["items"]
        assert listed and all(client.get(item["links"]["self"]).status_code == 200 for item in listed[:10])
