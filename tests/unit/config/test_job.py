"""What a job spec refuses by itself: each rule names its field by JSON pointer, the value and a remedy."""

import json

import pytest

from accord.config.job import JobSpec
from accord.errors import SpecError

BOTH = [{"name": "text_video"}, {"name": "clap"}]


def problems(**changes) -> list[tuple[str, str]]:
    tree = {
        "steps": 2,
        "backbone": {"name": "ltx2"},
        "prompts": {"train": "t", "held_out": "h", "group_size": 4},
        "rewards": BOTH,
        "algorithm": {"name": "omninft"},
    }
    try:
        JobSpec.parse(json.dumps(tree | changes))
    except SpecError as error:
        return error.problems
    return []


def algorithm(**fields) -> dict:
    return {"algorithm": {"name": "omninft", **fields}}


def cut(**run) -> dict:
    return algorithm(surgery={"schedule": [{"start": 0.0, "stop": 0.5, "keep": 0.1}, run]})


def remote(label: str = "motion", **fields) -> dict:
    told = {"name": f"remote:{label}", "url": "http://rewards.example.org/v1", "reward": "motion", "route": "video"}
    return {**told, "card": {"version": "3", "needs": ["video"]}, **fields}


BROKEN = {
    "unknown reward": (
        {"rewards": [{"name": "beauty"}]}, "/rewards/0",
        "Input tag 'beauty' found using 'name' does not match any of the expected tags: 'aesthetic_quality', 'audio_",
    ),
    "no name of a reward": ({"rewards": [{"route": "video"}]}, "/rewards/0", "extract tag using discriminator 'name'"),
    "no reward at all": ({"rewards": ["sync"]}, "/rewards/0", "Input should be an object (got 'sync')"),
    "a label where there is one of a kind": ({"rewards": [{"name": "sync:a"}]}, "/rewards/0/name", "should be 'sync'"),
    "no label where there are several": (
        {"rewards": [remote() | {"name": "remote"}]}, "/rewards/0/name", "should match pattern '^remote:"
    ),
    "groups that are too small for a set": (
        {"rewards": [*BOTH, {"name": "audio_vendi"}], "prompts": {"train": "t", "held_out": "h", "group_size": 2}},
        "/prompts/group_size", "audio_vendi: 2 clips are too few to be measured as a set; use 3 or more in a group",
    ),
    "one label twice": ({"rewards": [*BOTH, remote(), remote()]}, "/rewards", "remote:motion listed more than once"),
    "a host that the operator does not list": (
        {"rewards": [*BOTH, remote(url="http://10.0.0.1/v1")]}, "/rewards/2/url", "lists hosts in ACCORD_REWARD_HOSTS"
    ),
    "a card that contradicts itself": (
        {"rewards": [*BOTH, remote(card={"version": "3", "needs": ["video"], "low": 1.0, "high": 0.5})]},
        "/rewards/2/card/low", "1 to 0.5 holds nothing",
    ),
    "a modality that its card does not need": (
        {"rewards": [*BOTH, remote(route="audio")]}, "/rewards/2/route", "is audio, and it looks at video alone"
    ),
    "empty route": ({"rewards": [{"name": "sync", "route": ""}]}, "/rewards/0/route", "'video', 'audio' or 'both'"),
    "no route to a branch": ({"rewards": [{"name": "clap"}]}, "/rewards", "has the route video, so that branch"),
    "only an unweighted route": (
        {"rewards": [{"name": "text_video"}, {"name": "clap", "weight": 0.0}]}, "/rewards", "has the route audio"
    ),
    "weights all zero": (
        {"rewards": [{"name": "sync", "weight": 0.0}]}, "/rewards", "all weights are 0, so nothing would be trained"
    ),
    "negative weight": ({"rewards": [{"name": "sync", "weight": -1.0}]}, "/rewards/0/weight", "greater than or equal"),
    "batch_norm without gdpo": (
        algorithm(credit={"batch_norm": True}), "/algorithm/credit/batch_norm", "set batch_norm = false, or mode"
    ),
    "unknown preset": (algorithm(preset="best"), "/algorithm/preset", "known: accord, paper, published"),
    "steps the wrong way": (
        algorithm(region={"first_step": 0.8, "last_step": 0.8}), "/algorithm/region/first_step", "0.8 must be below"
    ),
    "a step beyond the preset's": (
        algorithm(preset="published", region={"first_step": 0.95}), "/algorithm/region/first_step",
        "0.95 must be below last_step (0.9)",
    ),
    "blocks the wrong way": (
        algorithm(region={"first_block": 0.9, "last_block": 0.2}), "/algorithm/region/first_block", "0.9 must be below"
    ),
    "sigmas the wrong way": (
        algorithm(sigmas={"low": 0.9, "high": 0.1}), "/algorithm/sigmas/low", "0.9 must not exceed high (0.1)"
    ),
    "a sigma bound below the preset's": (
        algorithm(preset="published", sigmas={"high": 0.5}), "/algorithm/sigmas/low", "0.915 must not exceed high (0.5)"
    ),
    "surgery range the wrong way": (
        cut(start=0.5, stop=0.5, keep=0.1), "/algorithm/surgery/schedule/1/stop", "0.5 must be greater than start"
    ),
    "surgery range without its unit": (
        cut(start=0, stop=10, keep=0.1), "/algorithm/surgery/schedule/1/stop", "set unit = 'block'"
    ),
    "surgery of nothing": (
        algorithm(surgery={"schedule": []}), "/algorithm/surgery/schedule", "or set enabled = false"
    ),
    "old policy above its maximum": (
        algorithm(old_policy={"start": 0.6}), "/algorithm/old_policy/start", "0.6 exceeds maximum (0.5)"
    ),
    "technique of another algorithm": (
        {"algorithm": {"name": "diffusion_nft", "surgery": {}}}, "/algorithm/surgery", "not permitted"
    ),
    "no target": ({"backbone": {"name": "ltx2", "lora": {"targets": []}}}, "/backbone/lora/targets", "at least 1"),
    "group cut by the micro-batch": (
        {"algorithm": {"name": "dgpo"}, "optimizer": {"micro_batch": 6}}, "/optimizer/micro_batch",
        "6 does not hold whole groups, and dgpo compares the samples of a prompt within one forward; "
        "use a multiple of prompts/group_size (4), as 8",
    ),
    "micro-batch below a group": (
        {"algorithm": {"name": "crd"}, "optimizer": {"micro_batch": 1}}, "/optimizer/micro_batch", "as 4"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_contradiction_names_its_field(case):
    changes, pointer, message = BROKEN[case]
    assert message in dict(problems(**changes)).get(pointer, ""), problems(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        algorithm(credit={"mode": "gdpo", "batch_norm": True}),
        algorithm(preset="published", region={"last_step": 0.6}),
        algorithm(surgery={"enabled": False, "schedule": []}),
        algorithm(credit={"mode": "gdpo"}) | {"rewards": [{"name": "clap"}]},
        {"algorithm": {"name": "diffusion_nft"}, "rewards": [{"name": "text_video"}]},
        {"rewards": [{"name": "clap", "route": "both"}]},
        {"algorithm": {"name": "awm"}, "optimizer": {"micro_batch": 3}},
        {"algorithm": {"name": "dgpo"}, "optimizer": {"micro_batch": 8}},
        {"rewards": [*BOTH, remote(), remote("other", weight=0.0)]},
    ],
)
def test_what_fits_passes(changes, monkeypatch):
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "rewards.example.org")
    assert problems(**changes) == []


@pytest.mark.parametrize("name", ["awm", "crd", "flow_rwr", "dgpo"])
def test_the_recipes_take_routed_credit_surgery_and_region_weights(name):
    fields = {"credit": {"mode": "routed"}, "surgery": {"enabled": True}, "region": {"enabled": True}}
    assert problems(algorithm={"name": name, **fields}, optimizer={"micro_batch": 4}) == []
    where = dict(problems(algorithm={"name": name, "loss": {"beta": -1.0, "clip_range": 0.0, "space": "pixels"}}))
    assert {"/algorithm/loss/space"} <= where.keys() and len(where) == 3
