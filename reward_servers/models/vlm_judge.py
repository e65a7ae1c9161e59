"""The verdict of a vision-language model behind an OpenAI-compatible server, such as vLLM's.

Measures, by `preset`, with frames of the clip and `prompt_v` in the question:

* `yes_probability` (as RewardDance, arXiv 2509.08826): p(yes) / (p(yes) + p(no)) of the first token. 0 to 1.
* `videoscore2` (arXiv 2509.22799): visual quality, text alignment, physical sense, each 1 to 5; the mean of the three.
* `unified_reward` (arXiv 2503.05236): alignment, physics, style, each 1 to 5; the mean of the three.

A rating is the expectation over the digits that could have stood there: sum i p_i / sum p_i over the server's top
log-probabilities at the digit's token, not the digit that was drawn; so it is continuous. Where the model wrote
decimals, it is the number as written.

Greedy (temperature 0), so an answer depends on the question alone, as far as the server's batching leaves its bits
alone. Limits: it sees a few frames and hears nothing; seconds for a clip. Known hacks: text in the picture that
speaks to the judge; what the model is fond of. Low weight, beside other rewards, or measured only.

What goes wrong is never a number: no answer in `call_s` is `timeout`, a broken connection `unreachable` (after at most
two more tries), 429 and 503 `backpressure`; any other status, a redirect, an answer too long, not JSON, of another
model, without the ratings or without log-probabilities is `model_error`, and the log says which.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import override

from accord.config.outside import allowed_url, token_of
from accord.config.reward_template import PLACE, read_template
from accord.config.rewards.judges import VLMJudgeReward
from accord.types import Clip, Prompt, ScoreReason
from reward_servers.base import RewardModel, Score

log = logging.getLogger(__name__)

TOP = 20
"""Log-probabilities asked for at each token; what servers give at most."""
_AXES: dict[str, dict[str, str]] = {
    "videoscore2": {"quality": "visual quality", "alignment": "alignment", "physics": "consistency"},
    "unified_reward": {"alignment": "alignment", "physics": "physics", "quality": "style"},
}
"""Per preset, the component and the word that stands before its rating."""
_QUESTIONS = {
    "videoscore2": "These are frames of a video that was made from this text: {text_prompt}\nRate its visual quality, "
    "its alignment with the text, and its physical and common-sense consistency. Think first, then write, each as a "
    "whole number from 1 to 5:\n(1) visual quality: \n(2) text-to-video alignment: \n(3) physical consistency: ",
    "unified_reward": "These are frames of a video that was made from this text: {text_prompt}\nRate how well it "
    "agrees with the text, how physical it is, and its style. Answer with whole numbers from 1 to 5 alone:\n"
    "Alignment Score: \nPhysics Score: \nStyle Score: ",
    "yes_probability": "These are frames of a video that was made from this text: {text_prompt}\nIs it a good video "
    "that shows what the text says? Answer with one word, Yes or No.",
}


class BadAnswer(Exception):
    """An answer that gives no verdict, and the reason that its clip gets."""

    def __init__(self, reason: ScoreReason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class VLMJudgeModel(RewardModel):
    """Asks the server at `spec.url`.

    Raises:
        UserError: at construction, when the address is not allowed, the token missing, or the question without a place
            for the prompt.
    """

    def __init__(self, spec: VLMJudgeReward) -> None:
        super().__init__(spec)
        self._spec = spec
        self._address = f"{allowed_url(spec.url)}/chat/completions"
        token = token_of(spec.token_env)
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._question = read_template(Path(spec.template), ()) if spec.template else _QUESTIONS[spec.preset]

    @override
    def score_batch(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Ask about all clips, `concurrency` at once."""
        return asyncio.run(self._ask_all(prompts, clips))

    async def _ask_all(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        gate = asyncio.Semaphore(self._spec.concurrency)
        async with httpx.AsyncClient(
            headers=self._headers, follow_redirects=False, trust_env=False, timeout=self._spec.call_s
        ) as http:

            async def one(prompt: Prompt, clip: Clip) -> Score:
                async with gate:
                    return await self._ask(http, prompt, clip)

            return list(await asyncio.gather(*map(one, prompts, clips)))

    async def _ask(self, http: httpx.AsyncClient, prompt: Prompt, clip: Clip) -> Score:
        try:
            body = await asyncio.to_thread(self._body, prompt, clip)
            async with asyncio.timeout(self._spec.call_s):
                answer = await self._post(http, body)
            return self._verdict(answer)
        except TimeoutError:
            why = BadAnswer("timeout", f"no answer within {self._spec.call_s:g} s")
        except BadAnswer as error:
            why = error
        log.warning("reward %s has no verdict on a clip of prompt %s: %s", self._spec.name, prompt.id, why)
        return Score.invalid(why.reason)

    def _body(self, prompt: Prompt, clip: Clip) -> bytes:
        """The request: question, then frames as PNG in data URLs."""
        yes = self._spec.preset == "yes_probability"
        text = self._question.replace(PLACE, prompt.prompt_v)
        frames = sampled(clip, self._spec.fps, self._spec.max_looked_at)
        urls = [f"data:image/png;base64,{png(frame, self._spec.side)}" for frame in frames]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return json.dumps({
            "model": self._spec.model,
            "messages": [{"role": "user", "content": [*images, {"type": "text", "text": text}]}],
            "temperature": 0, "top_p": 1, "seed": 0, "n": 1, "stream": False,
            "max_tokens": 1 if yes else self._spec.max_tokens, "logprobs": True, "top_logprobs": TOP,
        }).encode()  # fmt: skip

    async def _post(self, http: httpx.AsyncClient, body: bytes) -> Mapping[str, Any]:
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

    def _verdict(self, answer: Mapping[str, Any]) -> Score:
        tokens = tokens_of(answer)
        if self._spec.preset == "yes_probability":
            value, mass = yes_share(tokens)
            return Score(value, {"mass": mass})
        rated = {name: rating(tokens, word) for name, word in _AXES[self._spec.preset].items()}
        values = {name: value for name, (value, _) in rated.items()}
        return Score(sum(values.values()) / len(values), values | {"mass": min(mass for _, mass in rated.values())})


Tokens = Sequence[tuple[str, Mapping[str, float]]]
"""The text of each token of an answer, and the probability of what else could have stood there, as far as told."""


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


def yes_share(tokens: Tokens) -> tuple[float, float]:
    """p(yes) / (p(yes) + p(no)) at the first token, and the sum below. Raises BadAnswer when neither is likely."""
    told = tokens[0][1]
    yes, no = told.get("yes", 0.0), told.get("no", 0.0)
    if not yes + no > 0:
        raise BadAnswer("model_error", f"neither yes nor no is among the {len(told)} likeliest first tokens")
    return yes / (yes + no), min(1.0, yes + no)


def rating(tokens: Tokens, word: str) -> tuple[float, float]:
    """The rating that stands behind `word` and a colon, last in the answer, and the probability of all ratings there.

    Raises:
        BadAnswer: no such rating, or no log-probability of one where it stands.
    """
    text = "".join(part for part, _ in tokens)
    pattern = rf"{re.escape(word)}[^:\n]{{0,60}}:[\s*]{{0,8}}([1-5])(\.[0-9]{{1,3}})?(?![0-9])"
    found = list(re.finditer(pattern, text, flags=re.IGNORECASE))
    if not found:
        raise BadAnswer("model_error", f"the answer holds no rating of {word} from 1 to 5")
    if found[-1][2]:
        written = float(found[-1][1] + found[-1][2])
        if written > 5:
            raise BadAnswer("model_error", f"the rating of {word} is {written}, above 5")
        return written, 1.0
    end = 0
    for part, told in tokens:
        end += len(part)
        if end > found[-1].start(1):
            return expectation(told)
    raise BadAnswer("model_error", f"the rating of {word} is in no token")


def expectation(told: Mapping[str, float]) -> tuple[float, float]:
    """Sum i p_i / sum p_i over the ratings 1 to 5, and the sum below. Raises BadAnswer when none is likely."""
    shares = {score: told.get(str(score), 0.0) for score in range(1, 6)}
    mass = sum(shares.values())
    if not mass > 0:
        raise BadAnswer("model_error", "no rating has a log-probability where one stands")
    return sum(score * share for score, share in shares.items()) / mass, min(1.0, mass)


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
