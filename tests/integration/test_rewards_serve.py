"""Reward servers on a real Ray Serve: by handle and over HTTP, scaled under traffic, and with a replica killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from ray._private import state as ray_state
from ray.serve.context import _get_global_client

from accord.config.rewards.panel import SoundReward, SyncReward
from accord.config.rewards.sound import ClapReward
from accord.errors import DeadlineExceeded, RewardError, SpecError
from accord.types import Clip, Prompt
from accord.world.scene import IMPERFECT, make_clips
from reward_servers import app
from reward_servers.placement import app_name
from reward_servers.scorer import LocalScorer
from reward_servers.serve_handles import ServeScorer
from reward_servers.wire import write_body

SPECS = [spec(num_cpus=0.1, remember=0) for spec in (SyncReward, SoundReward, ClapReward)]
GROUPS = 3


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def cluster(port):
    ray.init(
        num_cpus=2, labels={"pool": "rewards"}, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    try:
        names = app.deploy(SPECS, http_port=port)
        assert names == ["sync", "sound", "clap"]
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def groups() -> list[tuple[Prompt, list[Clip]]]:
    made = []
    for index in range(GROUPS):
        clips = list(make_clips(4, 20 + index, IMPERFECT))
        asked = clips[0].prompt
        prompt = Prompt(asked.id, asked.prompt_av, asked.prompt_v, asked.prompt_a)
        made.append((prompt, [clip.clip for clip in clips]))
    return made


@pytest.fixture(scope="module")
def expected(groups):
    """What the models say in this process."""

    async def all_of_them():
        scorer = LocalScorer(SPECS)
        return {
            (spec.name, index): (await scorer.score(spec.name, prompt, clips, len(clips))).values
            for spec in SPECS
            for index, (prompt, clips) in enumerate(groups)
        }

    return asyncio.run(all_of_them())


def replicas(name: str) -> dict[str, int]:
    """Replica ids and process ids of a reward that run now."""
    client = _get_global_client()
    deployment = client.get_serve_details()["applications"][name]["deployments"]["RewardServer"]
    return {entry["replica_id"]: entry["pid"] for entry in deployment["replicas"] if entry["state"] == "RUNNING"}


def pids_of(*classes: str) -> list[int]:
    """Process ids of Serve's own actors."""
    alive = [actor for actor in ray_state.actors().values() if actor["State"] == "ALIVE"]
    found = [actor for actor in alive if actor["ActorClassName"] in classes]
    assert {actor["ActorClassName"] for actor in found} == set(classes)
    return [actor["Pid"] for actor in found]


def one(name: str) -> app.RewardStatus:
    return next(status for status in app.status() if status.name == name)


def test_scores_by_handle_have_the_bits_of_this_process(groups, expected):
    async def ask():
        scorer = ServeScorer(SPECS)
        calls = {
            (spec.name, index): scorer.score(spec.name, prompt, ray.put(clips), len(clips))
            for spec in SPECS
            for index, (prompt, clips) in enumerate(groups)
        }
        return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))

    found = asyncio.run(ask())
    for key, scores in found.items():
        assert all(scores.valid), (key, scores.reasons)
        assert scores.values == expected[key], key


def test_a_roster_by_handle_is_that_of_this_process():
    assert asyncio.run(ServeScorer(SPECS).roster()) == asyncio.run(LocalScorer(SPECS).roster())


def test_people_are_served_over_http(port, groups, expected):
    prompt, clips = groups[0]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        card = http.get("/rewards/sync").json()
        assert card["name"] == "sync" and card["route"] == "both" and card["range"] == list(SyncReward.range)
        answer = http.post("/rewards/sync/score", content=write_body(prompt, clips))
        assert answer.status_code == 200
        assert tuple(answer.json()["values"]) == expected["sync", 0]
        bad = http.post("/rewards/sync/score", content=write_body(prompt, clips)[:-5])
        assert bad.status_code == 400 and bad.headers["content-type"].startswith("application/problem+json")
        assert "safetensors" in bad.json()["detail"]
        assert http.get("/rewards/sync/score").status_code == 405
        assert http.get("/rewards/sync/else").status_code == 404


def test_deploying_again_and_scaling_leave_running_replicas_alone(groups, expected):
    """Sync goes to two replicas and back under traffic: no score fails, and nobody else is restarted."""
    before = {spec.name: replicas(spec.name) for spec in SPECS}

    async def traffic(stop: asyncio.Event):
        scorer, found = ServeScorer(SPECS), []
        while not stop.is_set():
            for index, (prompt, clips) in enumerate(groups):
                found.append((index, await scorer.score("sync", prompt, clips, len(clips))))
        return found

    async def scale_under_traffic():
        stop = asyncio.Event()
        streams = [asyncio.create_task(traffic(stop)) for _ in range(2)]
        await asyncio.sleep(0.5)
        try:
            await asyncio.to_thread(app.deploy, SPECS)
            began = time.monotonic()
            await asyncio.to_thread(app.scale, "sync", 2)
            print(f"sync has 2 replicas after {time.monotonic() - began:.1f} s")
            two = one("sync")
            seen = replicas("sync")
            await asyncio.sleep(1.0)
            began = time.monotonic()
            await asyncio.to_thread(app.scale, "sync", 1)
            print(f"sync has 1 replica after {time.monotonic() - began:.1f} s")
            await asyncio.sleep(0.5)
        finally:
            stop.set()
        return two, seen, [score for stream in streams for score in await stream]

    two, seen, found = asyncio.run(scale_under_traffic())
    assert (two.replicas_ready, two.replicas_target) == (2, 2)
    assert before["sync"].items() <= seen.items()
    assert len(found) > 10
    assert all(scores.values == expected["sync", index] for index, scores in found)
    assert one("sync").replicas_ready == 1
    for name in ("sound", "clap"):
        assert replicas(name) == before[name]


def test_a_killed_replica_comes_back_and_the_scores_are_the_same(groups, expected):
    victim = replicas("sound")
    others = {name: replicas(name) for name in ("sync", "clap")}

    async def ask():
        scorer = ServeScorer(SPECS)
        prompt, clips = groups[0]
        await scorer.score("sound", prompt, clips, len(clips))
        calls = [
            asyncio.create_task(scorer.score("sound", prompt, clips, len(clips)))
            for prompt, clips in groups
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        for pid in victim.values():
            os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*calls, scorer.score("sound", prompt, clips, len(clips)))

    found = asyncio.run(ask())
    wanted = [expected["sound", index] for index in range(GROUPS) for _ in range(3)]
    assert [scores.values for scores in found] == [*wanted, expected["sound", 0]]
    deadline = time.monotonic() + 60
    while not (alive := replicas("sound")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive and not set(alive) & set(victim)
    assert {name: replicas(name) for name in others} == others


def test_serve_itself_killed_costs_no_score(groups, expected):
    """The proxy and the controller die under traffic, and right after it the replica that it would replace."""

    async def traffic(stop: asyncio.Event):
        scorer, found = ServeScorer(SPECS), []
        while not stop.is_set():
            for index, (prompt, clips) in enumerate(groups):
                found.append((index, await scorer.score("sync", prompt, clips, len(clips))))
        return found

    async def kill_under_traffic():
        stop = asyncio.Event()
        stream = asyncio.create_task(traffic(stop))
        await asyncio.sleep(0.3)
        for pid in pids_of("ProxyActor", "ServeController"):
            os.kill(pid, signal.SIGKILL)
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while not (alive := await asyncio.to_thread(replicas, "sync")) or set(alive) & set(victims):
            assert time.monotonic() - began < 60
            await asyncio.sleep(0.2)
        stop.set()
        return await stream

    victims = replicas("sync")
    found = asyncio.run(kill_under_traffic())
    assert len(found) > 3
    assert all(scores.values == expected["sync", index] for index, scores in found)


def test_options_change_without_a_restart(groups, expected):
    before = {spec.name: replicas(spec.name) for spec in SPECS}
    assert app.change("sync", {"max_batch_groups": 2, "max_replicas": 3}) == ["sync"]
    texts = serve.get_app_handle("sync").specs_json.remote().result()
    assert [(name, json.loads(text)["max_batch_groups"]) for name, text in texts] == [("sync", 2)]
    with pytest.raises(SpecError, match=r"cannot change while it runs; these can: .*max_queued"):
        app.change("sync", {"weight": 2.0})
    with pytest.raises(SpecError, match="max_replicas"):
        app.change("sync", {"max_replicas": 0})
    prompt, clips = groups[0]
    scores = asyncio.run(ServeScorer(SPECS).score("sync", prompt, clips, len(clips)))
    assert scores.values == expected["sync", 0]
    assert {spec.name: replicas(spec.name) for spec in SPECS} == before


def test_a_pack_has_its_place_its_environment_and_the_same_scores(tmp_path, groups, expected):
    """Two rewards in one process, started by the first call, on the node with the label, in the named environment."""
    (tmp_path / "odd.json").write_text(json.dumps({"env_vars": {"ACCORD_ODD": "1"}}))
    place = {"pack": "both", "min_replicas": 0, "env": "odd", "node_labels": {"pool": "rewards"}}
    pair = [SyncReward(**place), SoundReward(**place)]
    (name,) = set(app.deploy(pair, idle_s=0.5, envs=tmp_path))
    assert one(name).rewards == ("sync", "sound") and one(name).replicas_target == 0
    prompt, clips = groups[0]

    async def both():
        scorer, shared = ServeScorer(pair), ray.put(clips)
        return await asyncio.gather(*(scorer.score(spec.name, prompt, shared, len(clips)) for spec in pair))

    assert [scores.values for scores in asyncio.run(both())] == [expected[spec.name, 0] for spec in pair]
    (pid,) = replicas(name).values()
    assert b"ACCORD_ODD=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert app.scale(name, 1) == ["sync", "sound"] and list(replicas(name).values()) == [pid]


def test_a_place_that_no_node_has_is_named():
    nowhere = SyncReward(node_labels={"pool": "elsewhere"}, deadline_s=1.0)
    with pytest.raises(DeadlineExceeded, match=r"pool=elsewhere"):
        app.deploy([nowhere], timeout_s=1.0)
    deadline = time.monotonic() + 30
    while app_name(nowhere) in {status.name for status in app.status()}:
        assert time.monotonic() < deadline, "what found no room is taken down"
        time.sleep(0.2)


def test_what_cannot_be_done_says_so(groups):
    with pytest.raises(RewardError, match="1 or more"):
        app.scale("sync", 0)
    with pytest.raises(RewardError, match=r"'beauty'.*clap"):
        app.scale("beauty", 2)


def test_a_server_that_cannot_be_built_fails_fast_and_hurts_nobody(tmp_path):
    spec = ClapReward(path=str(tmp_path))
    assert app_name(spec) != "clap" and app_name(spec).startswith("clap-")
    with pytest.raises(SpecError, match=r"config\.json") as caught:
        app.deploy([*SPECS, spec], idle_s=0.5)
    assert [pointer for pointer, _ in caught.value.problems] == ["/rewards/3"]
    deadline = time.monotonic() + 30
    while app_name(spec) in {status.name for status in app.status()}:
        assert time.monotonic() < deadline, "what could not be started is taken down"
        time.sleep(0.2)
    assert {status.name for status in app.status() if status.status == "RUNNING"} >= {"sync", "clap"}
