"""Which samples are held to the reference, and that the others are free of it."""

import math

import pytest
import torch

from accord.config.guards import GatedReferenceSpec, GuardsSpec
from accord.config.job import JobSpec
from accord.config.rewards.panel import DynamicDegreeReward, SyncReward
from accord.types import Prompt, RewardScores, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.algorithms.base import Credit
from learner.doubt import doubtful
from learner.rank import _released

REWARDS = (SyncReward(), DynamicDegreeReward(weight=0.0))


def scored(rows):
    groups = []
    for index, row in enumerate(rows):
        request = RolloutRequest(1, index, Prompt("p", "a", "v", "s"), tuple(range(len(row))), 0, RolloutPlan("old", 4))
        scores = RewardScores("dynamic_degree", "1", tuple(row), ("ok",) * len(row))
        groups.append(ScoredGroup(SampleGroup(request, 0, None, None), {"dynamic_degree": scores}))
    return groups


def gate(share):
    return GatedReferenceSpec(auxiliaries=("dynamic_degree",), share=share)


def test_the_most_doubted_share_is_held_and_only_where_an_auxiliary_speaks():
    advantages = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    groups = scored([[0.1, 0.9], [0.5, 0.3]])
    # ranks by advantage 1, 2/3, 1/3, 0; by the auxiliary 0, 1, 2/3, 1/3
    found = doubtful(groups, REWARDS, Credit({"video": advantages, "audio": advantages}), gate(0.25))
    assert set(found) == {"video"}  # its route
    assert found["video"].tolist() == [[True, False], [False, False]]


def test_whom_the_auxiliaries_rank_higher_is_not_doubted_however_large_the_share():
    advantages = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    found = doubtful(scored([[0.1, 0.9], [0.5, 0.3]]), REWARDS, Credit({"video": advantages}), gate(1.0))
    assert found["video"].tolist() == [[True, False], [False, False]]


def test_a_prompt_that_an_auxiliary_likes_little_is_not_doubted_for_it():
    advantages = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    found = doubtful(scored([[0.75, 0.5], [0.25, 0.0]]), REWARDS, Credit({"video": advantages}), gate(1.0))
    assert not found["video"].any()


def test_a_sample_without_a_score_is_not_doubted():
    advantages = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    found = doubtful(scored([[math.nan, 0.1], [0.5, 0.9]]), REWARDS, Credit({"video": advantages}), gate(1.0))
    assert found["video"].tolist() == [[False, True], [True, False]]  # ranks by the auxiliary: none, 1/2, 0, 1
    nobody = doubtful(scored([[math.nan] * 2] * 2), REWARDS, Credit({"video": advantages}), gate(1.0))
    assert not nobody["video"].any()


def test_a_sample_that_is_free_is_at_no_distance_and_moves_no_weight():
    policy = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(2, 3, 4, dtype=torch.float64)
    released = _released({"video": torch.tensor([True, False])}, {"video": policy}, {"video": ref, "audio": ref})
    away = ((policy - released["video"]) ** 2).mean((1, 2))
    away.sum().backward()
    assert away[1] == 0 and not policy.grad[1].any()
    assert away[0] == ((policy[0] - ref[0]) ** 2).mean() and policy.grad[0].any()
    assert released["audio"] is ref


@pytest.mark.parametrize(
    ("algorithm", "auxiliaries", "told"),
    [
        ("omninft", ("sync",), "gated_reference/auxiliaries/0: 'sync' is no reward of weight 0"),
        ("dgpo", ("dynamic_degree",), "dgpo weighs samples by what the reference says"),
    ],
)
def test_a_gate_that_can_gate_nothing_is_refused(algorithm, auxiliaries, told):
    tree = {
        "steps": 1, "backbone": {"name": "ltx2"}, "prompts": {"train": "t", "held_out": "h"},
        "rewards": ({"name": "sync"}, {"name": "dynamic_degree", "weight": 0.0}), "algorithm": {"name": algorithm},
        "guards": GuardsSpec(gated_reference={"auxiliaries": auxiliaries}).model_dump(),
    }  # fmt: skip
    with pytest.raises(ValueError, match=told):
        JobSpec.model_validate(tree)
