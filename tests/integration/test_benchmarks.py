"""The evidence: arms differ by what they are named after, tables say what the runs said, costs are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accord.config.prompts import load_prompts
from accord.requests import step_requests
from benchmarks import ablation, cost

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def resolved(arm: str) -> dict[str, Any]:
    algorithm = ablation.job_of(arm, 0, 3).algorithm.model_dump(mode="json")
    for technique in ("surgery", "region"):  # one that is not in the spec at all is off, too
        settings = algorithm.get(technique)
        algorithm[technique] = settings if settings and settings["enabled"] else None
    return {name: value for name, value in algorithm.items() if name != "name"}


@pytest.mark.parametrize(
    ("before", "arm", "added"),
    [("+GDPO", "+routing", "credit"), ("+routing", "+surgery", "surgery"), ("+surgery", "+region", "region")],
)
def test_an_arm_adds_one_technique_to_the_one_before(before, arm, added):
    low, high = resolved(before), resolved(arm)
    assert {name for name in low if low[name] != high[name]} == {added}


def test_the_first_arm_has_none_and_the_last_of_the_ladder_all():
    low, high = resolved("+GDPO"), resolved("+region")
    assert low["credit"]["mode"] == "gdpo" and low["surgery"] is None and low["region"] is None
    assert high["credit"]["mode"] == "routed" and high["surgery"] and high["region"]


def test_all_arms_of_a_seed_have_the_same_budget_prompts_and_noise():
    drawn = {}
    for arm in ablation.ARMS:
        job = ablation.job_of(arm, 2, 3)
        requests = step_requests(job, load_prompts(job.prompts.train), 1)
        drawn[arm] = [(request.prompt.id, request.seeds) for request in requests], job.steps, job.rewards
        assert sum(len(request.seeds) for request in requests) == ablation.PER_STEP * ablation.GROUP
    first = drawn.pop("+GDPO")
    assert all(other == first for other in drawn.values())
    other_seed = ablation.job_of("+GDPO", 3, 3)
    assert step_requests(other_seed, load_prompts(other_seed.prompts.train), 1)[0].seeds != first[0][0][1]


def test_intervals_are_those_of_students_t():
    mean, half = ablation.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-6)  # t(0.975, 4) times the standard error


def test_a_technique_is_judged_seed_by_seed():
    """Seeds far apart, the gain of each the same: the interval is that of the gain."""
    metrics = (*ablation.REWARDS, *ablation.HELD_OUT)
    results = [
        {"arm": arm, "seed": seed, "before": dict.fromkeys(metrics, seed), "after": dict.fromkeys(metrics, seed + gain)}
        for seed in range(5)
        for gain, arm in enumerate(ablation.ARMS, start=1)
    ]
    effects = ablation.effects(results)
    assert effects["+surgery against +routing"]["sync"] == pytest.approx((1.0, 0.0), abs=1e-9)
    assert effects["Flow-GRPO against base"]["sync"] == pytest.approx((5.0, 0.0), abs=1e-9)
    assert ablation.table(results)["base"]["clap"][0] == 2.0


def test_the_page_says_what_the_runs_said():
    results = json.loads((RESULTS / "ablation.json").read_text())
    steps = len(results[0]["curve"])
    assert ablation.document(results, steps) == (RESULTS / "ablation.md").read_text()
    assert {result["seed"] for result in results} == set(range(5))


class Model(nn.Module):
    def forward(self, latents: dict[str, torch.Tensor]) -> torch.Tensor:
        return latents["video"] * 2


def test_forwards_and_peaks_are_counted_and_the_warm_up_is_not():
    model, calls = Model(), []

    def work(times: int) -> int:
        calls.append(times)
        kept = [model({"video": torch.ones(4, 2**16)}) for _ in range(times)]  # 1 MiB in, 1 MiB out
        return len(kept[0])

    row = cost.paired("more", "work", lambda: work(1), lambda: work(3), 5, model)
    assert row.forwards == (1.0, 3.0)
    assert row.peak[0] == pytest.approx(2.0) and row.peak[1] == pytest.approx(4.0)
    assert len(row.ratios) == 5 and min(row.ratios) > 0
    assert not model._forward_pre_hooks
    timed = calls[:12]
    assert timed[:4] == [3, 1, 1, 3] and timed.count(1) == timed.count(3) == 6


def test_the_median_lies_in_its_interval():
    assert cost.median_interval([float(n) for n in range(100)]) == (40.0, 59.0)
    assert cost.median_interval([1.0]) == (1.0, 1.0)
