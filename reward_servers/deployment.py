"""One reward behind Ray Serve: the deployment class. Everything about sizes and names is in app.py."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from accord.plugins import spec_class
from accord.types import Clip, Prompt, RewardScores
from reward_servers import owners
from reward_servers.base import build, score_groups
from reward_servers.wire import BadBody, read_body

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 512 * 1024 * 1024


class RewardServer:
    """Holds one RewardModel. Called by handle in the cluster, and over HTTP by people.

    The constructor raises when the model cannot be built, and the deployment then fails instead of trying again and
    again. Calls wait for each other for up to `batch_wait_s` and reach the model as one batch. An application that
    nobody has used for its idle time takes itself down.
    """

    def __init__(self, name: str, spec_json: str) -> None:
        self._spec = spec_class("rewards", name).model_validate_json(spec_json)
        self._model = build(self._spec)

        @serve.batch(max_batch_size=self._spec.max_batch_groups, batch_wait_timeout_s=self._spec.batch_wait_s)
        async def together(prompts: list[Prompt], groups: list[Sequence[Clip]]) -> list[RewardScores]:
            # Off the event loop, so that health checks go on being answered.
            return await asyncio.to_thread(score_groups, self._model, prompts, groups)

        self._together: Any = together
        self._served_at = time.time()
        application = serve.get_replica_context().app_name
        threading.Thread(target=self._end_when_idle, args=(application,), name="idle", daemon=True).start()

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

    async def score(self, prompt: Prompt, clips: Sequence[Clip]) -> RewardScores:
        """Score one group. Object references given at the top level arrive here as their values."""
        self._served_at = time.time()
        scores: RewardScores = await self._together(prompt, clips)
        return scores

    def ready(self) -> None:
        """Answers where a replica runs and has room."""

    def spec_json(self) -> str:
        """The spec this server was started with."""
        text: str = self._spec.model_dump_json()
        return text

    def card(self) -> dict[str, Any]:
        """What this reward is."""
        spec = self._spec
        return {
            "name": spec.name, "about": spec.about, "version": spec.version,
            "weights_digest": self._model.weights_digest, "needs": list(spec.needs),
            "route": spec.route, "range": _plain(spec.range), "floor": spec.floor,
            "prompt_anchored": spec.prompt_anchored, "spec": spec.model_dump(mode="json"),
        }  # fmt: skip

    async def __call__(self, request: Request) -> JSONResponse:
        """`GET /rewards/<name>` → card; `POST /rewards/<name>/score` → scores."""
        parts = [part for part in request.scope["path"].split("/") if part]
        rest = parts[2:] if parts[:1] == ["rewards"] else parts  # with or without the application's route prefix
        if rest == ["score"]:
            return await self._post(request) if request.method == "POST" else _problem(405, "", "use POST")
        if rest:
            return _problem(404, "", f"no such path; there are /rewards/{self._spec.name} and its /score")
        return JSONResponse(self.card()) if request.method == "GET" else _problem(405, "", "use GET")

    async def _post(self, request: Request) -> JSONResponse:
        """Score a safetensors body."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return _problem(413, "", f"body is larger than {MAX_BODY_BYTES} bytes; send fewer clips at a time")
        try:
            prompt, clips = await asyncio.to_thread(read_body, bytes(body), self._spec.needs)
        except BadBody as error:
            return _problem(400, error.field, error.detail)
        scores = await self.score(prompt, clips)
        return JSONResponse(
            {
                "reward": scores.reward, "version": scores.version, "values": _plain(scores.values),
                "valid": list(scores.valid), "reasons": list(scores.reasons), "seconds": scores.seconds,
                "components": {key: _plain(values) for key, values in scores.components.items()},
            }
        )  # fmt: skip


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
