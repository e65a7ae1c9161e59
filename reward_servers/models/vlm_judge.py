"""The verdict of a vision-language model behind an OpenAI-compatible server, such as vLLM's.

Measures, by `preset`, with frames of the clip and `prompt_v` in the question:

* `yes_probability` (as RewardDance, arXiv 2509.08826): p(yes) / (p(yes) + p(no)) of the first token. 0 to 1.
* `videoscore2` (arXiv 2509.22799): visual quality, text alignment, physical sense, each 1 to 5; the mean of the three.
* `unified_reward` (arXiv 2503.05236): alignment, physics, style, each 1 to 5; the mean of the three.

A rating is the expectation over the digits that could have stood there: sum i p_i / sum p_i over the server's top
log-probabilities at the digit's token, not the digit that was drawn; so it is continuous. Where the model wrote
decimals, it is the number as written.

Limits: it sees a few frames and hears nothing; seconds for a clip. Known hacks: text in the picture that speaks to the
judge; what the model is fond of. Low weight, beside other rewards, or measured only.

What goes wrong is never a number: see `judge_client.py`; an answer without the ratings is `bad_answer`, and the log
says which.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from accord.config.reward_template import PLACE, read_template
from accord.config.rewards.judges import VLMJudgeReward
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.judge_client import Ask, JudgeClient, Tokens
from reward_servers.outside import NoAnswer

log = logging.getLogger(__name__)

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


class VLMJudgeModel(RewardModel):
    """Asks the server at `spec.url`.

    Raises:
        UserError: at construction, when the address is not allowed, the token missing, or the question without a place
            for the prompt.
    """

    def __init__(self, spec: VLMJudgeReward) -> None:
        super().__init__(spec)
        self._spec = spec
        self._client = JudgeClient(spec)
        self._question = read_template(Path(spec.template), ()) if spec.template else _QUESTIONS[spec.preset]

    @override
    def score_batch(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Ask about all clips, `concurrency` at once."""
        return asyncio.run(self._ask_all(prompts, clips))

    async def _ask_all(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        async with self._client.open() as ask:
            return list(await asyncio.gather(*(self._score(ask, *pair) for pair in zip(prompts, clips, strict=True))))

    async def _score(self, ask: Ask, prompt: Prompt, clip: Clip) -> Score:
        try:
            return self._verdict(await ask(lambda: self._body(prompt, clip)))
        except NoAnswer as error:
            log.warning("reward %s has no verdict on a clip of prompt %s: %s", self._spec.name, prompt.id, error)
            return Score.invalid(error.reason)

    def _body(self, prompt: Prompt, clip: Clip) -> bytes:
        """The request: frames, then the question."""
        yes = self._spec.preset == "yes_probability"
        question = {"type": "text", "text": self._question.replace(PLACE, prompt.prompt_v)}
        return self._client.body([*self._client.pictures(clip), question], 1 if yes else self._spec.max_tokens)

    def _verdict(self, tokens: Tokens) -> Score:
        if self._spec.preset == "yes_probability":
            value, mass = yes_share(tokens)
            return Score(value, {"mass": mass})
        rated = {name: rating(tokens, word) for name, word in _AXES[self._spec.preset].items()}
        values = {name: value for name, (value, _) in rated.items()}
        return Score(sum(values.values()) / len(values), values | {"mass": min(mass for _, mass in rated.values())})


def yes_share(tokens: Tokens) -> tuple[float, float]:
    """p(yes) / (p(yes) + p(no)) at the first token, and the sum below. Raises NoAnswer when neither is likely."""
    told = tokens[0][1]
    yes, no = told.get("yes", 0.0), told.get("no", 0.0)
    if not yes + no > 0:
        raise NoAnswer("bad_answer", f"neither yes nor no is among the {len(told)} likeliest first tokens")
    return yes / (yes + no), min(1.0, yes + no)


def rating(tokens: Tokens, word: str) -> tuple[float, float]:
    """The rating that stands behind `word` and a colon, last in the answer, and the probability of all ratings there.

    Raises:
        NoAnswer: no such rating, or no log-probability of one where it stands.
    """
    text = "".join(part for part, _ in tokens)
    pattern = rf"{re.escape(word)}[^:\n]{{0,60}}:[\s*]{{0,8}}([1-5])(\.[0-9]{{1,3}})?(?![0-9])"
    found = list(re.finditer(pattern, text, flags=re.IGNORECASE))
    if not found:
        raise NoAnswer("bad_answer", f"the answer holds no rating of {word} from 1 to 5")
    if found[-1][2]:
        written = float(found[-1][1] + found[-1][2])
        if written > 5:
            raise NoAnswer("bad_answer", f"the rating of {word} is {written}, above 5")
        return written, 1.0
    end = 0
    for part, told in tokens:
        end += len(part)
        if end > found[-1].start(1):
            return expectation(told)
    raise NoAnswer("bad_answer", f"the rating of {word} is in no token")


def expectation(told: Mapping[str, float]) -> tuple[float, float]:
    """Sum i p_i / sum p_i over the ratings 1 to 5, and the sum below. Raises NoAnswer when none is likely."""
    shares = {score: told.get(str(score), 0.0) for score in range(1, 6)}
    mass = sum(shares.values())
    if not mass > 0:
        raise NoAnswer("bad_answer", "no rating has a log-probability where one stands")
    return sum(score * share for score, share in shares.items()) / mass, min(1.0, mass)
