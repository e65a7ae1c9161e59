"""The one door through which rewards are asked over HTTP: protocol, token and limits. Knows nothing of Serve (door.py).

`GET /v1/rewards` → cards; `GET /v1/rewards/NAME` → one; `POST /v1/score?reward=NAME[&deadline_s=30]` with the body of
wire.py → scores. What is refused is refused as RFC 9457 problem+json, and before the body is read where that is
possible: who asks, how long the body says it is, whether there is room for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from accord.config.contract import RewardSpec
from accord.types import Clip, Prompt, RewardScores
from reward_servers.wire import BadBody, read_body

MAX_BODY_BYTES = 512 * 2**20
MAX_HELD_BYTES = 2**30
"""Of all bodies that are here at once."""
MAX_CALLS = 256
"""Calls that are here at once."""
DEADLINE_S = 30.0
LONGEST_DEADLINE_S = 3600.0
_MEDIA_TYPE = "application/octet-stream"
_TITLES = {
    400: "Bad request", 401: "Unauthorised", 404: "Not found", 405: "Method not allowed", 411: "Length required",
    413: "Body too large", 415: "Unsupported media type", 429: "No room", 500: "Reward failed", 503: "Reward not up",
    504: "Deadline passed",
}  # fmt: skip


class Refusal(Exception):
    """Why a request has no answer, as problem+json."""

    def __init__(self, status: int, detail: str, field: str | None = None, **headers: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.field = status, detail, field
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        """The answer."""
        problem = {"type": "about:blank", "title": _TITLES[self.status], "status": self.status, "detail": self.detail}
        if self.field is not None:
            problem["field"] = self.field
        return JSONResponse(problem, self.status, self.headers, "application/problem+json")


class Rewards(Protocol):
    """Who is asked. Each of these raises Refusal: 404 for a reward that is not there, 503 for one that is not up."""

    async def cards(self) -> list[dict[str, Any]]:
        """Of all rewards that are up."""

    async def card(self, name: str) -> dict[str, Any]:
        """Of one reward."""

    async def needs(self, name: str) -> Sequence[Any]:
        """The modalities that a reward looks at. Cancelled when the deadline has passed."""

    async def score(self, name: str, prompt: Prompt, clips: list[Clip]) -> dict[str, Any]:
        """`answer_of` one group. Raises Refusal 429 where there is no room. Cancelled when the deadline has passed."""


class Gateway:
    """Answers requests for a set of rewards: an ASGI application."""

    def __init__(self, rewards: Rewards, token_digest: str = "") -> None:
        self._rewards = rewards
        self.token_digest = token_digest
        """SHA-256 of the token that a caller must have, hexadecimal; "" = anybody is served."""
        self._calls = self._held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "http":
            await (await self.answer(Request(scope, receive)))(scope, receive, send)

    async def answer(self, request: Request) -> JSONResponse:
        """The answer to any request."""
        try:
            self._check_token(request)
            return await self._routed(request)
        except Refusal as refusal:
            return refusal.response()

    def _check_token(self, request: Request) -> None:
        """No token and a wrong one are told the same, after the same time."""
        if not self.token_digest:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token_digest(token.strip() if scheme.lower() == "bearer" else "")
        if not hmac.compare_digest(given, self.token_digest):
            raise Refusal(
                401, "send the token of this server as Authorization: Bearer TOKEN", WWW_Authenticate="Bearer"
            )

    async def _routed(self, request: Request) -> JSONResponse:
        parts = [part for part in request.scope["path"].split("/") if part]
        match parts:
            case ["v1", "rewards"]:
                _allow(request, "GET")
                return JSONResponse({"rewards": await self._rewards.cards()})
            case ["v1", "rewards", name]:
                _allow(request, "GET")
                return JSONResponse(await self._rewards.card(name) | {"name": name})
            case ["v1", "score"]:
                _allow(request, "POST")
                return JSONResponse(await self._score(request))
        raise Refusal(404, "no such path; there are /v1/rewards, /v1/rewards/NAME and /v1/score?reward=NAME")

    async def _score(self, request: Request) -> dict[str, Any]:
        length, name, deadline_s = _length(request), request.query_params.get("reward", ""), _deadline(request)
        if not name:
            raise Refusal(400, "say which reward: /v1/score?reward=NAME", "reward")
        with self._room(length):
            try:
                async with asyncio.timeout(deadline_s):
                    needs = await self._rewards.needs(name)
                    body = await _body(request, length)
                    try:
                        prompt, clips = read_body(body, needs)
                    except BadBody as error:
                        raise Refusal(400, error.detail, error.field) from error
                    answer = await _unless_gone(request, self._rewards.score(name, prompt, clips))
                    return answer | {"reward": name}
            except TimeoutError as error:
                raise Refusal(504, f"no score within {deadline_s:g} s, and the call is cancelled") from error

    @contextmanager
    def _room(self, length: int) -> Iterator[None]:
        """Hold room for a call and its body. Raises Refusal when there is none."""
        if self._calls >= MAX_CALLS or self._held + length > MAX_HELD_BYTES:
            raise Refusal(429, f"{self._calls} calls with {self._held} bytes are being answered", Retry_After="1")
        self._calls, self._held = self._calls + 1, self._held + length
        try:
            yield
        finally:
            self._calls, self._held = self._calls - 1, self._held - length


def token_digest(token: str) -> str:
    """What a gateway is told of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def card_of(spec: RewardSpec, weights_digest: str) -> dict[str, Any]:
    """What a reward is, for strangers."""
    return {
        "name": spec.name, "about": spec.about, "version": spec.version, "weights_digest": weights_digest,
        "needs": list(spec.needs), "route": spec.route, "scope": spec.scope, "range": _plain(spec.range),
        "floor": spec.floor, "prompt_anchored": spec.prompt_anchored,
        "components": {
            name: {"about": part.about, "unit": part.unit, "low": _number(part.low), "high": _number(part.high),
                   "better": part.better}
            for name, part in spec.components.items()
        },
        "min_frames": spec.min_frames, "max_frames": spec.max_frames, "min_side": spec.min_side,
        "max_side": spec.max_side, "min_audio_s": spec.min_audio_s, "max_audio_s": spec.max_audio_s,
        "batch_tolerance": spec.batch_tolerance, "licence": spec.licence,
    }  # fmt: skip


def answer_of(scores: RewardScores, weights_digest: str) -> dict[str, Any]:
    """Scores for JSON, which has no NaN; the text of a float there gives back its bits."""
    return {
        "reward": scores.reward, "version": scores.version, "weights_digest": weights_digest,
        "values": _plain(scores.values), "valid": list(scores.valid), "reasons": list(scores.reasons),
        "seconds": scores.seconds,
        "components": {name: _plain(values) for name, values in scores.components.items()},
    }  # fmt: skip


def one_of(name: str, served: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Application and reward behind `NAME` or `NAME:APPLICATION`. `served`: rewards by application.

    The application that is called like the reward is meant before any other. Raises Refusal when none is meant, or
    several may be.
    """
    pairs = [(app, reward) for app, rewards in served.items() for reward in rewards]
    found = [(app, reward) for app, reward in pairs if name in (reward, f"{reward}:{app}")]
    found = [pair for pair in found if pair[0] == name] or found
    if len(found) == 1:
        return found[0]
    if found:
        ways = ", ".join(f"{reward}:{app}" for app, reward in found)
        raise Refusal(404, f"{name!r} is served by several applications; say which: {ways}", "reward")
    there = sorted({reward for _, reward in pairs})
    raise Refusal(404, f"no reward {name[:80]!r} is here; there are: {', '.join(there) or 'none'}", "reward")


def _allow(request: Request, method: str) -> None:
    if request.method != method:
        raise Refusal(405, f"use {method}", Allow=method)


def _length(request: Request) -> int:
    """How long the body is, by its headers alone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _MEDIA_TYPE:
        raise Refusal(415, f"send {_MEDIA_TYPE}, a safetensors file", "content-type")
    text = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not (text.isascii() and text.isdigit()):
        raise Refusal(411, "send Content-Length, and no chunks", "content-length")
    if len(text) > 18 or int(text) > MAX_BODY_BYTES:
        raise Refusal(413, f"at most {MAX_BODY_BYTES} bytes are read; send fewer clips at a time", "content-length")
    return int(text)


def _deadline(request: Request) -> float:
    text = request.query_params.get("deadline_s", str(DEADLINE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_DEADLINE_S:
        raise Refusal(400, f"give seconds, more than 0 and at most {LONGEST_DEADLINE_S:g}", "deadline_s")
    return seconds


async def _body(request: Request, length: int) -> bytearray:
    """The body. It grows as it arrives: a length that is only said takes no memory."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > length:
                break
    except ClientDisconnect as error:
        raise Refusal(400, "the connection ended before the body did", "") from error
    if len(body) != length:
        raise Refusal(400, f"the body has not the {length} bytes that Content-Length says", "content-length")
    return body


async def _unless_gone(request: Request, call: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The answer of a call, which is cancelled when its caller has gone."""
    scoring, gone = asyncio.create_task(call), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({scoring, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not scoring.done():
            raise Refusal(400, "the caller has gone", "")
        return scoring.result()
    finally:
        scoring.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _plain(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
