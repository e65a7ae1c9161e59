"""From the sampler's recorded steps to the learner: the tiny model, sampled and evaluated for real."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from accord.backbones.adapters import ADAPTER_ROLES, adapter_state
from accord.backbones.base import Conditions
from accord.config.job import JobSpec
from accord.errors import RolloutError
from accord.plugins import load_impl
from accord.requests import step_requests
from accord.types import GroupData, PolicyState, Prompt, RolloutPlan, SampleGroup, ScoredGroup, Transitions
from learner.algorithms.base import Credit
from learner.assembly import make_engine
from learner.collectives import Ranks
from learner.rank import Rank
from learner.views.base import Share
from learner.views.transition import TransitionView
from rollout_workers.sampler import denoise
from rollout_workers.worker import RolloutWorker

PROMPTS = [
    Prompt("red", "a red ball bouncing with a bell sound", "a red ball bouncing", "a bell sound"),
    Prompt("blue", "a blue ball sliding with a drum sound", "a blue ball sliding", "a drum sound"),
]
GROUP = 3


def job(micro_batch=GROUP, **algorithm) -> JobSpec:
    return JobSpec.parse(
        json.dumps(
            {
                "steps": 4, "backbone": {"name": "ltx2", "lora": {"rank": 4, "alpha": 8.0}},
                "sampling": {"num_steps": 3, "frames": 9}, "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
                "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": GROUP},
                "algorithm": {"name": "flow_grpo", **algorithm}, "optimizer": {"micro_batch": micro_batch},
                "cluster": {"engine": "torch", "learner_ranks": 1},
            }
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> RolloutWorker:
    spec = job()
    return RolloutWorker(spec.backbone, spec.sampling, seed=spec.seed)


@pytest.fixture(scope="module")
def published(worker) -> PolicyState:
    """Version 1 with adapters that change something, sampled and trained alike."""
    rng = np.random.default_rng(0)
    state = {
        key: (0.05 * rng.standard_normal(value.shape)).astype(np.float32)
        for key, value in adapter_state(worker.backbone.velocity_model, "policy").items()
    }
    return PolicyState(1, {role: {key: value.copy() for key, value in state.items()} for role in ADAPTER_ROLES})


def sampled(worker, published, kind) -> list[ScoredGroup]:
    """The groups of step 2, sampled with version 1."""
    worker.load(published)
    requests = step_requests(job(dynamics={"kind": kind}), PROMPTS, 2)
    return [ScoredGroup(worker.sample(request), {}) for request in requests]


@pytest.fixture(scope="module")
def groups(worker, published) -> list[ScoredGroup]:
    return sampled(worker, published, "flow")


def credit() -> Credit:
    advantage = torch.tensor([[1.0, -0.4, -0.6], [0.2, -1.1, 0.9]], dtype=torch.float64)
    return Credit({"video": advantage, "audio": -advantage})


def rank_of(worker, spec: JobSpec) -> Rank:
    engine = make_engine(spec, worker.backbone.velocity_model)
    return Rank(spec, worker.backbone, engine, load_impl(spec.algorithm)(spec.algorithm), Ranks())


def ratios(worker, groups, spec: JobSpec) -> dict[str, torch.Tensor]:
    rank = rank_of(worker, spec)
    share = Share.of(2, groups, credit(), range(2), lambda data: data)
    batches = Batches(rank.view, share, spec.optimizer.micro_batch)
    found = {"video": [], "audio": []}
    for micro in batches:
        with rank._shaped():
            metrics = rank._evaluate(micro).metrics_B
        for modality, values in found.items():
            values.append(metrics[f"ratio/{modality}"])
    return {modality: torch.cat(values) for modality, values in found.items()}


@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_an_unchanged_policy_finds_every_density_again_bit_for_bit(worker, published, kind):
    groups = sampled(worker, published, kind)
    found = ratios(worker, groups, job(dynamics={"kind": kind}, loss={"kl_weight": 0.0}))
    for modality in ("video", "audio"):
        assert found[modality].tolist() == [1.0] * 12
        assert groups[0].group.data.transitions[modality].log_prob_KG.dtype == np.float32


def test_credit_may_differ_from_step_to_step(worker, groups):
    spec = job(micro_batch=4)
    rank, whole = rank_of(worker, spec), credit().advantages["video"]
    by_step = torch.stack([whole, 10 * whole], dim=2)  # [P, G, K]

    def advantages(found: Credit) -> list[float]:
        batches = Batches(
            rank.view, Share.of(2, groups, found, range(2), lambda data: data), spec.optimizer.micro_batch
        )
        return [value for micro in batches for value in micro.batch.advantages["video"].tolist()]

    plain = advantages(Credit({"video": whole}))
    assert plain == torch.stack([whole, whole], dim=1).float().flatten().tolist()  # (prompt, step, sample)
    assert advantages(Credit({"video": by_step[:, :, :1].expand(-1, -1, 2)})) == plain
    assert advantages(Credit({"video": by_step})) == torch.stack([whole, 10 * whole], dim=1).float().flatten().tolist()


def test_another_micro_batch_differs_by_rounding(worker, published, groups):
    worker.load(published)
    for size in (1, 2 * GROUP + 1):
        for ratio in ratios(worker, groups, job(size, loss={"kl_weight": 0.0})).values():
            torch.testing.assert_close(ratio, torch.ones(12), rtol=0, atol=1e-6)


def test_another_policy_does_not(worker, published, groups):
    worker.load(published)
    moved = {role: {key: value * 1.5 for key, value in state.items()} for role, state in published.adapters.items()}
    worker.load(PolicyState(2, moved))
    for ratio in ratios(worker, groups, job(loss={"kl_weight": 0.0})).values():
        assert (ratio - 1).abs().min() > 1e-5


def test_a_group_carries_what_its_request_asks_for_and_sampling_again_gives_the_same(worker, published, groups):
    worker.load(published)
    shapes = worker.backbone.latent_shapes()
    again = worker.sample(groups[0].group.request)
    for modality, steps in groups[0].group.data.transitions.items():
        assert steps.before_KGTC.shape == steps.after_KGTC.shape == (2, GROUP, *shapes[modality])
        assert steps.log_prob_KG.shape == (2, GROUP)
        for name in ("before_KGTC", "after_KGTC", "log_prob_KG"):
            assert np.array_equal(getattr(steps, name), getattr(again.data.transitions[modality], name))
    request = groups[0].group.request
    plan = request.plan
    ode = worker.sample(replace(request, plan=replace(plan, stochastic=None)))
    assert ode.data.transitions is None
    backbone = worker.backbone
    conditions = backbone.encode([PROMPTS[0].prompt_av if request.prompt.id == "red" else PROMPTS[1].prompt_av])
    plain = denoise(backbone, conditions, None, request.seeds, RolloutPlan("policy", num_steps=3)).latents
    for modality, latents in ode.data.latents.items():  # both adapters hold the same numbers here
        assert np.array_equal(latents, plain[modality].numpy())
        assert not np.array_equal(latents, groups[0].group.data.latents[modality])
    late = replace(plan, stochastic=replace(plan.stochastic, steps=(1,)), initial_noise="shared")
    shared = worker.sample(replace(request, plan=late, start_seed=5)).data.transitions
    for steps in shared.values():
        np.testing.assert_allclose(steps.before_KGTC[0], steps.before_KGTC[0, :1].repeat(GROUP, 0), atol=1e-5)


def test_one_update_on_policy_and_a_second_one_that_is_late(worker, published, groups):
    worker.load(published)
    rank = rank_of(worker, job(loss={"clip_range": 1e-6}))
    before = rank.engine.adapter_state("policy")
    first = rank.update(2, groups, credit(), lambda data: data)
    for modality in ("video", "audio"):
        assert first[f"ratio/{modality}"] == 1.0
        assert first[f"clipped/{modality}"] == first[f"kl/{modality}"] == 0.0
        assert first[f"loss/reference/{modality}"] > 0  # the base is another policy
    assert first["grad_norm"] > 0
    policy, old = rank.engine.adapter_state("policy"), rank.engine.adapter_state("old")
    assert any(not np.array_equal(policy[key], before[key]) for key in policy)
    assert all(np.array_equal(policy[key], old[key]) for key in policy)
    second = rank.update(3, groups, credit(), lambda data: data)  # as policy_lag = 1 would hand them over
    for modality in ("video", "audio"):
        assert second[f"ratio/{modality}"] != 1.0
        assert second[f"kl/{modality}"] > 0
        assert second[f"clipped/{modality}"] > 0


class Batches(list):
    """All micro-batches of a share, and how many items they hold."""

    def __init__(self, view, share, size):
        self.items = view.items(share)
        super().__init__(view.micro_batch(share, self.items[i : i + size]) for i in range(0, len(self.items), size))

    def count(self):
        return len(self.items)


def numbered(share=range(2), micro_batch=GROUP) -> Batches:
    """Groups whose recorded numbers say where they come from: 100 prompt + 10 step + sample."""
    spec = job(micro_batch=micro_batch)
    found = []
    for request in step_requests(spec, PROMPTS, 1):
        number = np.add.outer(10 * np.arange(2), np.arange(GROUP)).astype(np.float32) + 100 * request.prompt_index
        states = number[:, :, None, None] + np.zeros((1, 1, 4, 2), np.float32)
        steps = {m: Transitions(states, states + 0.5, -number) for m in ("video", "audio")}
        conditions = Conditions({"text": torch.tensor([request.prompt_index])})
        data = GroupData({}, conditions, transitions=steps)
        found.append(ScoredGroup(SampleGroup(request, 0, data, None), {}))
    algorithm = load_impl(spec.algorithm)(spec.algorithm)
    view = TransitionView(spec, algorithm, torch.tensor([1.0, 0.7, 0.4, 0.0]))
    return Batches(view, Share.of(1, found, credit(), share, lambda data: data), micro_batch)


def flat(batches) -> list[tuple]:
    rows = []
    for micro in batches:
        for b in range(len(micro.sigmas["video"])):
            step = micro.batch.transitions["audio"]
            rows.append(
                (
                    float(micro.latents["audio"][b, 0, 0]), float(step.after_BTC[b, 3, 1]), float(step.log_prob_B[b]),
                    float(micro.sigmas["audio"][b]), float(step.sigma_next_B[b]), int(micro.conditions["text"][b]),
                    float(micro.batch.advantages["video"][b]),
                )
            )  # fmt: skip
    return rows


def test_items_stand_in_prompt_step_sample_order_with_what_belongs_to_them():
    rows = flat(numbered())
    numbers = [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert [row[0] for row in rows] == numbers
    assert [row[1] for row in rows] == [number + 0.5 for number in numbers]
    assert [row[2] for row in rows] == [-number for number in numbers]
    assert [row[3] for row in rows] == pytest.approx([1.0] * 3 + [0.7] * 3 + [1.0] * 3 + [0.7] * 3)
    assert [row[4] for row in rows] == pytest.approx([0.7] * 3 + [0.4] * 3 + [0.7] * 3 + [0.4] * 3)
    assert [row[5] for row in rows] == [0] * 6 + [1] * 6
    assert [row[6] for row in rows] == pytest.approx([1.0, -0.4, -0.6] * 2 + [0.2, -1.1, 0.9] * 2)


def test_neither_micro_batch_nor_rank_changes_the_items():
    whole = flat(numbered(micro_batch=100))
    assert numbered().count() == len(whole) == 12
    for size in (1, 5):
        assert flat(numbered(micro_batch=size)) == whole
    assert flat(numbered(share=range(1))) + flat(numbered(share=range(1, 2))) == whole


def test_groups_of_the_ode_are_refused(groups):
    bare = replace(groups[0].group, data=replace(groups[0].group.data, transitions=None))
    with pytest.raises(RolloutError, match=r"of step 2 followed the ODE .* needs `window`"):
        share = Share.of(2, [ScoredGroup(bare, {})], credit(), range(1), lambda data: data)
        TransitionView(job(), None, torch.ones(4)).items(share)
