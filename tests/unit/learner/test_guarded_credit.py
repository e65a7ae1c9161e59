"""What the guards make of credit: diversity and direction by hand, their order, and that nothing is nothing."""

import math

import pytest
import torch

from accord.config.guards import FEATURES, FEATURES_OF, DirectionCorrectionSpec, DiversitySpec
from accord.config.job import JobSpec
from accord.types import Prompt, RewardScores, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.algorithms.base import Credit
from learner.direction import corrected
from learner.diversity import spread_out
from learner.guarded_credit import guarded
from learner.guards import Watch, feature_metrics

NAN = math.nan


def job(guards=None, algorithm=None, **changes):
    return JobSpec.model_validate(
        {
            "steps": 4, "backbone": {"name": "ltx2"}, "prompts": {"train": "t", "held_out": "h"},
            "rewards": ({"name": "sync"}, {"name": "dynamic_degree", "weight": 0.0}),
            "algorithm": algorithm or {"name": "omninft"}, "guards": guards or {},
        } | changes
    )  # fmt: skip


def groups_of(rows, **named):
    """Groups with features by name, a row per group; the other features of the modality are 0.5 for everyone."""
    names = {"luma": rows, **named}
    found = []
    for index, row in enumerate(rows):
        request = RolloutRequest(2, index, Prompt("p", "a", "v", "s"), tuple(range(len(row))), 1, RolloutPlan("old", 4))
        scores = {"dynamic_degree": RewardScores("dynamic_degree", "1", tuple(row), ("ok",) * len(row))}
        features = dict.fromkeys(FEATURES, (0.5,) * len(row)) | {name: tuple(v[index]) for name, v in names.items()}
        found.append(ScoredGroup(SampleGroup(request, 1, None, None, features), scores))
    return found


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestDiversity:
    spec = DiversitySpec(cap=1.5)

    def test_good_samples_earn_by_their_distance_and_bad_ones_as_before(self):
        groups = groups_of([[0.0, 0.2, 0.6, 0.7], [0.1, 0.1, 0.1, 0.1]])
        # nearest: 0.2, 0.2, 0.1, 0.1, mean 0.15; in units of a standard deviation that is the same for all
        advantage = tensor([[1.0, -1.0, 1.0, -1.0], [2.0, -2.0, 0.0, 0.0]])
        found, metrics = spread_out(advantage, groups, "video", self.spec)
        assert found.tolist()[0] == pytest.approx([4 / 3, -1.0, 2 / 3, -1.0])
        assert found.tolist()[1] == [2.0, -2.0, 0.0, 0.0]  # all alike: nothing to tell apart
        spread = tensor([0.0, 0.2, 0.6, 0.7, 0.1, 0.1, 0.1, 0.1]).std(unbiased=False)
        assert metrics["diversity/video/distance"] == pytest.approx(0.075 / float(spread))
        assert metrics["diversity/video/capped"] == 0.0

    def test_the_factor_has_a_cap(self):
        groups = groups_of([[0.0, 0.01, 0.02, 0.9]])
        found, metrics = spread_out(tensor([[1.0, 1.0, -3.0, 1.0]]), groups, "video", self.spec)
        assert found[0, 3] == 1.5 and found[0, 0] < 0.1 and metrics["diversity/video/capped"] == 0.25

    def test_a_feature_counts_in_its_own_unit_and_not_below_the_least(self):
        seen = {"loudness_db": [[-30.0, -20.0, -27.0]], "flatness": [[0.5, 0.5 + 1e-9, 0.5]]}
        groups = groups_of([[0.1, 0.2, 0.3]], **seen)
        found, _ = spread_out(tensor([[1.0, 1.0, -2.0]]), groups, "audio", DiversitySpec(cap=10.0))
        assert found.tolist()[0] == pytest.approx([3 / (13 / 3), 7 / (13 / 3), -2.0])  # 3, 7, 3 dB

    def test_a_sample_without_features_is_nobodys_neighbour(self):
        groups = groups_of([[0.0, NAN, 0.1, 0.5], [NAN, NAN, 0.3, NAN]])
        advantage = tensor([[1.0, 1.0, 1.0, -3.0], [1.0, 1.0, 1.0, -3.0]])
        found, _ = spread_out(advantage, groups, "video", self.spec)
        # nearest 0.1, none, 0.1, 0.4: mean 0.2
        assert found.tolist()[0] == pytest.approx([0.5, 1.0, 0.5, -3.0])
        assert torch.equal(found[1], advantage[1])
        nothing, metrics = spread_out(advantage, groups_of([[NAN] * 4] * 2), "video", self.spec)
        assert torch.equal(nothing, advantage) and metrics["diversity/video/distance"] is None

    def test_weights_below_their_mean_and_each_step_on_its_own(self):
        groups = groups_of([[0.0, 0.2, 0.6, 0.7]])
        found, _ = spread_out(tensor([[1.5, 0.5, 1.5, 0.5]]), groups, "video", self.spec)
        assert found.tolist()[0] == pytest.approx([2.0, 0.5, 1.0, 0.5])
        steps = tensor([[[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]])
        found, _ = spread_out(steps, groups, "video", self.spec)
        assert found[0, :, 0].tolist() == pytest.approx([4 / 3, -1.0, 2 / 3, -1.0])
        assert found[0, :, 1].tolist() == pytest.approx([-1.0, 4 / 3, -1.0, 2 / 3])


class TestDirection:
    def spec(self, **fields):
        return DirectionCorrectionSpec(**{"features": ("luma",), "only_moved": False, "ridge": 1e-9, **fields})

    def fixed(self, advantage, groups, moves=None, **fields):
        return corrected(advantage, groups, "video", self.spec(**fields), moves or {}, 3.0)

    groups = groups_of([[0.1, 0.3, 0.5, 0.7], [0.9, 0.9, 0.5, 0.5]])
    """Centred: -0.3, -0.1, 0.1, 0.3 and 0.2, 0.2, -0.2, -0.2."""

    def test_what_is_linear_in_the_feature_goes_and_what_is_not_stays(self):
        bright, other = (
            tensor([[-3.0, -1.0, 1.0, 3.0], [2.0, 2.0, -2.0, -2.0]]),
            tensor([[1, -1, -1, 1], [1, -1, 1, -1]]),
        )
        found, metrics = self.fixed(0.6 * bright + other, self.groups)
        assert found.numpy() == pytest.approx(other.numpy(), abs=1e-6)
        assert metrics["corrected/video"] == pytest.approx(1 - 8 / (8 + 0.36 * 36))
        half, _ = self.fixed(0.6 * bright + other, self.groups, strength=0.5)
        assert half.numpy() == pytest.approx((0.3 * bright + other).numpy(), abs=1e-6)
        assert found.sum(1).numpy() == pytest.approx([0.0, 0.0], abs=1e-9)

    def test_the_ridge_explains_less_by_its_formula(self):
        x = tensor([[-3.0, -1.0, 1.0, 3.0], [2.0, 2.0, -2.0, -2.0]])  # standardised it has mean square 1
        found, _ = self.fixed(x, self.groups, ridge=0.25)
        assert found.numpy() == pytest.approx((x * (1 - 8 / (8 + 0.25 * 8))).numpy())

    def test_a_feature_that_hardly_varies_explains_little(self):
        groups = groups_of([[0.5, 0.5 + 2e-4]])
        found, metrics = self.fixed(tensor([[-1.0, 1.0]]), groups, ridge=0.1)
        assert found.numpy() == pytest.approx(tensor([[-1.0, 1.0]]).numpy(), rel=1e-3)
        assert metrics["corrected/video"] < 1e-3

    def test_prompts_are_centred_and_strangers_to_credit_take_no_part(self):
        bright = tensor([[-1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
        groups = groups_of([[0.2, 9.0, 0.4, NAN], [5.0, 6.0, 7.0, 8.0]])
        found, metrics = self.fixed(bright, groups)
        assert found.abs().max() < 1e-6 and metrics["corrected/video"] == pytest.approx(1.0)
        kept, _ = self.fixed(bright, groups, strength=0.5)
        assert kept.tolist()[0] == pytest.approx([-0.5, 0.0, 0.5, 0.0]) and torch.equal(kept[1], bright[1])

    def test_a_sample_without_the_feature_keeps_its_credit(self):
        advantage = tensor([[-1.0, 1.0, 0.7, -0.7]])
        found, _ = self.fixed(advantage, groups_of([[0.2, 0.4, NAN, NAN]]))
        assert found.tolist()[0] == pytest.approx([0.0, 0.0, 0.7, -0.7], abs=1e-6)

    def test_only_further_into_where_the_run_has_gone(self):
        bright = tensor([[-3.0, -1.0, 1.0, 3.0], [2.0, 2.0, -2.0, -2.0]])
        for sign, moved, left in ((1, 0.0, 1.0), (1, 1.5, 0.5), (1, 3.0, 0.0), (1, 30.0, 0.0), (1, -3.0, 1.0),
                                  (-1, -1.5, 0.5), (-1, 1.5, 1.0)):  # fmt: skip
            found, _ = self.fixed(sign * bright, self.groups, {"luma": moved}, only_moved=True)
            assert found.numpy() == pytest.approx((left * sign * bright).numpy(), abs=1e-6), (sign, moved)

    def test_each_modality_by_its_own_features_and_each_step_on_its_own(self):
        bright = tensor([[-3.0, -1.0, 1.0, 3.0], [2.0, 2.0, -2.0, -2.0]])
        untouched, metrics = corrected(bright, self.groups, "audio", self.spec(), {}, 3.0)
        assert untouched is bright and metrics == {"corrected/audio": 0.0}
        other = tensor([[1.0, -1.0, -1.0, 1.0], [1.0, -1.0, 1.0, -1.0]])
        found, _ = self.fixed(torch.stack([bright, other], 2), self.groups)
        assert found[..., 0].abs().max() < 1e-6
        assert found[..., 1].numpy() == pytest.approx(other.numpy(), abs=1e-6)

    def test_no_credit_is_no_number_and_weights_stay_weights(self):
        zero = tensor([[0.0] * 4] * 2)
        found, metrics = self.fixed(zero, self.groups)
        assert torch.equal(found, zero) and metrics == {"corrected/video": None}
        found, _ = self.fixed(tensor([[0.1, 0.1, 0.1, 3.7], [1.0, 1.0, 1.0, 1.0]]), self.groups)
        assert (found >= 0).all() and found[0, 2] == 0.0 and found[0, 3] > 1.0


class TestAll:
    lines = groups_of([[0.2, 0.4, 0.6, 0.8], [0.1, 0.3, 0.3, 0.9]])
    credit = Credit({"video": tensor([[-1.0, -0.5, 0.3, 1.2], [0.8, -0.8, 0.4, -0.4]])}, {"seen": 1.0})

    def test_none_is_the_same_object(self):
        spec = job()
        assert guarded(self.lines, spec, self.credit, Watch(spec)) is self.credit

    def test_each_says_what_it_did_and_keeps_what_was_said(self):
        spec = job({"diversity": {}, "direction_correction": {"features": ("luma",), "only_moved": False}})
        found = guarded(self.lines, spec, self.credit, Watch(spec))
        names = {"seen", "diversity/video/distance", "diversity/video/capped", "corrected/video"}
        assert set(found.metrics) == names and found.anchored == {}

    def test_the_order_is_gate_correction_diversity(self):
        correction = {"features": ("luma",), "only_moved": False}
        gate = {"auxiliaries": ("dynamic_degree",), "share": 0.25}
        watch = Watch(job())
        whole = job({"gated_reference": gate, "direction_correction": correction, "diversity": {}})
        found = guarded(self.lines, whole, self.credit, watch)
        first = guarded(self.lines, job({"direction_correction": correction}), self.credit, watch)
        then = guarded(self.lines, job({"diversity": {}}), first, watch)
        assert torch.equal(found.advantages["video"], then.advantages["video"])
        turned = guarded(self.lines, job({"diversity": {}}), self.credit, watch)
        turned = guarded(self.lines, job({"direction_correction": correction}), turned, watch)
        assert not torch.allclose(found.advantages["video"], turned.advantages["video"])
        alone = guarded(self.lines, job({"gated_reference": gate}), self.credit, watch)
        assert torch.equal(found.anchored["video"], alone.anchored["video"])

    def test_movement_is_that_of_the_watch(self):
        spec = job({"direction_correction": {"features": ("luma",), "ridge": 1e-9}})
        watch = Watch(spec)
        assert watch.moves(feature_metrics(self.lines)) == {}
        before = guarded(self.lines, spec, self.credit, watch)
        assert torch.equal(before.advantages["video"], self.credit.advantages["video"])
        watch.see({"feature/luma/mean": 0.1, "feature/luma/std": 0.1})
        assert watch.moves(feature_metrics(self.lines)) == pytest.approx({"luma": 3.5})
        after = guarded(self.lines, spec, self.credit, watch)
        assert 0 < after.metrics["corrected/video"] < 1

    def test_every_feature_belongs_to_one_modality(self):
        assert sorted(name for names in FEATURES_OF.values() for name in names) == sorted(FEATURES)


@pytest.mark.parametrize(
    ("guards", "algorithm", "told"),
    [
        ({"reference_reset": {}}, {}, "nothing says when to reset"),
        ({"reference_reset": {"every": 2}}, {"name": "dgpo"}, "reference_reset: dgpo weighs samples by what the ref"),
        ({"reference_reset": {"every": 2}}, {"loss": {"reference_penalty": 0.0}}, "no penalty on the distance"),
        ({"reference_reset": {"above": 1.0}}, {"name": "flow_grpo", "preset": "dance_grpo"}, "so there is nothing to"),
        (
            {"gated_reference": {"auxiliaries": ("dynamic_degree",)}},
            {"loss": {"reference_penalty": 0.0}},
            "gated_reference: the loss of this omninft has no penalty",
        ),
        ({"direction_correction": {"features": ("hue",)}}, {}, "Input should be 'luma', 'contrast'"),
    ],
)
def test_a_guard_that_can_do_nothing_is_refused(guards, algorithm, told):
    with pytest.raises(ValueError, match=told):
        job(guards, {"name": "omninft", **algorithm})


def test_when_a_reset_is_due():
    def due(**fields):
        spec = job({"reference_reset": fields}).guards.reference_reset
        return [spec.due(step, distance) for step, distance in ((1, 0.0), (2, 0.1), (3, 0.3), (4, 0.2))]

    assert due(every=2) == [False, True, False, True]
    assert due(above=0.2) == [False, False, True, False]
    assert due(above=0.2, every=4) == [False, False, True, True]
