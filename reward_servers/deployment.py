"""Rewards behind Ray Serve: the deployment class. Names, sizes and places are in placement.py."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from accord.config.contract import RewardSpec
from accord.errors import UserError
from accord.plugins import spec_class
from accord.types import Clip, Prompt, RewardIdentity, RewardScores
from reward_servers import owners
from reward_servers.base import RewardModel, build, score_groups
from reward_servers.results import ClipDigest, Results, score_once
from reward_servers.wire import BadBody, read_body

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 512 * 1024 * 1024


class RewardServer:
    """Holds the models of an application. Called by handle in the cluster, and over HTTP by people.

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
        """What a reward is."""
        spec = self._specs[reward]
        return {
            "name": spec.name, "about": spec.about, "version": spec.version,
            "weights_digest": self._models[reward].weights_digest, "needs": list(spec.needs),
            "route": spec.route, "range": _plain(spec.range), "floor": spec.floor,
            "prompt_anchored": spec.prompt_anchored, "spec": spec.model_dump(mode="json"),
            "remembered": {"scores": len(self._results[reward]), "found": self._results[reward].found},
        }  # fmt: skip

    async def __call__(self, request: Request) -> JSONResponse:
        """`GET /rewards/<application>` → card; `POST /rewards/<application>/score` → scores. Where several rewards
        are in it, `/<reward>` stands before that; without it, their cards by name."""
        parts = [part for part in request.scope["path"].split("/") if part]
        rest = parts[2:] if parts[:1] == ["rewards"] else parts  # with or without the application's route prefix
        name = rest.pop(0) if rest and rest[0] in self._specs else ""
        if not name and len(self._specs) == 1:
            name = next(iter(self._specs))
        if rest == ["score"] and name:
            return await self._post(name, request) if request.method == "POST" else _problem(405, "", "use POST")
        if rest:
            paths = "its /score" if name else ", ".join(f"/{reward}/score" for reward in self._specs)
            return _problem(404, "", f"no such path; there are the application's own and {paths}")
        if request.method != "GET":
            return _problem(405, "", "use GET")
        return JSONResponse(self.card(name) if name else {reward: self.card(reward) for reward in self._specs})

    async def _post(self, reward: str, request: Request) -> JSONResponse:
        """Score a safetensors body."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return _problem(413, "", f"body is larger than {MAX_BODY_BYTES} bytes; send fewer clips at a time")
        try:
            prompt, clips = await asyncio.to_thread(read_body, bytes(body), self._specs[reward].needs)
        except BadBody as error:
            return _problem(400, error.field, error.detail)
        scores = (await self.score(prompt, clips, (reward,)))[reward]
        return JSONResponse(
            {
                "reward": scores.reward, "version": scores.version, "values": _plain(scores.values),
                "valid": list(scores.valid), "reasons": list(scores.reasons), "seconds": scores.seconds,
                "components": {key: _plain(values) for key, values in scores.components.items()},
            }
        )  # fmt: skip


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


def _plain(values: Sequence[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [value if math.isfinite(value) else None for value in values]


def _problem(status: int, field: str, detail: str) -> JSONResponse:
    """RFC 9457 problem+json naming the field."""
    titles = {400: "Bad body", 404: "Not found", 405: "Method not allowed", 413: "Body too large"}
    problem = {"type": "about:blank", "title": titles[status], "status": status, "detail": detail}
    if field or status == 400:
        problem["field"] = field
    return JSONResponse(json.loads(json.dumps(problem)), status, media_type="application/problem+json")


DEPLOYMENT: Any = serve.deployment(RewardServer)
