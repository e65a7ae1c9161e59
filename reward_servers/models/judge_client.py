"""How a vision-language model behind an OpenAI-compatible server is asked, and what counts as its answer.

What goes wrong is never a number: no answer in `call_s` is `timeout`, a broken connection `unreachable` (after at most
two more tries), 429 and 503 `backpressure`; any other status, a redirect, an answer too long, not JSON, of another
model, or without log-probabilities is `model_error`. Greedy (temperature 0), so an answer depends on the question
alone, as far as the server's batching leaves its bits alone.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from accord.config.outside import allowed_url, token_of
from accord.config.rewards.judges import JudgeReward
from accord.types import Clip, ScoreReason

TOP = 20
"""Log-probabilities asked for at each token; what servers give at most."""

Tokens = Sequence[tuple[str, Mapping[str, float]]]
"""The text of each token of an answer, and the probability of what else could have stood there, as far as told."""
Part = dict[str, Any]
"""A text or a picture within a question."""


class BadAnswer(Exception):
    """An answer that gives no verdict, and the reason that its clip gets."""

    def __init__(self, reason: ScoreReason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class JudgeClient:
    """Asks the server at `spec.url`. Raises UserError for an address that is not allowed, or a missing token."""

    def __init__(self, spec: JudgeReward) -> None:
        self._spec = spec
        self._address = f"{allowed_url(spec.url)}/chat/completions"
        token = token_of(spec.token_env)
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        """Connections for the block; what is yielded asks, `concurrency` questions at once."""
        gate = asyncio.Semaphore(self._spec.concurrency)
        async with httpx.AsyncClient(
            headers=self._headers, follow_redirects=False, trust_env=False, timeout=self._spec.call_s
        ) as http:
            yield Ask(self, http, gate)

    def pictures(self, clip: Clip) -> list[Part]:
        """Some frames of a clip as PNG in data URLs."""
        frames = sampled(clip, self._spec.fps, self._spec.max_looked_at)
        urls = [f"data:image/png;base64,{png(frame, self._spec.side)}" for frame in frames]
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]

    def body(self, content: Sequence[Part], max_tokens: int) -> bytes:
        """A request."""
        return json.dumps({
            "model": self._spec.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0, "top_p": 1, "seed": 0, "n": 1, "stream": False,
            "max_tokens": max_tokens, "logprobs": True, "top_logprobs": TOP,
        }).encode()  # fmt: skip

    async def post(self, http: httpx.AsyncClient, body: bytes) -> Mapping[str, Any]:
        """An answer. Raises BadAnswer."""
        for left in range(self._spec.retries, -1, -1):
            try:
                return await self._once(http, body)
            except httpx.TransportError as error:
                if not left:
                    raise BadAnswer("unreachable", f"{self._spec.url}: {error!r}") from error
                await asyncio.sleep(0.2)
        raise BadAnswer("unreachable", self._spec.url)

    async def _once(self, http: httpx.AsyncClient, body: bytes) -> Mapping[str, Any]:
        """One request. Raises BadAnswer, or httpx.TransportError for a broken connection."""
        headers = {"Content-Type": "application/json"}
        async with http.stream("POST", self._address, content=body, headers=headers) as response:
            if response.status_code in {429, 503}:
                raise BadAnswer("backpressure", f"the server answers {response.status_code}")
            if response.status_code != 200:
                raise BadAnswer("model_error", f"the server answers {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BadAnswer("model_error", "the answer is compressed, which was not asked for")
            text = b""
            async for chunk in response.aiter_raw():
                text += chunk
                if len(text) > self._spec.max_answer_bytes:
                    raise BadAnswer("model_error", f"the answer is longer than {self._spec.max_answer_bytes} bytes")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadAnswer("model_error", f"the answer is no JSON ({error})") from error
        if not isinstance(answer, dict) or answer.get("model") != self._spec.model:
            named = answer.get("model") if isinstance(answer, dict) else answer
            raise BadAnswer("model_error", f"the answer is of {named!r:.100}, not of {self._spec.model!r}")
        return answer


class Ask:
    """Asks within one block of connections."""

    def __init__(self, client: JudgeClient, http: httpx.AsyncClient, gate: asyncio.Semaphore) -> None:
        self._client, self._http, self._gate = client, http, gate

    async def __call__(self, body: Callable[[], bytes], call_s: float) -> Tokens:
        """The tokens of the answer to a request, which is put together when its turn comes.

        Raises:
            BadAnswer: there is none within `call_s` of its turn, or it is none.
        """
        async with self._gate:
            try:
                sent = await asyncio.to_thread(body)
                async with asyncio.timeout(call_s):
                    answer = await self._client.post(self._http, sent)
            except TimeoutError:
                raise BadAnswer("timeout", f"no answer within {call_s:g} s") from None
            return tokens_of(answer)


def tokens_of(answer: Mapping[str, Any]) -> Tokens:
    """Read an answer's tokens. Raises BadAnswer when it has none, or no log-probabilities."""
    try:
        entries = answer["choices"][0]["logprobs"]["content"]
        tokens = [(_text(entry["token"]), _probabilities(entry["top_logprobs"])) for entry in entries]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer("model_error", f"the answer has no log-probabilities ({error!r})") from error
    if not tokens:
        raise BadAnswer("model_error", "the answer is empty")
    return tokens


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{found!r} is no token")
    return found


def _probabilities(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Probability by text; texts that differ in spaces and case alone are one."""
    found: dict[str, float] = {}
    for entry in entries:
        logprob = entry["logprob"]
        if not isinstance(logprob, int | float) or math.isnan(logprob) or logprob > 1e-3:
            raise ValueError(f"{logprob!r} is no log-probability")
        text = _text(entry["token"]).strip().lower()
        found[text] = found.get(text, 0.0) + math.exp(logprob)
    return found


def sampled(clip: Clip, fps: float, most: int) -> NDArray[np.uint8]:
    """About `fps` frames for each second of a clip, from the first to the last, `most` at most [N, H, W, 3]."""
    total = len(clip.video_FHWC)
    count = max(1, min(round(total / clip.fps * fps), most, total))
    places = np.linspace(0, total - 1, count).round().astype(int) if count > 1 else [total // 2]
    return clip.video_FHWC[places]


def png(frame_HWC: NDArray[np.uint8], side: int) -> str:
    """A frame as PNG in base64, its longer side at most `side`."""
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    image.save(written, "PNG", compress_level=1)
    return base64.b64encode(written.getvalue()).decode()
