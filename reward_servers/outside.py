"""Asking servers of others, for every reward that does: one deadline for all of a call, a bound on what is read, no
redirects, no proxies of the environment, and a reason for whatever is no answer.

| what happens | reason |
|---|---|
| no whole answer by the deadline, however the server drips; 408, 504 | `timeout` |
| no connection, one that breaks, an answer that is no HTTP | `unreachable` |
| 429, 503 | `backpressure` |
| any other 4xx | `refused` |
| any other status, a redirect too; an answer that is compressed or too long | `bad_answer` |

A broken connection and 429 or 503 are tried again: a score is a pure function, so asking twice is safe. After those two
the server's `Retry-After` is waited for, where that ends before the deadline.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import httpx

from accord.config.outside import allowed_url, token_of
from accord.errors import UserError
from accord.types import ScoreReason

FIRST_PAUSE_S = 0.2
MOST_TOLD = 300
"""Bytes of a refusal that its message repeats."""

_Found = TypeVar("_Found")


class NoAnswer(Exception):
    """An answer that counts for nothing, and the reason that its clips get."""

    def __init__(self, reason: ScoreReason, why: str) -> None:
        super().__init__(reason, why)
        self.reason, self.why = reason, why

    def __str__(self) -> str:
        return self.why


class _Later(Exception):
    """Worth another try."""

    def __init__(self, failure: NoAnswer, pause_s: float | None = None) -> None:
        super().__init__(failure)
        self.failure, self.pause_s = failure, pause_s


class Outside:
    """A server of others below one address.

    Raises:
        UserError: at construction, when the address is not allowed, the token missing, or `ca_file` holds no
            certificates.
    """

    def __init__(
        self, url: str, token_env: str, *, call_s: float, retries: int, max_answer_bytes: int, ca_file: str = ""
    ) -> None:
        self._base = allowed_url(url)
        token = token_of(token_env)
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._call_s, self._retries, self._max_bytes = call_s, retries, max_answer_bytes
        self._tls = _trust(ca_file)

    def session(self) -> httpx.AsyncClient:
        """Connections to it, for `ask`; used as a context."""
        return httpx.AsyncClient(
            headers=self._headers,
            follow_redirects=False,
            trust_env=False,
            timeout=None,
            verify=self._tls,
            limits=httpx.Limits(),  # who asks bounds its calls; in a queue here they would spend their time
        )

    async def ask(
        self,
        http: httpx.AsyncClient,
        method: Literal["GET", "POST"],
        path: str,
        *,
        body: bytes = b"",
        content_type: str = "",
        params: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of an answer with status 200. Raises NoAnswer."""
        until = time.monotonic() + self._call_s
        headers = {"Content-Type": content_type} if content_type else {}
        request = http.build_request(method, f"{self._base}{path}", content=body, headers=headers, params=params)
        try:
            async with asyncio.timeout(self._call_s):
                for tried in range(self._retries + 1):
                    try:
                        return await self._once(http, request)
                    except _Later as later:
                        pause_s = FIRST_PAUSE_S * 2**tried if later.pause_s is None else later.pause_s
                        if tried == self._retries or time.monotonic() + pause_s >= until:
                            raise later.failure from later
                        await asyncio.sleep(pause_s)
        except TimeoutError:
            pass
        raise NoAnswer("timeout", f"{self._base}{path} gave no whole answer within {self._call_s:g} s")

    async def _once(self, http: httpx.AsyncClient, request: httpx.Request) -> bytes:
        try:
            response = await http.send(request, stream=True)
            try:
                return await self._read(response)
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise _Later(NoAnswer("unreachable", f"{request.url.copy_with(query=None)}: {error!r}")) from error

    async def _read(self, response: httpx.Response) -> bytes:
        status, found = response.status_code, bytearray()
        most = self._max_bytes if status == 200 else MOST_TOLD
        if status == 200 and response.headers.get("content-encoding", "identity") != "identity":
            raise NoAnswer("bad_answer", "the answer is compressed, which was not asked for")
        async for chunk in response.aiter_raw():
            found += chunk
            if len(found) > most:
                break
        if status == 200:
            if len(found) > most:
                raise NoAnswer("bad_answer", f"the answer is longer than {most} bytes")
            return bytes(found)
        told = f"the server answers {status}: {bytes(found[:MOST_TOLD]).decode(errors='replace')!r}"
        if status in {429, 503}:
            raise _Later(NoAnswer("backpressure", told), _seconds(response.headers.get("retry-after", "")))
        if status in {408, 504}:
            raise NoAnswer("timeout", told)
        raise NoAnswer("refused" if 400 <= status < 500 else "bad_answer", told)


def now(asking: Coroutine[Any, Any, _Found]) -> _Found:
    """The result of asking, wherever this is called from: an event loop may be running in this thread."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, asking).result()


def _seconds(retry_after: str) -> float | None:
    """What `Retry-After` says, in seconds; None for what it does not say so."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 7 else None


def _trust(ca_file: str) -> ssl.SSLContext:
    if not ca_file:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"{ca_file} holds no certificates ({error}); give a PEM file") from error
