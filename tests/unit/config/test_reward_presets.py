"""A set of rewards by one name: what it stands for, what is laid over it, and what is said when it does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.config.reward_presets import REWARD_PRESETS, listed, preset_paths
from accord.errors import SpecError
from accord.plugins import spec_class

PAPER = [
    {"name": "videoalign", "route": "video", "weight": 1.0, "path": "/m/OmniNFT-Reward-Series",
     "base": "/m/Qwen2-VL-2B-Instruct"},
    {"name": "hpsv3", "route": "video", "weight": 1.5, "path": "/m/OmniNFT-Reward-Series",
     "base": "/m/Qwen2-VL-7B-Instruct"},
    {"name": "audiobox", "route": "audio", "weight": 0.5, "path": "/m/OmniNFT-Reward-Series"},
    {"name": "clap", "route": "audio", "weight": 1.0, "path": "/m/OmniNFT-Reward-Series"},
    {"name": "desync", "route": "both", "weight": 1.0, "path": "/m/OmniNFT-Reward-Series"},
]  # fmt: skip
JOB = {
    "steps": 2,
    "backbone": {"name": "ltx2"},
    "sampling": {"frames": 121, "fps": 24.0},
    "prompts": {"train": "/m/train.jsonl", "held_out": "/m/held_out.jsonl"},
    "algorithm": {"name": "omninft"},
}


def job(rewards: Any, **changes: Any) -> JobSpec:
    return JobSpec.parse(json.dumps({**JOB, "rewards": rewards, **changes}))


def refused(rewards: Any, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        job(rewards, **changes)
    return caught.value.problems


def test_the_preset_is_the_list_written_out() -> None:
    wanted = job(PAPER)
    entry = {"preset": "omninft", "models": "/m"}
    assert job([entry]) == job(entry) == wanted
    by_word = job("omninft")
    assert by_word == job({"preset": "omninft", "models": "/models"})
    assert [reward.path for reward in by_word.rewards] == ["/models/OmniNFT-Reward-Series"] * 5
    assert JobSpec.parse(by_word.model_dump_json()) == by_word, "what is stored needs no preset"


def test_every_reward_of_a_preset_can_be_made_of_what_it_says() -> None:
    for rewards in REWARD_PRESETS.values():
        for fields in rewards:
            assert spec_class("rewards", fields["name"])(**fields).route == fields["route"]


def test_what_the_job_says_of_one_of_them_is_laid_over_it_and_the_rest_follows() -> None:
    own = {"name": "hpsv3", "num_gpus": 1.0, "base": "/q", "weight": 2.0}
    still = {"name": "motion", "weight": 0.0}
    found = job([still, own, {"preset": "omninft", "models": "/m", "num_gpus": 0.5, "required": False}])
    assert [reward.name for reward in found.rewards] == [*(one["name"] for one in PAPER), "motion"]
    by_name = {reward.name: reward for reward in found.rewards}
    hpsv3, desync, motion = by_name["hpsv3"], by_name["desync"], by_name["motion"]
    assert (hpsv3.num_gpus, hpsv3.weight, hpsv3.base, hpsv3.path) == (1.0, 2.0, "/q", "/m/OmniNFT-Reward-Series")
    assert (desync.num_gpus, desync.required, motion.num_gpus, motion.required) == (0.5, False, 0.0, True)


def test_an_evaluation_may_measure_a_preset() -> None:
    tree = {name: JOB[name] for name in ("backbone", "sampling")} | {
        "kind": "evaluate", "subject": {"adapter": "/m/lora.safetensors"}, "prompts": {"held_out": "/m/held_out.jsonl"},
        "rewards": "omninft",
    }  # fmt: skip
    assert [reward.name for reward in JobSpec.parse(json.dumps(tree)).rewards] == [one["name"] for one in PAPER]


def test_a_reward_with_a_preset_of_its_own_is_no_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "judge.test:80")
    judge = {"name": "vlm_judge", "url": "http://judge.test/v1", "model": "m", "preset": "videoscore2", "weight": 0.0}
    assert job([judge, *PAPER]).rewards[0].name == "vlm_judge"


@pytest.mark.parametrize(
    ("rewards", "pointer", "told"),
    [
        ("sync", "/rewards", "'sync' is no set of rewards; there is omninft"),
        ([{"preset": "videoscore2"}], "/rewards/0", "A reward of its own needs its name"),
        ([*PAPER[3:], {"preset": 5}], "/rewards/2/preset", "string"),
        ([{"preset": "omninft", "models": ""}], "/rewards/0/models", "at least 1 character"),
        ([{"preset": "omninft", "models": "~/m"}], "/rewards/0/models", "another folder to every user"),
        ([{"preset": "omninft", "template": "/t"}], "/rewards/0/template", "not every reward of preset 'omninft'"),
        ([{"preset": "omninft"}, {"preset": "omninft"}], "/rewards/1", "brings videoalign a second time"),
        ([{"preset": "omninft"}, {"name": "clap"}, {"name": "clap"}], "/rewards", "clap listed more than once"),
        ([{"preset": "omninft", "weight": 0.0}], "/rewards", "all weights are 0"),
        ([{"preset": "omninft"}, {"name": "desync", "num_gpus": "one"}], "/rewards/4/num_gpus", "desync: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_where_it_stands_or_by_the_reward(rewards: Any, pointer: str, told: str) -> None:
    found = refused(rewards)
    assert [where for where, _ in found] == [pointer], found
    assert told in found[0][1]


def test_a_clip_that_is_too_short_is_told_of_the_reward() -> None:
    ((where, why),) = refused("omninft", sampling={"frames": 25, "fps": 12.0})
    assert where == "/rewards/4" and why.startswith("desync: ") and "4.8 s" in why


def test_files_that_are_missing_are_told_with_the_reward(job_tree: dict[str, Any]) -> None:
    tree = {**job_tree, "sampling": {**job_tree["sampling"], "frames": 129, "fps": 24.0}, "rewards": "omninft"}
    with pytest.raises(SpecError) as caught:
        preflight(JobSpec.parse(json.dumps(tree)))
    told = dict(caught.value.problems)
    for index, reward in enumerate(PAPER):
        assert told[f"/rewards/{index}/path"].startswith(f"{reward['name']}: /models/OmniNFT-Reward-Series")


def test_anything_may_stand_there() -> None:
    for tree in (None, [], {}, {"rewards": 3}, {"rewards": [3, None, {"name": []}]}, {"rewards": None}):
        assert listed(tree) is tree and [*preset_paths(tree)] == []
    assert refused([{"preset": "omninft"}, 3, {"name": ["hpsv3"]}])
