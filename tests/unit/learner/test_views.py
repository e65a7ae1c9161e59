"""What is drawn for the loss depends on (job seed, step, prompt, sample, draw) alone."""

import json
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from accord.backbones.base import Conditions
from accord.config.algorithm_parts import RegionSpec, SigmaSpec
from accord.config.job import JobSpec
from accord.errors import SpecError
from accord.types import GroupData, Prompt, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.algorithms.base import Credit
from learner.views.base import Share
from learner.views.forward import ForwardView, candidate_sigmas, draw_sigmas

SCHEDULE = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1, 0.0])


class Batches(list):
    """All micro-batches of a share, and how many items they hold."""

    def __init__(self, view, share, size):
        self.items = view.items(share)
        super().__init__(view.micro_batch(share, self.items[i : i + size]) for i in range(0, len(self.items), size))

    def count(self):
        return len(self.items)


def batches(*, share=range(2), micro_batch=3, step=1, region=None, per_sample=2, name="omninft"):
    tree = {
        "steps": 4, "seed": 5, "backbone": {"name": "ltx2"}, "optimizer": {"micro_batch": micro_batch},
        "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 3},
        "guards": {"allow_prompt_blind": True}, "rewards": [{"name": "sync"}],
        "algorithm": {"name": name},
    }  # fmt: skip
    job = JobSpec.model_validate_json(json.dumps(tree))
    algorithm = SimpleNamespace(sigmas=SigmaSpec(per_sample=per_sample), region=region)
    groups = []
    for p in range(2):
        latents = {
            "video": np.full((3, 4, 2), p, np.float32) + np.arange(3, dtype=np.float32).reshape(3, 1, 1) / 10,
            "audio": np.full((3, 5, 1), 10 + p, np.float32),
        }
        request = RolloutRequest(step, p, Prompt(f"p{p}", f"text {p}", "v", "a"), (1, 2, 3), 0, RolloutPlan("old", 8))
        data = GroupData(latents, Conditions({"text": torch.tensor([p])}), np.full((3, 4), 1.5 + p, np.float32))
        groups.append(ScoredGroup(SampleGroup(request, 0, data, None), {}))
    advantage = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    credit = Credit({"video": advantage, "audio": -advantage})
    view = ForwardView(job, algorithm, SCHEDULE)
    return Batches(view, Share.of(step, groups, credit, share, lambda handle: handle), micro_batch)


def flat(found):
    """Everything drawn, sample by sample, whatever the batching."""
    rows = []
    for micro in found:
        for b in range(len(micro.sigmas["video"])):
            noised = micro.batch.noised
            rows.append(
                (
                    float(micro.sigmas["video"][b]), int(micro.conditions["text"][b]),
                    float(micro.batch.advantages["audio"][b]),
                    *(tuple(noised[m].noise_BTC[b].flatten().tolist()) for m in ("video", "audio")),
                    tuple(micro.latents["video"][b].flatten().tolist()),
                )
            )  # fmt: skip
    return rows


def test_neither_micro_batch_nor_rank_changes_what_is_drawn():
    whole = flat(batches(micro_batch=100))
    assert len(whole) == batches().count() == 12
    for size in (1, 3, 5):
        assert flat(batches(micro_batch=size)) == whole
    assert flat(batches(share=range(1))) + flat(batches(share=range(1, 2))) == whole


def test_every_draw_is_its_own():
    rows = flat(batches())
    assert len({row[3] for row in rows}) == len({row[4] for row in rows}) == 12
    assert {row[3] for row in rows}.isdisjoint(row[3] for row in flat(batches(step=2)))
    assert all(row[3][:5] != row[4][:5] for row in rows)  # neither does sound get the picture's noise
    for first, second in zip(rows[::2], rows[1::2], strict=True):  # two noise levels of one sample differ
        assert first[0] != second[0]


def test_noise_levels_are_drawn_for_each_sample_prompt_and_step():
    def orders(step):
        """All five levels in the order in which each of the six samples takes them."""
        sigmas = next(iter(batches(step=step, per_sample=5, micro_batch=100))).sigmas["video"]
        return [tuple(row) for row in sigmas.view(6, 5).tolist()]

    found = [orders(step) for step in range(1, 21)]  # of 120 possible orders: few meet by chance
    assert all(sorted(row, reverse=True) == pytest.approx(SCHEDULE[:-1].tolist()) for rows in found for row in rows)
    for one, other in combinations(range(6), 2):  # samples of a prompt, and prompts
        assert sum(rows[one] == rows[other] for rows in found) <= 2
    for sample in range(6):
        assert len({rows[sample] for rows in found}) >= 16


def test_items_carry_their_own_prompt_credit_and_latents():
    micro = next(iter(batches(micro_batch=100)))
    assert micro.conditions["text"].tolist() == [0] * 6 + [1] * 6
    assert micro.batch.advantages["video"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    noised = micro.batch.noised["video"]
    assert noised.x0_BTC[:, 0, 0].tolist() == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 1, 1, 1.1, 1.1, 1.2, 1.2])
    sigma = micro.sigmas["video"].view(-1, 1, 1)
    torch.testing.assert_close(micro.latents["video"], (1 - sigma) * noised.x0_BTC + sigma * noised.noise_BTC)
    assert torch.equal(micro.sigmas["video"], micro.sigmas["audio"])


def test_region_weights_are_used_as_they_were_captured():
    assert next(iter(batches())).batch.token_weights == {}
    for warmup_steps in (0, 4):  # the warm-up is in the captured weights already
        micro = next(iter(batches(region=RegionSpec(warmup_steps=warmup_steps), step=2)))
        assert micro.batch.token_weights["video"][0].tolist() == [1.5] * 4


def test_only_sigmas_inside_the_bounds_and_never_zero():
    assert candidate_sigmas(SCHEDULE, SigmaSpec()).tolist() == pytest.approx([1.0, 0.9, 0.7, 0.4, 0.1])
    assert candidate_sigmas(SCHEDULE, SigmaSpec(low=0.4, high=0.9)).tolist() == pytest.approx([0.9, 0.7, 0.4])
    with pytest.raises(SpecError, match="sigma"):
        candidate_sigmas(SCHEDULE, SigmaSpec(low=0.5, high=0.6))


def test_sigmas_are_drawn_without_repetition_and_evenly():
    levels = candidate_sigmas(SCHEDULE, SigmaSpec())
    drawn = [draw_sigmas(levels, 2, 5, "sigma", step).tolist() for step in range(500)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = [sum(level in pair for pair in drawn) for level in levels.tolist()]
    assert min(counts) > 150
    assert max(counts) < 250
    assert len(set(draw_sigmas(levels, 5, 1).tolist())) == 5
    assert len(draw_sigmas(levels, 7, 1)) == 7


@pytest.mark.parametrize("name", ["crd", "dgpo"])
def test_compared_groups_stand_together_and_share_noise_and_noise_level(name):
    whole = flat(batches(name=name, micro_batch=12))
    for micro in batches(name=name, micro_batch=6):
        assert micro.batch.group_size == 3
        by_group = {"sigma": micro.sigmas["video"].view(2, 3)}
        by_group |= {m: noised.noise_BTC.view(2, 3, -1) for m, noised in micro.batch.noised.items()}
        for values in by_group.values():
            assert torch.equal(values, values[:, :1].expand_as(values))
            assert not torch.equal(values[0], values[1])  # another noise level of the prompt is another draw
        assert len(set(micro.conditions["text"].tolist())) == 1
    assert [row[2] for row in whole] == [0, -1, -2] * 2 + [-3, -4, -5] * 2  # prompt, noise level, sample
    assert {row[3] for row in whole[:6]}.isdisjoint(row[3] for row in whole[6:])
    assert flat(batches(name=name, share=range(1))) + flat(batches(name=name, share=range(1, 2))) == whole
    assert flat(batches(name=name, micro_batch=3)) == whole


def test_samples_that_are_not_compared_share_nothing():
    micro = next(iter(batches(name="awm", micro_batch=12)))
    assert micro.batch.group_size == 1
    assert len({row[3] for row in flat(batches(name="awm"))}) == 12
