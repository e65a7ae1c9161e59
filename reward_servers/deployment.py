"""Rewards behind Ray Serve: the deployment class. Names, sizes and places are in placement.py."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve

from accord.config.contract import RewardSpec
from accord.errors import UserError
from accord.plugins import spec_class
from accord.types import Clip, Prompt, RewardIdentity, RewardScores
from reward_servers import owners
from reward_servers.base import RewardModel, build, score_groups
from reward_servers.gateway import answer_of, card_of
from reward_servers.results import ClipDigest, Results, score_once

log = logging.getLogger(__name__)


class RewardServer:
    """Holds the models of an application. Called by handle alone; people come through door.py.

    The constructor raises when a model cannot be built, and the deployment then fails instead of trying again and
    again. Calls wait for each other for up to `batch_wait_s` and reach each model as one batch. An application that
    nobody has used for its idle time takes itself down.
    """

    def __init__(self, specs: Sequence[tuple[str, str]]) -> None:
        """`specs`: name and JSON of each reward."""
        self._specs = {name: spec_class("rewards", name).model_validate_json(text) for name, text in specs}
        self._results = {name: Results(spec.remember) for name, spec in self._specs.items()}
        self._models = {name: _built(spec, alone=len(specs) == 1) for name, spec in self._specs.items()}

        async def together(
            prompts: list[Prompt], groups: list[Sequence[Clip]], rewards: list[Sequence[str]]
        ) -> list[dict[str, RewardScores]]:
            # Off the event loop, so that health checks go on being answered.
            return await asyncio.to_thread(self._score, prompts, groups, rewards)

        batched: Any = serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)  # `reconfigure` comes before any call
        self._together = batched(together)
        self._served_at = time.time()
        application = serve.get_replica_context().app_name
        threading.Thread(target=self._end_when_idle, args=(application,), name="idle", daemon=True).start()

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take over `placement.Application.user_config`: at the start, and whenever it changes while this runs."""
        self._together.set_max_batch_size(config["max_batch_groups"])
        self._together.set_batch_wait_timeout_s(config["batch_wait_s"])
        live = config["rewards"]
        self._specs = {name: spec.model_copy(update=live[name]) for name, spec in self._specs.items()}

    def _end_when_idle(self, application: str) -> None:
        """Look now and then whether anybody uses the application, and retire it when nobody has for its idle time."""
        idle_s, told = owners.wish(application), self._served_at
        while True:
            time.sleep(min(15.0, max(0.5, idle_s / 4)))
            try:
                idle_s = owners.idle_time(application) or idle_s
                if self._served_at > told or owners.idle_time(application) is not None:
                    told = time.time()
                    owners.used(application)
                elif time.time() - max(told, owners.last_used(application)) > idle_s and retire(application):
                    return
            except Exception as error:  # a cluster that does not answer now is asked again
                log.warning("it could not be seen who uses reward %s: %s", application, error)

    async def score(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> dict[str, RewardScores]:
        """Score one group with some of the rewards that are here. Object references given at the top level arrive as
        their values."""
        self._served_at = time.time()
        scores: dict[str, RewardScores] = await self._together(prompt, clips, rewards)
        return scores

    async def score_step(self, reward: str, prompts: list[Prompt], *groups: Sequence[Clip]) -> list[RewardScores]:
        """Score all groups of a step together, with a reward whose scope is the step."""
        self._served_at = time.time()
        return await asyncio.to_thread(score_groups, self._models[reward], prompts, groups)

    def _score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Clip]], rewards: Sequence[Sequence[str]]
    ) -> list[dict[str, RewardScores]]:
        """Each model looks at the groups that ask for it, one model after the other; a clip has one digest for all."""
        found: list[dict[str, RewardScores]] = [{} for _ in groups]
        digests = [[ClipDigest(clip) for clip in group] for group in groups]
        for name, model in self._models.items():
            asking = [place for place, names in enumerate(rewards) if name in names]
            if asking:
                seen = [groups[place] for place in asking]
                known = [digests[place] for place in asking]
                scores = self._asked(model, [prompts[place] for place in asking], seen, known)
                for place, score in zip(asking, scores, strict=True):
                    found[place][name] = score
        return found

    def _asked(
        self,
        model: RewardModel,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Clip]],
        digests: Sequence[Sequence[ClipDigest]],
    ) -> list[RewardScores]:
        if not model.spec.remember:
            return score_groups(model, prompts, groups)
        return score_once(model, prompts, groups, digests, self._results[model.spec.name])

    def ready(self) -> None:
        """Answers where a replica runs and has room."""

    def specs_json(self) -> list[tuple[str, str]]:
        """Name and JSON of each reward here, with what was reconfigured."""
        return [(name, spec.model_dump_json()) for name, spec in self._specs.items()]

    async def identify(self, reward: str) -> RewardIdentity:
        """Who judges for a reward. Off the event loop: some have to ask."""
        return await asyncio.to_thread(self._models[reward].identity)

    def card(self, reward: str) -> dict[str, Any]:
        """What a reward is, and how many of its scores are kept."""
        kept = self._results[reward]
        own = {"remembered": {"scores": len(kept), "found": kept.found}}
        return card_of(self._specs[reward], self._models[reward].weights_digest) | own

    def cards(self) -> list[dict[str, Any]]:
        """Of all rewards that are here."""
        return [self.card(reward) for reward in self._specs]

    async def answer(self, reward: str, prompt: Prompt, clips: Sequence[Clip]) -> dict[str, Any]:
        """Score one group for somebody behind the door."""
        if self._specs[reward].scope == "step":
            (scores,) = await self.score_step(reward, [prompt], clips)
        else:
            scores = (await self.score(prompt, clips, (reward,)))[reward]
        return answer_of(scores, self._models[reward].weights_digest)


def _built(spec: RewardSpec, alone: bool) -> RewardModel:
    """The model of a spec. What a user can mend says which of several rewards it is about."""
    try:
        return build(spec)
    except UserError as error:
        if alone:
            raise
        raise UserError(f"{spec.name}: {error}") from error


def retire(application: str) -> bool:
    """Take an application down unless somebody uses it. Returns at once; whether it goes."""
    if not owners.mark_closing(application):
        return False
    log.warning("nobody uses reward %s any more; it ends", application)
    serve.delete(application, _blocking=False)
    return True


DEPLOYMENT: Any = serve.deployment(RewardServer)
