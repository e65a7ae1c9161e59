"""A reward whose numbers have bits to lose, the spec of one that asks a server for it, and a server that it runs on."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from accord.config.contract import Component, RewardSpec
from accord.config.rewards.remote import CardSpec, RemoteReward
from accord.types import Clip, Prompt, RewardScores, Route
from reward_servers import outside
from reward_servers.base import RewardModel, Score, build
from tests.unit.reward_servers.score_server import ScoreServer, running

PROMPT, OTHER = Prompt("p", "av", "a red ball", "a bell"), Prompt("q", "av", "a blue cube", "hum")
CALL_S = 0.8
"""For calls that are not to be answered in time; the others have all the time there is."""


class LoudReward(RewardSpec):
    """A number that every sample, pixel and letter decides."""

    impl: ClassVar[str] = f"{__name__}:Loud"
    about: ClassVar[str] = "whatever"
    version: ClassVar[str] = "7"
    prompt_anchored: ClassVar[bool] = True
    components: ClassVar[Mapping[str, Component]] = {"light": Component("mean of the pixels")}
    name: Literal["loud"] = "loud"
    route: Route = "both"


class NarrowReward(LoudReward):
    """With a range to leave."""

    range: ClassVar[tuple[float, float]] = (-1e5, 1e5)


class Loud(RewardModel):
    """Its values have bits to lose."""

    weights_digest = "ab" * 32
    script: ClassVar[list[float]] = []

    def score_clip(self, prompt, clip):
        if self.script:
            return Score(self.script.pop(0))
        light = float(clip.video_FHWC.mean()) / 3
        return Score(
            light + len(prompt.prompt_v) * float(np.square(clip.audio_CS, dtype=np.float64).mean()), {"light": light}
        )


def spec(server, card=None, **fields: Any) -> RemoteReward:
    told = server.fields(**(card or {}))
    return RemoteReward(**{"name": "remote:loud", "call_s": 20.0, **told, "card": CardSpec(**told["card"]), **fields})


def clip(seed: int = 0, frames: int = 4, rate: int = 8_000) -> Clip:
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (frames, 16, 24, 3), dtype=np.uint8)
    return Clip(video, 8.0, rng.uniform(-1, 1, (2, 4_000)).astype(np.float32), rate)


def bits(scores: RewardScores) -> list[bytes]:
    return [struct.pack("<d", value) for value in scores.values]


@contextmanager
def loud_server(reward: RewardSpec) -> Iterator[ScoreServer]:
    """A server that jobs may ask, and that is asked again without a pause."""
    with pytest.MonkeyPatch.context() as patch, running(build(reward)) as server:
        patch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
        patch.setattr(outside, "FIRST_PAUSE_S", 0.01)
        yield server
