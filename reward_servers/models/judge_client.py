"""How a vision-language model behind an OpenAI-compatible server is asked, and what counts as its answer.

What goes wrong is never a number. `reward_servers/outside.py` says the reasons of what is no answer; one that is not
JSON or without log-probabilities is `bad_answer`, one of another model `wrong_version`. Greedy (temperature 0), so an
answer depends on the question alone, as far as the server's batching leaves its bits alone.
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

from accord.config.base import glimpse
from accord.config.rewards.judges import JudgeReward
from accord.types import Clip
from reward_servers.outside import NoAnswer, Outside

TOP = 20
"""Log-probabilities asked for at each token; what servers give at most."""

Tokens = Sequence[tuple[str, Mapping[str, float]]]
"""The text of each token of an answer, and the probability of what else could have stood there, as far as told."""
Part = dict[str, Any]
"""A text or a picture within a question."""


class JudgeClient:
    """Asks the server at `spec.url`. Raises UserError for an address that is not allowed, or a missing token."""

    def __init__(self, spec: JudgeReward) -> None:
        self._spec = spec
        self._server = Outside(
            spec.url, spec.token_env, call_s=spec.call_s, retries=spec.retries, max_answer_bytes=spec.max_answer_bytes
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        """Connections for the block; what is yielded asks, `concurrency` questions at once."""
        gate = asyncio.Semaphore(self._spec.concurrency)
        async with self._server.session() as http:
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
        """An answer. Raises NoAnswer."""
        text = await self._server.ask(http, "POST", "/chat/completions", body=body, content_type="application/json")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NoAnswer("bad_answer", f"the answer is no JSON ({error})") from error
        if not isinstance(answer, dict):
            raise NoAnswer("bad_answer", f"the answer is a {type(answer).__name__}, and no object")
        if answer.get("model") != self._spec.model:
            raise NoAnswer("wrong_version", f"it is of {glimpse(answer.get('model'))}, not of {self._spec.model!r}")
        return answer


class Ask:
    """Asks within one block of connections."""

    def __init__(self, client: JudgeClient, http: httpx.AsyncClient, gate: asyncio.Semaphore) -> None:
        self._client, self._http, self._gate = client, http, gate

    async def __call__(self, body: Callable[[], bytes]) -> Tokens:
        """The tokens of the answer to a request, which is put together when its turn comes.

        Raises:
            NoAnswer: there is none within `call_s` of its turn, or it is none.
        """
        async with self._gate:
            sent = await asyncio.to_thread(body)
            return tokens_of(await self._client.post(self._http, sent))


def tokens_of(answer: Mapping[str, Any]) -> Tokens:
    """Read an answer's tokens. Raises NoAnswer when it has none, or no log-probabilities."""
    try:
        entries = answer["choices"][0]["logprobs"]["content"]
        tokens = [(_text(entry["token"]), _probabilities(entry["top_logprobs"])) for entry in entries]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NoAnswer("bad_answer", f"the answer has no log-probabilities ({error!r:.200})") from error
    if not tokens:
        raise NoAnswer("bad_answer", "the answer is empty")
    return tokens


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{glimpse(found)} is no token")
    return found


def _probabilities(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Probability by text; texts that differ in spaces and case alone are one."""
    found: dict[str, float] = {}
    for entry in entries:
        logprob = entry["logprob"]
        if not isinstance(logprob, int | float) or math.isnan(logprob) or logprob > 1e-3:
            raise ValueError(f"{glimpse(logprob)} is no log-probability")
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
