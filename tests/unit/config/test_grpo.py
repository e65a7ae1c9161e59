"""Recipes, windows and what a job of the transition view must not ask for."""

import json

import pytest

import accord.requests
from accord.config.grpo import FlowGRPOSpec
from accord.config.job import JobSpec
from accord.errors import SpecError
from accord.requests import evaluation_requests, step_requests
from accord.types import Prompt, StochasticSteps

PROMPTS = [Prompt(name, f"{name} av", f"{name} v", f"{name} a") for name in ("one", "two", "three")]


def job(seed=0, steps=4, num_steps=8, guidance=1.0, name="flow_grpo", **algorithm) -> JobSpec:
    return JobSpec.parse(
        json.dumps(
            {
                "steps": steps, "seed": seed, "backbone": {"name": "ltx2"}, "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
                "sampling": {"num_steps": num_steps, "guidance": guidance},
                "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 2},
                "algorithm": {"name": name, **algorithm},
            }
        )
    )  # fmt: skip


def windows(steps=300, **more) -> list[tuple[int, ...]]:
    spec = job(**more)
    return [spec.algorithm.plan(spec, step).stochastic.steps for step in range(1, steps + 1)]


def test_all_is_every_step_but_the_last():
    assert set(windows(window={"kind": "all"})) == {(0, 1, 2, 3, 4, 5, 6)}
    assert set(windows(num_steps=2)) == {(0,)}


def test_random_windows_begin_anywhere_and_are_the_same_in_every_run():
    drawn = windows(window={"kind": "random", "size": 3})
    assert drawn == windows(window={"kind": "random", "size": 3})
    assert drawn != windows(seed=1, window={"kind": "random", "size": 3})
    assert set(drawn) == {(i, i + 1, i + 2) for i in range(5)}
    assert min(drawn.count(window) for window in set(drawn)) > 35


def test_progressive_windows_move_and_start_over():
    moved = windows(steps=20, window={"kind": "progressive", "size": 4, "every": 3, "stride": 2})
    assert moved[:9] == [(0, 1, 2, 3)] * 3 + [(2, 3, 4, 5)] * 3 + [(0, 1, 2, 3)] * 3
    whole = windows(steps=20, window={"kind": "progressive", "size": 4, "every": 1, "stride": 1})
    assert [window[0] for window in whole[:6]] == [0, 1, 2, 3, 0, 1]


def test_the_window_fills_the_schedule_at_most():
    assert set(windows(window={"kind": "random", "size": 7})) == {tuple(range(7))}


def test_requests_carry_the_window_and_evaluation_follows_the_ode():
    spec = job(window={"kind": "random", "size": 2})
    for step in (1, 2, 3):
        drawn = StochasticSteps("flow", 0.7, spec.algorithm.window.steps(8, 0, step))
        assert len(drawn.steps) == 2
        assert [request.plan.stochastic for request in step_requests(spec, PROMPTS, step)] == [drawn, drawn]
    assert {request.plan.stochastic for request in evaluation_requests(spec, PROMPTS, 3)} == {None}
    assert {request.plan.stochastic for request in step_requests(job(name="omninft"), PROMPTS, 1)} == {None}


def test_a_group_shares_its_first_noise_when_the_recipe_says_so():
    shared = [request for step in (1, 2) for request in step_requests(job(preset="dance_grpo"), PROMPTS, step)]
    assert {request.plan.initial_noise for request in shared} == {"shared"}
    assert len({request.start_seed for request in shared}) == 4
    assert not {request.start_seed for request in shared} & {seed for request in shared for seed in request.seeds}
    own = [*step_requests(job(), PROMPTS, 1), *evaluation_requests(job(preset="dance_grpo"), PROMPTS, 0)]
    assert {request.plan.initial_noise for request in own} == {"independent"}


def test_a_recipe_is_laid_under_what_the_user_wrote():
    spec = FlowGRPOSpec.model_validate({"preset": "fast_grpo", "window": {"size": 3}, "loss": {"kl_weight": 0.1}})
    assert (spec.window.kind, spec.window.size) == ("random", 3)
    assert (spec.loss.kl_weight, spec.loss.clip_range, spec.dynamics.eta) == (0.1, 1e-5, 0.8)
    assert FlowGRPOSpec.model_validate({"preset": "flow_grpo"}) == FlowGRPOSpec()


@pytest.mark.parametrize("preset", ["flow_grpo", "dance_grpo", "fast_grpo", "mix_grpo"])
def test_every_recipe_samples_on_policy_and_routes_credit(preset):
    spec = FlowGRPOSpec.model_validate({"preset": preset})
    assert spec.old_policy.start == spec.old_policy.rate == 0
    assert spec.credit.mode == "routed"


BROKEN = {
    "window beyond the schedule": (
        {"window": {"kind": "random", "size": 8}}, "/algorithm/window/size",
        "8 steps do not fit into the 7 that can be stochastic (sampling/num_steps = 8 without the last); use at most 7",
    ),
    "progressive window beyond the schedule": (
        {"preset": "mix_grpo", "num_steps": 4}, "/algorithm/window/size", "4 steps do not fit into the 3"
    ),
    "one denoising step": ({"num_steps": 1}, "/sampling/num_steps", "1 leaves no step to be stochastic; use 2 or more"),
    "guidance": ({"guidance": 1.5}, "/sampling/guidance", "1.5 samples from a guided velocity"),
    "no noise": ({"dynamics": {"eta": 0.0}}, "/algorithm/dynamics/eta", "eta 0 adds no noise"),
    "unknown recipe": ({"preset": "paper"}, "/algorithm/preset", "unknown preset 'paper'; known: flow_grpo"),
    "a recipe that is no name": ({"preset": ["flow_grpo"]}, "/algorithm/preset", "unknown preset ['flow_grpo']"),
    "empty window": ({"window": {"kind": "random", "size": 0}}, "/algorithm/window/size", "greater than or equal to 1"),
    "technique of another algorithm": ({"region": {}}, "/algorithm/region", "not permitted"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_trained_names_field_and_remedy(case):
    changes, pointer, message = BROKEN[case]
    with pytest.raises(SpecError) as caught:
        job(**changes)
    assert message in dict(caught.value.problems)[pointer]


def test_the_order_of_a_pass_is_derived_once_a_step(monkeypatch):
    """Two prompts a step, three prompts: the second step goes over the end of the first pass."""
    asked: list[int] = []
    order = accord.requests.prompt_order
    monkeypatch.setattr(accord.requests, "prompt_order", lambda *args: asked.append(args[1]) or order(*args))
    spec = job(seed=3)
    chosen = [request.prompt for step in (1, 2, 3) for request in step_requests(spec, PROMPTS, step)]
    assert asked == [0, 0, 1, 1]
    assert chosen == [PROMPTS[index] for epoch in (0, 1) for index in order(3, epoch, 3)]
