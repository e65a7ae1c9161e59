"""The verdict of somebody else's server, as `card` of the spec describes it: Accord's own gateway, or whoever speaks
its wire (`reward_servers/wire.py`).

Measures whatever that server measures. Higher is better; range, floor and whether the prompt counts are those of the
card, and the server's own card has to say the same when the model is built and at the job's roster. Limits: as fast as
the network; what leaves the cluster are prompts and clips. Known hacks: those of the reward behind it.

A call holds the clips of one prompt, of one shape and rate; all of them where the reward compares clips. Its answer is
taken whole or not at all: one that is not JSON of the agreed form, of another length or reward, with a value that is no
number, or with a value where it says there is none is `bad_answer`; one of another version or other weights is
`wrong_version`. Why there is no answer at all says `reward_servers/outside.py`. A value outside of the range is
`out_of_range`, for its clip alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any, get_args
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import override

from accord.config.base import glimpse
from accord.config.rewards.remote import RemoteReward
from accord.errors import RewardError, UserError
from accord.types import Clip, Prompt, RewardIdentity, ScoreReason
from reward_servers.base import RewardModel, Score
from reward_servers.declared import forbids_commerce
from reward_servers.outside import NoAnswer, Outside, now
from reward_servers.wire import MAX_CLIPS, write_body

log = logging.getLogger(__name__)

REASONS: dict[str, ScoreReason] = {reason: reason for reason in get_args(ScoreReason)}
MEASURED = frozenset({"ok", "silent_audio", "no_events"})
"""Reasons that go with a value."""
_Part = tuple[Prompt, float, int]
"""What all clips of a call share."""


class _Told(BaseModel):
    """What servers tell: fields that nobody here knows are passed over, everything else is as it should be or wrong."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class Card(_Told):
    """`GET /rewards/NAME`, as far as it matters."""

    name: str
    version: str
    weights_digest: str = ""
    needs: list[str]
    scope: str = "clip"
    range: tuple[float | None, float | None]
    floor: float = 0.0
    prompt_anchored: bool
    licence: str = ""


class Answer(_Told):
    """`POST /score`."""

    reward: str
    version: str
    weights_digest: str
    values: list[float | None]
    valid: list[bool]
    reasons: list[str]
    components: dict[str, list[float | None]] = {}


class RemoteModel(RewardModel):
    """Asks the server at `spec.url`.

    Raises:
        UserError: at construction, when the address is not allowed, the token missing or refused, there is no such
            reward, or the server's card says another thing than the spec's.
        RewardError: at construction, when the server gives no card.
    """

    def __init__(self, spec: RemoteReward) -> None:
        super().__init__(spec)
        self._spec = spec
        self._server = Outside(
            spec.url, spec.token_env, call_s=spec.call_s, retries=spec.retries,
            max_answer_bytes=spec.max_answer_bytes, ca_file=spec.ca_file,
        )  # fmt: skip
        self.weights_digest = spec.card.weights_digest
        self.identity()

    @override
    def identity(self) -> RewardIdentity:
        card = now(self._card())
        found = list(_differences(self._spec, card))
        if found:
            raise UserError(
                f"the server of reward {self._spec.name!r} at {self._spec.url} says {'; '.join(found)}; take over what "
                "it says where that is what you want, or ask another"
            )
        return RewardIdentity(card.version, card.weights_digest)

    async def _card(self) -> Card:
        where = f"the server of reward {self._spec.name!r} at {self._spec.url}"
        try:
            async with self._server.session() as http:
                return Card.model_validate_json(
                    await self._server.ask(http, "GET", f"/rewards/{quote(self._spec.reward, safe='')}")
                )
        except ValidationError as error:
            raise RewardError(f"{where} gives a card that cannot be read: {_first(error)}") from error
        except NoAnswer as error:
            if error.reason == "refused":
                raise UserError(f"{where} refuses {self._spec.reward!r} ({error}); see reward and token_env") from error
            raise RewardError(f"{where} gives no card ({error.reason}): {error}") from error

    @override
    def score_batch(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Ask about all clips, the calls `concurrency` at once."""
        return asyncio.run(self._ask_all(prompts, clips))

    @override
    def score_set(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Ask about all clips of a prompt, which one call has to hold. Raises ValueError where none can."""
        if len(list(self._calls(prompts, clips))) > 1:
            raise ValueError("clips that are compared must be of one rate, to go in one call")
        return self.score_batch(prompts, clips)

    async def _ask_all(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        gate = asyncio.Semaphore(self._spec.concurrency)
        found: list[Score] = [Score.invalid("unreachable")] * len(clips)
        async with self._server.session() as http:

            async def one(prompt: Prompt, places: Sequence[int]) -> None:
                async with gate:
                    scores = await self._ask(http, prompt, [clips[place] for place in places])
                for place, score in zip(places, scores, strict=True):
                    found[place] = score

            await asyncio.gather(*(one(prompt, places) for prompt, places in self._calls(prompts, clips)))
        return found

    def _calls(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Iterator[tuple[Prompt, list[int]]]:
        """Which clips share a call. They are of one shape already."""
        together: dict[_Part, list[int]] = {}
        for place, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
            fps = clip.fps if "video" in self._spec.needs else 0.0
            sample_rate = clip.sample_rate if "audio" in self._spec.needs else 0
            together.setdefault((prompt, fps, sample_rate), []).append(place)
        for (prompt, _, _), places in together.items():
            for start in range(0, len(places), MAX_CLIPS):
                yield prompt, places[start : start + MAX_CLIPS]

    async def _ask(self, http: httpx.AsyncClient, prompt: Prompt, clips: Sequence[Clip]) -> list[Score]:
        try:
            body = await asyncio.to_thread(write_body, prompt, clips, self._spec.needs)
            told = await self._server.ask(
                http, "POST", "/score", body=body, content_type="application/octet-stream",
                params={"reward": self._spec.reward, "deadline_s": f"{self._spec.call_s:g}"},
            )  # fmt: skip
            return self._scores(told, len(clips))
        except NoAnswer as why:
            log.warning("reward %s has no scores for prompt %s: %s: %s", self._spec.name, prompt.id, why.reason, why)
            return [Score.invalid(why.reason)] * len(clips)

    def _scores(self, told: bytes, count: int) -> list[Score]:
        """One score for each clip. Raises NoAnswer for an answer that is not wholly as agreed."""
        try:
            answer = Answer.model_validate_json(told)
        except ValidationError as error:
            raise NoAnswer("bad_answer", f"the answer cannot be read: {_first(error)}") from error
        if answer.reward != self._spec.reward:
            raise NoAnswer("bad_answer", f"the answer is of {glimpse(answer.reward)}, not of {self._spec.reward!r}")
        card = self._spec.card
        if (answer.version, answer.weights_digest) != (card.version, card.weights_digest):
            said = f"version {answer.version[:100]!r}, weights {answer.weights_digest[:64]!r}"
            raise NoAnswer(
                "wrong_version", f"the answer is of {said}; agreed were {card.version!r}, {card.weights_digest!r}"
            )
        lists: dict[str, list[Any]] = {
            "values": answer.values,
            "valid": answer.valid,
            "reasons": answer.reasons,
            **answer.components,
        }
        for name, found in lists.items():
            if len(found) != count:
                raise NoAnswer("bad_answer", f"{len(found)} {name[:60]} for {count} clips")
        return [self._score(answer, place) for place in range(count)]

    def _score(self, answer: Answer, place: int) -> Score:
        value, valid, reason = answer.values[place], answer.valid[place], answer.reasons[place]
        if valid != (value is not None) or valid != (reason in MEASURED):
            raise NoAnswer(
                "bad_answer", f"value {value!r}, valid {valid!r} and reason {reason[:60]!r} do not fit together"
            )
        if value is None:
            return Score.invalid(REASONS.get(reason, "model_error"))
        parts = {name: answer.components[name][place] for name in self._spec.components if name in answer.components}
        kept = {name: part for name, part in parts.items() if part is not None}
        return Score(value, kept, True, REASONS[reason])


def _differences(spec: RemoteReward, card: Card) -> Iterator[str]:
    """What a server's card says otherwise than the job's."""
    agreed = spec.card
    pairs: dict[str, tuple[Any, Any]] = {
        "scope": (card.scope, agreed.scope),
        "version": (card.version, agreed.version),
        "weights_digest": (card.weights_digest, agreed.weights_digest),
        "needs": (sorted(card.needs), sorted(agreed.needs)),
        "low and high": (list(card.range), [agreed.low, agreed.high]),
        "floor": (card.floor, agreed.floor),
        "prompt_anchored": (card.prompt_anchored, agreed.prompt_anchored),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            yield f"{name} {theirs!r:.80}, and the job's card {ours!r:.80}"
    if forbids_commerce(card.licence) and not spec.allow_noncommercial:
        yield f"licence {glimpse(card.licence)}, and the job has no allow_noncommercial"


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    found = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, found['loc']))[:100] or 'all of it'}: {found['msg'][:200]}"
