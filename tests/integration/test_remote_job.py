"""A run in one process whose rewards are behind URLs: what it trains is what it trains with the same ones at home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.events import Event, Warned
from accord.plugins import spec_class
from accord.run_folder import ADAPTER, ROSTER, RunFolder
from reward_servers.base import build
from services.runner.local import run_here
from tests.unit.reward_servers.score_server import ScoreServer, running

HERE = Path(__file__).parent
PROMPTS = HERE.parents[1] / "examples" / "prompts" / "world_train.jsonl"
NAMES = ("text_video", "sound")
PER_STEP, SIZE = 2, 3

pytestmark = pytest.mark.slow


class Kept:
    """Events as they came."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)


@pytest.fixture
def servers(monkeypatch) -> Iterator[dict[str, ScoreServer]]:
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
    with ExitStack() as stack:
        yield {name: stack.enter_context(running(build(spec_class("rewards", name)()))) for name in NAMES}


def trained(folder: Path, rewards: list[dict[str, Any]], steps: int = 2) -> tuple[RunFolder, list[Event]]:
    tree = {
        "steps": steps, "backbone": {"name": "ltx2"}, "rewards": rewards, "algorithm": {"name": "omninft"},
        "sampling": {"frames": 9, "height": 32, "width": 32, "fps": 12.0, "num_steps": 2, "guidance": 1.0},
        "prompts": {
            "train": str(PROMPTS), "held_out": str(HERE / "held_out_two.jsonl"), "per_step": PER_STEP,
            "group_size": SIZE,
        },
        "cluster": {"learner_ranks": 1, "engine": "torch"}, "evaluate": {"samples_per_prompt": 2, "clips": 0},
        "optimizer": {"micro_batch": 3}, "guards": {"allow_prompt_blind": True}, "checkpoint": {"every": 1},
    }  # fmt: skip
    kept, made = Kept(), RunFolder(folder)
    run_here(Settings(), JobSpec.parse(json.dumps(tree)), made, kept)
    return made, kept.events


def far(server: ScoreServer, **fields: Any) -> dict[str, Any]:
    return {"name": f"remote:{server.model.spec.name}_far", "call_s": 60.0, **server.fields(), **fields}


def test_behind_urls_a_run_makes_the_same_adapter(tmp_path, servers):
    near, _ = trained(tmp_path / "near", [{"name": name} for name in NAMES])
    there, events = trained(tmp_path / "far", [far(server) for server in servers.values()])
    assert there.read(ADAPTER) == near.read(ADAPTER)
    assert [event for event in events if isinstance(event, Warned)] == []
    assert json.loads(there.read(ROSTER)).keys() == {"remote:text_video_far", "remote:sound_far"}


def test_a_server_that_becomes_another_one_is_left_out_from_then_on(tmp_path, servers):
    """Its card was right when the run began."""
    torn, groups = servers["sound"], []

    def lies(handler, tree):
        groups.extend([handler.prompt] if len(tree["values"]) == SIZE else [])
        handler.give({**tree, "version": "other"} if len(groups) > PER_STEP else tree)

    torn.answer = lies
    made, events = trained(tmp_path / "torn", [far(servers["text_video"]), far(torn, required=False)])
    told = [event.message for event in events if isinstance(event, Warned)]
    (_, last) = made.steps()
    assert last.metrics["reward/remote:sound_far/invalid/wrong_version"] == float(PER_STEP * SIZE)
    assert last.metrics["reward/remote:sound_far/dropped"] == 1.0
    assert told == ["step 2 is trained without reward 'remote:sound_far': 6 × wrong_version"]
