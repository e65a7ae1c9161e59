"""AWM, CRD, Flow-RWR and DGPO: losses and gradients against loops over plain floats, written from the equations."""

import math

import pytest
import torch

from accord.config.algorithm_parts import CreditSpec, OldPolicySpec
from accord.config.forward import (
    AWMLossSpec,
    AWMSpec,
    CRDLossSpec,
    CRDSpec,
    DGPOLossSpec,
    DGPOSpec,
    FlowRWRSpec,
    MatchingSpec,
)
from accord.config.rewards.panel import SoundReward, TextVideoReward
from accord.types import Prompt, RewardScores, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.algorithms.awm import AWM, awm_loss
from learner.algorithms.base import ForwardBatch, Noised
from learner.algorithms.crd import CRD, crd_loss
from learner.algorithms.dgpo import DGPO, dgpo_loss
from learner.algorithms.rwr import FlowRWR, group_weights, rwr_loss

G, T, C = 3, 4, 2
B = 2 * G
ADVANTAGE = (1.3, -0.4, -7.0, 0.0, 2.5, -2.5)


def setting(seed: int = 0, far: float = 1.0):
    """Noised clips, three velocities, advantages, token weights; `far` scales policy - old."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise, drawn, old, ref = (torch.randn(B, T, C, generator=generator, dtype=torch.float64) for _ in range(5))
    policy = old + far * (drawn - old)
    sigma = torch.tensor([0.2, 0.2, 0.2, 0.7, 0.7, 0.7], dtype=torch.float64)
    weights = 1 + torch.rand(B, T, generator=generator, dtype=torch.float64)
    return Noised(x0, noise, sigma), policy, old, ref, torch.tensor(ADVANTAGE, dtype=torch.float64), weights


class Loops:
    """One modality, number by number: the error of a velocity, its normaliser, and the error's derivative."""

    def __init__(self, noised, space, weights) -> None:
        self.x0, self.noise, self.sigma = noised.x0_BTC.tolist(), noised.noise_BTC.tolist(), noised.sigma_B.tolist()
        self.space, self.weights = space, None if weights is None else weights.tolist()

    def gap(self, b, t, c, v):
        """How far the prediction is from the sample: x0hat against x0, or the velocity against eps - x0."""
        x0, eps, s = self.x0[b][t][c], self.noise[b][t][c], self.sigma[b]
        return x0 - ((1 - s) * x0 + s * eps - s * v) if self.space == "x0" else v - (eps - x0)

    def share(self, b, t):
        return 1 / T if self.weights is None else self.weights[b][t] / sum(self.weights[b])

    def error(self, b, v):
        return sum(self.share(b, t) * sum(self.gap(b, t, c, v[t][c]) ** 2 for c in range(C)) / C for t in range(T))

    def size(self, b, v):
        return max(sum(abs(self.gap(b, t, c, v[t][c])) for t in range(T) for c in range(C)) / (T * C), 1e-5)

    def slope(self, b, v):
        """The derivative of the error by every element of the velocity."""
        s = self.sigma[b] if self.space == "x0" else 1.0
        return [[2 * s * self.share(b, t) * self.gap(b, t, c, v[t][c]) / C for c in range(C)] for t in range(T)]


def cut(value, low, high):
    return max(low, min(high, value))


def awm_loops(spec, loops, policy, old, advantage):
    """Losses and, per sample, the factor on the error's slope."""
    losses, factors = [], []
    for b in range(B):
        rho = math.exp(loops.error(b, old[b]) - loops.error(b, policy[b]))
        a = cut(advantage[b], -spec.advantage_clip, spec.advantage_clip)
        free, bound = -a * rho, -a * cut(rho, 1 - spec.clip_range, 1 + spec.clip_range)
        losses.append(max(free, bound))
        factors.append(a * rho if free >= bound else 0.0)
    return losses, factors


def crd_loops(spec, loops, policy, old, advantage):
    losses, factors, k = [0.0] * B, [0.0] * B, spec.advantage_clip / spec.beta
    for group in (range(G), range(G, B)):
        size = {b: 1.0 if spec.normaliser == "none" else loops.size(b, policy[b]) for b in group}
        old_size = {b: 1.0 if spec.normaliser == "none" else loops.size(b, old[b]) for b in group}
        gain = {b: loops.error(b, old[b]) / old_size[b] - loops.error(b, policy[b]) / size[b] for b in group}
        reward = {b: 0.5 + 0.5 * cut(advantage[b] / spec.advantage_clip, -1, 1) for b in group}
        z = {b: spec.beta * (gain[b] - sum(gain.values()) / G) for b in group}
        slope = {}
        for b in group:
            if spec.regression == "square":
                away = z[b] - (reward[b] - sum(reward.values()) / G)
                losses[b], slope[b] = k * away**2, 2 * k * away
            else:
                p = 1 / (1 + math.exp(-z[b]))
                losses[b] = -k * (reward[b] * math.log(p) + (1 - reward[b]) * math.log(1 - p))
                slope[b] = k * (p - reward[b])
        for b in group:
            factors[b] = -spec.beta * (slope[b] - sum(slope.values()) / G) / size[b]
    return losses, factors


def dgpo_loops(spec, loops, policy, ref, advantage):
    losses, factors = [], []
    for group in (range(G), range(G, B)):
        a = {b: cut(advantage[b], -spec.advantage_clip, spec.advantage_clip) for b in group}
        z = spec.beta / G * sum(a[b] * (loops.error(b, policy[b]) - loops.error(b, ref[b])) for b in group)
        g = 1 / (1 + math.exp(-z))
        losses += [g * a[b] * loops.error(b, policy[b]) for b in group]
        factors += [g * a[b] for b in group]
    return losses, factors


def assert_equals_loops(loss_of, policy, loops, expected, extra=lambda b, t, c: 0.0) -> None:
    """Values and gradient of the summed loss to 1e-6."""
    losses, factors = expected
    leaf = policy.clone().requires_grad_()
    loss = loss_of(leaf)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(loss.detach(), torch.tensor(losses, dtype=torch.float64), rtol=1e-6, atol=1e-12)
    slopes = [loops.slope(b, policy[b].tolist()) for b in range(B)]
    wanted = [
        [[factors[b] * slopes[b][t][c] + extra(b, t, c) for c in range(C)] for t in range(T)] for b in range(B)
    ]  # fmt: skip
    torch.testing.assert_close(grad, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-12)
    assert grad.abs().max() > 1e-3


@pytest.mark.parametrize("space", ["x0", "velocity"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("clip_range", [1e-3, 0.2])
def test_awm_equals_loops(space, weighted, clip_range):
    spec = AWMLossSpec(space=space, clip_range=clip_range, advantage_clip=2.0, old_penalty=0.3)
    noised, policy, old, _, advantage, weights = setting(far=0.1)
    weights = weights if weighted else None
    loops = Loops(noised, space, weights)
    losses, factors = awm_loops(spec, loops, policy.tolist(), old.tolist(), advantage.tolist())
    assert 0.0 in factors and len(set(factors)) > 3  # some ratios are cut, others not
    seen = awm_loss(spec, noised, policy, old, advantage, weights)
    cut_off = [float(factor == 0 and a != 0) for factor, a in zip(factors, advantage.tolist(), strict=True)]
    assert seen["clipped"].tolist() == cut_off
    ratios = [math.exp(loops.error(b, old[b].tolist()) - loops.error(b, policy[b].tolist())) for b in range(B)]
    assert seen["ratio"].tolist() == pytest.approx(ratios)

    def away(b, t, c):
        return float(policy[b, t, c] - old[b, t, c])

    losses = [
        losses[b] + 0.3 * sum(away(b, t, c) ** 2 for t in range(T) for c in range(C)) / (T * C) for b in range(B)
    ]  # fmt: skip
    assert_equals_loops(
        lambda leaf: awm_loss(spec, noised, leaf, old, advantage, weights)["loss"], policy, loops, (losses, factors),
        extra=lambda b, t, c: 0.3 * 2 * away(b, t, c) / (T * C),
    )  # fmt: skip


@pytest.mark.parametrize("space", ["x0", "velocity"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("normaliser", ["detached", "none"])
@pytest.mark.parametrize("regression", ["square", "bce"])
def test_crd_equals_loops(space, weighted, normaliser, regression):
    spec = CRDLossSpec(space=space, normaliser=normaliser, regression=regression, beta=0.7, advantage_clip=4.0)
    noised, policy, old, _, advantage, weights = setting()
    weights = weights if weighted else None
    loops = Loops(noised, space, weights)
    expected = crd_loops(spec, loops, policy.tolist(), old.tolist(), advantage.tolist())
    assert_equals_loops(
        lambda leaf: crd_loss(spec, noised, leaf, old, advantage, G, weights)["loss"], policy, loops, expected
    )


@pytest.mark.parametrize("space", ["x0", "velocity"])
@pytest.mark.parametrize("weighted", [True, False])
def test_rwr_equals_loops(space, weighted):
    noised, policy, _, _, _, weights = setting()
    weights = weights if weighted else None
    factors = [0.0, 1.7, 0.2, 1.0, 2.9, 0.5]
    loops = Loops(noised, space, weights)
    losses = [w * loops.error(b, policy[b].tolist()) for b, w in enumerate(factors)]
    weight = torch.tensor(factors, dtype=torch.float64)
    assert_equals_loops(
        lambda leaf: rwr_loss(MatchingSpec(space=space), noised, leaf, weight, weights), policy, loops,
        (losses, factors),
    )  # fmt: skip


@pytest.mark.parametrize("space", ["x0", "velocity"])
@pytest.mark.parametrize("weighted", [True, False])
def test_dgpo_equals_loops(space, weighted):
    spec = DGPOLossSpec(space=space, beta=0.8, advantage_clip=3.0)
    noised, policy, _, ref, advantage, weights = setting()
    weights = weights if weighted else None
    loops = Loops(noised, space, weights)
    expected = dgpo_loops(spec, loops, policy.tolist(), ref.tolist(), advantage.tolist())
    assert_equals_loops(
        lambda leaf: dgpo_loss(spec, noised, leaf, ref, advantage, G, weights)["loss"], policy, loops, expected
    )


# ---- what the equations promise -----------------------------------------------------------------------------------


def after_a_step(loss_of, policy, loops):
    """Errors [B] before and after a small step down the gradient of the summed loss."""
    leaf = policy.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(leaf).sum(), leaf)
    moved = policy - 1e-3 * grad
    return [(loops.error(b, policy[b].tolist()), loops.error(b, moved[b].tolist())) for b in range(B)]


@pytest.mark.parametrize("recipe", ["awm", "crd", "dgpo"])
def test_on_policy_better_samples_are_matched_better_and_worse_ones_worse(recipe):
    noised, _, old, _, _, _ = setting()
    advantage = torch.tensor([1.0, -1.0, 0.0, 2.0, -0.5, -1.5], dtype=torch.float64)
    loss_of = {
        "awm": lambda leaf: awm_loss(AWMLossSpec(), noised, leaf, old, advantage)["loss"],
        "crd": lambda leaf: crd_loss(CRDLossSpec(), noised, leaf, old, advantage, G)["loss"],
        "dgpo": lambda leaf: dgpo_loss(DGPOLossSpec(), noised, leaf, old, advantage, G)["loss"],
    }[recipe]
    space = "x0" if recipe == "crd" else "velocity"
    for a, (before, after) in zip(
        advantage.tolist(), after_a_step(loss_of, old, Loops(noised, space, None)), strict=True
    ):
        assert math.copysign(1, before - after) == math.copysign(1, a) if a else before == pytest.approx(after)


def test_on_policy_rwr_matches_all_and_better_samples_more():
    noised, _, old, _, advantage, _ = setting()
    weight = group_weights(advantage.view(2, G), torch.ones(2, G, dtype=torch.bool), 1.0).flatten()
    moved = after_a_step(
        lambda leaf: rwr_loss(MatchingSpec(), noised, leaf, weight), old, Loops(noised, "velocity", None)
    )
    gained = [1 - after / before for before, after in moved]
    assert min(gained) > 0
    for group in (slice(0, G), slice(G, B)):
        order = sorted(range(G), key=advantage[group].tolist().__getitem__)
        assert [gained[group][i] for i in order] == sorted(gained[group])


def test_on_policy_gradients_are_the_advantage_times_that_of_matching():
    """AWM exactly; CRD after centring and normalisation; DGPO by half, since nothing is told apart yet."""
    noised, _, old, _, _, _ = setting()
    advantage = torch.tensor([1.0, -1.0, 0.0, 2.0, -0.5, -1.5], dtype=torch.float64)
    leaf = old.clone().requires_grad_()
    error = (leaf - noised.target_BTC).square().mean((1, 2))
    (matching,) = torch.autograd.grad((advantage * error).sum(), leaf)
    plain = {"space": "velocity", "normaliser": "none"}
    for factor, loss in (
        (1.0, awm_loss(AWMLossSpec(), noised, leaf, old, advantage)["loss"]),
        (1.0, crd_loss(CRDLossSpec(**plain, beta=0.3), noised, leaf, old, advantage, G)["loss"]),
        (0.5, crd_loss(CRDLossSpec(**plain, regression="bce"), noised, leaf, old, advantage, G)["loss"]),
        (0.5, dgpo_loss(DGPOLossSpec(), noised, leaf, old, advantage, G)["loss"]),
    ):
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        torch.testing.assert_close(grad, factor * matching, rtol=1e-9, atol=1e-14)


def test_zero_credit_awm_and_dgpo_add_nothing():
    noised, policy, old, ref, advantage, _ = setting(far=0.1)
    assert advantage[3] == 0
    moved = policy.clone()
    moved[3] += 1.0
    for loss_of in (
        lambda leaf: awm_loss(AWMLossSpec(clip_range=0.9), noised, leaf, old, advantage)["loss"],
        lambda leaf: dgpo_loss(DGPOLossSpec(), noised, leaf, ref, advantage, G)["loss"],
    ):
        leaf = policy.clone().requires_grad_()
        loss = loss_of(leaf)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert loss[3] == 0 and grad[3].abs().max() == 0 and grad[4].abs().max() > 0
        assert torch.equal(loss_of(moved), loss)  # the others do not see it either


def test_zero_credit_crd_is_held_to_the_average_gain():
    noised, policy, old, _, _, _ = setting()
    spec = CRDLossSpec(space="velocity", normaliser="none")
    zero = torch.zeros(B, dtype=torch.float64)
    leaf = old.clone().requires_grad_()
    (grad,) = torch.autograd.grad(crd_loss(spec, noised, leaf, old, zero, G)["loss"].sum(), leaf)
    assert grad.abs().max() < 1e-12
    loops = Loops(noised, "velocity", None)
    gain = [loops.error(b, old[b].tolist()) - loops.error(b, policy[b].tolist()) for b in range(B)]
    means = [sum(gain[:G]) / G] * G + [sum(gain[G:]) / G] * G
    loss = crd_loss(spec, noised, policy, old, zero, G)["loss"]
    assert loss.tolist() == pytest.approx([5.0 * (g - m) ** 2 for g, m in zip(gain, means, strict=True)])


def test_crd_penalty_grows_with_the_reward_above_its_floor():
    noised, policy, old, _, _, _ = setting()
    advantage = torch.tensor([-5.0, 0.0, 5.0] * 2, dtype=torch.float64)
    for floor, expected in ((1.0, [1.0, 1.0, 1.0]), (0.2, [0.2, 0.6, 1.0]), (0.0, [0.0, 0.5, 1.0])):
        terms = crd_loss(CRDLossSpec(penalty_floor=floor), noised, policy, old, advantage, G)
        assert terms["reference_factor"].tolist() == pytest.approx(expected * 2)


def test_dgpo_rests_once_a_group_is_told_apart():
    noised, _, _, ref, _, _ = setting()
    advantage = torch.tensor([1.0, 0.0, -1.0] * 2, dtype=torch.float64)
    target, towards = noised.target_BTC, advantage.view(-1, 1, 1)
    shares = [
        dgpo_loss(DGPOLossSpec(beta=50.0), noised, ref + step * towards * (target - ref), ref, advantage, G)[
            "undecided"
        ].max()
        for step in (-0.2, 0.0, 0.2)
    ]
    assert shares[0] > 0.99 and shares[1] == 0.5 and shares[2] < 0.01


# ---- credit of Flow-RWR -------------------------------------------------------------------------------------------

REWARDS = (TextVideoReward(), SoundReward())


def scored(values) -> list[ScoredGroup]:
    """Groups from {reward: [P][G] values, None = invalid}."""
    groups = []
    for p in range(len(values["text_video"])):
        scores = {
            name: RewardScores(
                name, "1", tuple(math.nan if v is None else v for v in rows[p]),
                tuple("ok" if v is not None else "timeout" for v in rows[p]),
            )
            for name, rows in values.items()
        }  # fmt: skip
        request = RolloutRequest(1, p, Prompt(f"p{p}", "av", "v", "a"), (0, 1, 2), 0, RolloutPlan("old", 8))
        groups.append(ScoredGroup(SampleGroup(request, 0, None, None), scores))
    return groups


def test_rwr_credit_is_a_softmax_over_those_who_earned_it():
    values = {
        "text_video": [[0.0, 2.0, 1.0], [1.0, None, 3.0], [2.0, 2.0, 2.0]],
        "sound": [[5.0, 5.0, 5.0], [0.0, 1.0, 0.0], [None, 4.0, None]],
    }
    spec = FlowRWRSpec(temperature=0.5, credit=CreditSpec(mode="routed", std="prompt", epsilon=1e-9))
    credit = FlowRWR(spec).credit(scored(values), REWARDS, ("video", "audio"))

    def weights(row):
        """By hand: normalise, exponentiate, share out, times the number of samples that have a score."""
        known = [v for v in row if v is not None]
        mean = sum(known) / len(known)
        std = math.sqrt(sum((v - mean) ** 2 for v in known) / len(known))
        powers = [0.0 if v is None else math.exp((v - mean) / std / 0.5) for v in row]
        return [len(known) * power / sum(powers) for power in powers]

    expected = {
        "video": [weights([0.0, 2.0, 1.0]), weights([1.0, None, 3.0]), [0.0] * 3],
        "audio": [[0.0] * 3, weights([0.0, 1.0, 0.0]), [0.0] * 3],
    }
    for modality, rows in expected.items():
        wanted = torch.tensor(rows, dtype=torch.float64)
        torch.testing.assert_close(credit.advantages[modality], wanted, rtol=1e-6, atol=1e-9)
        assert credit.metrics[f"weight/{modality}/max"] == pytest.approx(float(wanted.max()))
    assert 0 < credit.advantages["video"][0, 2] < 1  # A = 0 and earned: average, with a weight below 1
    assert credit.metrics["advantage/video/std"] > 0


# ---- the algorithms around the losses -----------------------------------------------------------------------------

RECIPES = {
    "awm": (AWM, AWMSpec, AWMLossSpec, ("old", "ref")),
    "crd": (CRD, CRDSpec, CRDLossSpec, ("old", "ref")),
    "flow_rwr": (FlowRWR, FlowRWRSpec, MatchingSpec, ("ref",)),
    "dgpo": (DGPO, DGPOSpec, DGPOLossSpec, ("ref",)),
}


def one_loss(recipe, spec, noised, policy, old, ref, advantage, weights):
    """The loss of one modality and the factor of its penalty."""
    if recipe == "awm":
        return awm_loss(spec, noised, policy, old, advantage, weights)["loss"], 1.0
    if recipe == "crd":
        terms = crd_loss(spec, noised, policy, old, advantage, G, weights)
        return terms["loss"], terms["reference_factor"]
    if recipe == "dgpo":
        return dgpo_loss(spec, noised, policy, ref, advantage, G, weights)["loss"], 1.0
    return rwr_loss(spec, noised, policy, advantage, weights), 1.0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_modalities_have_their_own_credit_and_combine(recipe, reduction):
    kind, spec_kind, loss_kind, anchors = RECIPES[recipe]
    extra = {"penalty_floor": 0.2} if recipe == "crd" else {}
    loss_spec = loss_kind(reduction=reduction, reference_penalty=0.1, reference_space="x0", **extra)
    algorithm = kind(spec_kind(loss=loss_spec))
    assert algorithm.anchors == anchors
    parts = {"video": setting(1, far=0.1), "audio": setting(2, far=0.1)}
    advantages = {"video": parts["video"][4], "audio": -parts["audio"][4].roll(1)}
    batch = ForwardBatch({m: p[0] for m, p in parts.items()}, advantages, {"video": parts["video"][5]}, G)
    roles = {"policy": 1, "old": 2, "ref": 3}
    predictions = {role: {m: p[roles[role]] for m, p in parts.items()} for role in ("policy", *anchors)}
    terms = algorithm.loss(batch, predictions)
    total = torch.zeros(B, dtype=torch.float64)
    for modality, (noised, policy, old, ref, _, weights) in parts.items():
        weights = weights if modality == "video" else None
        loss, factor = one_loss(recipe, loss_spec, noised, policy, old, ref, advantages[modality], weights)
        torch.testing.assert_close(terms.metrics_B[f"loss/{modality}"], loss)
        away = (noised.sigma_B.view(-1, 1, 1) * (policy - ref)).square().mean((1, 2))
        torch.testing.assert_close(terms.metrics_B[f"loss/reference/{modality}"], away)
        total += loss + 0.1 * factor * away
    torch.testing.assert_close(terms.loss_B, total / (2 if reduction == "mean" else 1))
    if "old" in anchors:
        apart = [(p[1] - p[2]).square().mean((1, 2)) for p in parts.values()]
        torch.testing.assert_close(terms.metrics_B["old_policy/distance"], (apart[0] + apart[1]) / 2)
    assert ("old_policy/distance" in terms.metrics_B) == ("old" in anchors)
    weights = parts["video"][5]
    assert torch.equal(terms.metrics_B["region/max"], weights.amax(1))
    assert torch.equal(terms.metrics_B["region/min"], weights.amin(1))
    assert all(not value.requires_grad and value.shape == (B,) for value in terms.metrics_B.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_switches_and_schedule(recipe):
    kind, spec_kind, loss_kind, anchors = RECIPES[recipe]
    needed = tuple(role for role in anchors if role == "old" or recipe == "dgpo")
    assert kind(spec_kind(loss=loss_kind(reference_penalty=0.0))).anchors == needed
    plain = kind(spec_kind())
    assert plain.surgery is None and plain.region is None
    both = kind(spec_kind.model_validate({"surgery": {"enabled": True}, "region": {"enabled": True}}))
    assert both.surgery is not None and both.region is not None
    algorithm = kind(spec_kind(old_policy=OldPolicySpec(start=0.1, rate=0.01, maximum=0.5)))
    assert [algorithm.eta(step) for step in (1, 40, 400)] == pytest.approx([0.11, 0.5, 0.5])


@pytest.mark.parametrize("recipe", RECIPES)
def test_half_precision_predictions_are_widened_first(recipe):
    kind, spec_kind, _, anchors = RECIPES[recipe]
    algorithm = kind(spec_kind())
    noised, policy, old, ref, advantage, _ = setting(far=0.1)
    narrow = Noised(noised.x0_BTC.float(), noised.noise_BTC.float(), noised.sigma_B.float())
    batch = ForwardBatch({"video": narrow}, {"video": advantage.float()}, {}, G)
    half = {
        role: {"video": value.bfloat16()}
        for role, value in (("policy", policy), ("old", old), ("ref", ref))
        if role in ("policy", *anchors)
    }
    exact = {role: {"video": value["video"].float()} for role, value in half.items()}
    loose = algorithm.loss(batch, half).loss_B
    assert loose.dtype == torch.float32 and torch.equal(loose, algorithm.loss(batch, exact).loss_B)
