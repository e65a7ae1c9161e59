"""Which rewards share an application, where its replicas run, and how many of them there are.

An application is called like its reward, or like its reward with a short digest when what decides its scores, or where
they are made, differs from the defaults (another CLAP checkpoint, another environment), so jobs that want different
models never replace each other's. Fields that only concern a job (weight, route, required, deadline) do not make a
different server. Rewards of a job with the same `pack` share one, `pack-<name>-<digest of who is in it>`, and one call
scores a group with all of them. A pack of one is no pack.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from accord.config.contract import RewardSpec

BATCHES_HELD = 4
"""Batches that a replica takes in: one being scored, the others waiting."""
SERVERS = "RewardServer"
"""The deployment in each application."""
PACKED = "pack"
"""The first part of the name of an application that holds several rewards."""
_PLACES = ("num_gpus", "accelerator_type", "node_labels", "env")
"""Fields of every reward that decide where its scores are made."""

LIVE = frozenset({
    "min_replicas", "max_replicas", "target_ongoing", "upscale_delay_s", "downscale_delay_s", "look_back_s",
    "max_batch_groups", "batch_wait_s", "max_queued",
})  # fmt: skip
"""Fields that a running server takes over without a restart; none of them changes a score."""


@dataclass(frozen=True)
class Application:
    """One Serve application: the rewards in it, and what they ask for together."""

    name: str
    specs: tuple[RewardSpec, ...]

    @cached_property
    def max_batch_groups(self) -> int:
        """Groups that one call of its models may batch: what the narrowest allows."""
        return min(spec.max_batch_groups for spec in self.specs)

    @property
    def env(self) -> str:
        """The environment that they share."""
        return self.specs[0].env

    @property
    def batch_wait_s(self) -> float:
        """How long a batch waits for its next group."""
        return min(spec.batch_wait_s for spec in self.specs)

    @property
    def queue_bound(self) -> int:
        """Groups that one job has under way at it at most."""
        return min(spec.queue_bound for spec in self.specs)

    @property
    def place(self) -> str:
        """Where it is to run and what a replica takes, for people."""
        options = self.actor_options(None)
        labels = [f"{key}={value}" for key, value in options.get("label_selector", {}).items()]
        accelerator = [options["accelerator_type"]] if "accelerator_type" in options else []
        return ", ".join([f"{options['num_cpus']:g} CPU", f"{options['num_gpus']:g} GPU", *accelerator, *labels])

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most replicas: as many as the widest of its rewards wants."""
        low = max(spec.min_replicas for spec in self.specs)
        return low, max(low, *(spec.max_replicas for spec in self.specs))

    @property
    def user_config(self) -> dict[str, Any]:
        """What a running replica takes over without a restart: the fields in LIVE of each reward, and its batches."""
        return {
            "rewards": {spec.name: spec.model_dump(mode="json", include=set(LIVE)) for spec in self.specs},
            "max_batch_groups": self.max_batch_groups,
            "batch_wait_s": self.batch_wait_s,
        }

    def autoscaling(self, low: int, high: int) -> dict[str, Any]:
        """Serve's autoscaling between these numbers of replicas. The most patient of its rewards decides."""
        first = self.specs[0]
        return {
            "min_replicas": low,
            "max_replicas": max(low, high, 1),
            "initial_replicas": low,
            "target_ongoing_requests": first.target_ongoing or 2 * self.max_batch_groups,
            "upscale_delay_s": first.upscale_delay_s,
            "downscale_delay_s": max(spec.downscale_delay_s for spec in self.specs),
            "look_back_period_s": first.look_back_s,
            "metrics_interval_s": min(2.0, first.look_back_s / 4),
        }

    def actor_options(self, env: dict[str, Any] | None) -> dict[str, Any]:
        """What Ray is asked for each replica: the widest CPU share, all GPU shares together, the place, `env`."""
        first, gpus = self.specs[0], sum(spec.num_gpus for spec in self.specs)
        options: dict[str, Any] = {
            "num_cpus": max(spec.num_cpus for spec in self.specs),
            "num_gpus": gpus if gpus <= 1 else math.ceil(gpus),
        }
        if first.accelerator_type:
            options["accelerator_type"] = first.accelerator_type
        if first.node_labels:
            options["label_selector"] = dict(first.node_labels)
        if env:
            options["runtime_env"] = env
        return options


def app_name(spec: RewardSpec) -> str:
    """The application that serves a spec by itself."""
    fields = type(spec).model_fields
    own = {*fields.keys() - RewardSpec.model_fields.keys(), *_PLACES}
    if spec.labelled:
        own.add("name")
    options = {field: value for field, value in sorted(spec) if field in own}
    differing = {field: value for field, value in options.items() if value != fields[field].default}
    return f"{spec.name.replace(':', '-')}-{_digest(options)}" if differing else spec.name


def applications(specs: Sequence[RewardSpec]) -> list[Application]:
    """The applications that serve a job's rewards, in the order of their first ones."""
    together: dict[tuple[str, ...], list[RewardSpec]] = {}
    for spec in specs:
        key = (spec.pack, spec.accelerator_type, json.dumps(spec.node_labels, sort_keys=True), spec.env)
        together.setdefault(key if spec.pack else ("", app_name(spec)), []).append(spec)
    found = []
    for members in together.values():
        name = app_name(members[0])
        if len(members) > 1:
            name = f"{PACKED}-{members[0].pack}-{_digest(sorted(map(app_name, members)))}"
        found.append(Application(name, tuple(members)))
    return found


def by_reward(specs: Sequence[RewardSpec]) -> dict[str, Application]:
    """The application of each reward, by the reward's name."""
    return {spec.name: application for application in applications(specs) for spec in application.specs}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
