"""Which of a prompt's clips a vision-language model prefers: pairs behind an OpenAI-compatible server, such as vLLM's.

Measures: for two clips of a prompt, the judge sees frames of one and of the other with `prompt_v` and says which is
better. p(first) is the probability of the first answer's token over that of both, at the first token. Each pair is
asked in both orders, and what standing first gains cancels: p(i beats j) = (p_ij(first) + 1 - p_ji(first)) / 2. The
value is the mean of it over a clip's opponents, 0 to 1, higher is better; over all pairs the mean of a group is 0.5. So
it ranks within a prompt and says nothing across prompts, which is all that group-relative credit reads (pairwise
preference as a reward: Pref-GRPO, arXiv 2508.20751; the pairwise mode of UnifiedReward, arXiv 2503.05236).

A group of N asks N (N - 1) questions, or N * `opponents`: then each clip meets as many others, its neighbours in an
order by content, so that neither chance nor the order of clips decides who meets whom.

Limits: it sees a few frames and hears nothing; preferences need not be transitive, and their mean hides it; with few
`opponents` luck of the draw counts. `position_bias` far from 0 says that the judge looks at places more than at clips.
Known hacks: text in the picture that speaks to the judge; what the model is fond of. Low weight, or measured only.

A pair with a bad answer in either order is missing (what is bad: see `judge_client.py`); so is one that is not judged
in `ranking_s`. A clip without any pair is invalid, for the reason of its first.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from typing_extensions import override

from accord.config.reward_template import PLACE, read_template
from accord.config.rewards.judges import VLMRankingReward
from accord.types import Clip, Prompt, ScoreReason
from reward_servers.base import RewardModel, Score
from reward_servers.models.judge_client import Ask, JudgeClient, Part, Tokens
from reward_servers.outside import NoAnswer

log = logging.getLogger(__name__)

_TIE = 1e-9
"""Chances that lie no farther from a half count as a tie."""
_QUESTION = (
    "Both videos were made from this text: {text_prompt}\nWhich of them is better: shows more of what the text says, "
    "looks better, moves more naturally? Answer with one word, "
)

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge says of two clips: of each, the chance that it is better when it stands first."""

    one: float
    other: float
    mass: float

    def chance(self, first: bool) -> float:
        """That a clip is better, the first of the pair or the second. No bit depends on which comes first."""
        own, others = (self.one, self.other) if first else (self.other, self.one)
        return (own + (1.0 - others)) / 2

    @property
    def bias(self) -> float:
        """What standing first gains."""
        return (self.one + self.other - 1.0) / 2


class VLMRankingModel(RewardModel):
    """Asks the server at `spec.url` about pairs.

    Raises:
        UserError: at construction, when the address is not allowed, the token missing, or the question without a place
            for the prompt.
    """

    def __init__(self, spec: VLMRankingReward) -> None:
        super().__init__(spec)
        self._spec = spec
        self._client = JudgeClient(spec)
        own = f"{_QUESTION}{spec.answers[0]} or {spec.answers[1]}."
        self._question = read_template(Path(spec.template), ()) if spec.template else own

    @override
    def score_set(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Scores of the clips of one prompt."""
        found = asyncio.run(self._judge(prompts[0], clips))
        return [self._score(place, found) for place in range(len(clips))]

    async def _judge(self, prompt: Prompt, clips: Sequence[Clip]) -> dict[Pair, Judged | ScoreReason]:
        """Every pair that is asked about, and the reason of those that are missing."""
        shown = [await asyncio.to_thread(self._client.pictures, clip) for clip in clips]
        pairs = meetings(clips, self._spec.opponents)
        async with self._client.open() as ask:
            tasks = {pair: asyncio.create_task(self._pair(ask, prompt, shown, pair)) for pair in pairs}
            _, late = await asyncio.wait(tasks.values(), timeout=self._spec.ranking_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if late:
            told = (self._spec.name, len(late), len(pairs), prompt.id, self._spec.ranking_s)
            log.warning("reward %s has no verdict on %d of %d pairs of prompt %s within %g s", *told)
        return {pair: "timeout" if task in late else task.result() for pair, task in tasks.items()}

    async def _pair(
        self, ask: Ask, prompt: Prompt, shown: Sequence[Sequence[Part]], pair: Pair
    ) -> Judged | ScoreReason:
        question = self._question.replace(PLACE, prompt.prompt_v)

        def body(order: Pair) -> bytes:
            first, second = order
            named = [_text(f"Video {answer}:") for answer in self._spec.answers]
            return self._client.body([named[0], *shown[first], named[1], *shown[second], _text(question)], 1)

        orders: tuple[Pair, Pair] = (pair, (pair[1], pair[0]))
        asked = [asyncio.create_task(ask(partial(body, order))) for order in orders]
        try:
            (there, mass), (back, other) = [first_share(await one, self._spec.answers) for one in asked]
        except NoAnswer as error:
            log.warning("reward %s has no verdict on a pair of prompt %s: %s", self._spec.name, prompt.id, error)
            return error.reason
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return Judged(there, back, min(mass, other))

    def _score(self, place: int, found: dict[Pair, Judged | ScoreReason]) -> Score:
        own = [(pair, said) for pair, said in found.items() if place in pair]
        judged = [(said.chance(pair[0] == place), said) for pair, said in own if isinstance(said, Judged)]
        if not judged:
            return Score.invalid(next(said for _, said in own if not isinstance(said, Judged)))
        wins = [0.5 if abs(chance - 0.5) <= _TIE else float(chance > 0.5) for chance, _ in judged]
        return Score(_mean([chance for chance, _ in judged]), {
            "wins": _mean(wins), "pairs": float(len(judged)), "mass": min(said.mass for _, said in judged),
            "position_bias": _mean([said.bias for _, said in judged]),
        })  # fmt: skip


def meetings(clips: Sequence[Clip], opponents: int) -> list[Pair]:
    """The pairs that are asked about, as places in `clips`; which they are does not depend on the order of clips."""
    count = len(clips)
    if not opponents or opponents >= count - 1:
        return list(combinations(range(count), 2))
    ring = sorted(range(count), key=lambda place: _content(clips[place]))
    steps = range(1, opponents // 2 + 1)
    return sorted(
        {
            (min(pair), max(pair))
            for at in range(count)
            for step in steps
            for pair in [(ring[at], ring[(at + step) % count])]
        }
    )


def first_share(tokens: Tokens, answers: tuple[str, str]) -> tuple[float, float]:
    """p(first) / (p(first) + p(second)) at the first token, and the sum below. Raises NoAnswer without either."""
    told = tokens[0][1]
    first, second = (told.get(answer.strip().lower(), 0.0) for answer in answers)
    if not first + second > 0:
        names = " nor ".join(answers)
        raise NoAnswer("bad_answer", f"neither {names} is among the {len(told)} likeliest first tokens")
    return first / (first + second), min(1.0, first + second)


def _content(clip: Clip) -> str:
    video = np.ascontiguousarray(clip.video_FHWC)
    return hashlib.sha256(f"{video.shape} {clip.fps}".encode() + video.tobytes()).hexdigest()


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _mean(values: Sequence[float]) -> float:
    """Exact, so that no bit depends on the order."""
    return math.fsum(values) / len(values)
