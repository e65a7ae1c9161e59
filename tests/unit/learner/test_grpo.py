"""The clipped loss of stochastic steps against loops over plain floats, and what routed credit makes of it."""

import math

import pytest
import torch

from accord.config.algorithm_parts import OldPolicySpec
from accord.config.grpo import DynamicsSpec, FlowGRPOSpec, GRPOLossSpec
from accord.config.rewards.panel import SoundReward, TextVideoReward
from accord.types import Prompt, RewardScores, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.algorithms.base import Transition, TransitionBatch
from learner.algorithms.grpo import FlowGRPO, best_and_worst, grpo_loss

SIGMA, SIGMA_NEXT = [1.0, 0.8, 0.8, 0.5, 0.5, 0.2], [0.9, 0.6, 0.6, 0.3, 0.3, 0.1]
ADVANTAGE = [1.5, 1.5, -2.0, -2.0, 7.0, 0.0]
LOG_RATIO = [0.01, 0.3, 0.3, -0.3, -0.3, 0.1]
"""Of row b, against a clip range of 0.05: inside, clipped, not (wrong side), clipped, not, worth nothing."""
CLIPPED = [0, 1, 0, 1, 0, 0]
B = len(SIGMA)
SHAPES = {"video": (4, 2), "audio": (3, 3)}


def moments(dynamics: DynamicsSpec, x: float, v: float, b: int) -> tuple[float, float]:
    s, dt = SIGMA[b], SIGMA_NEXT[b] - SIGMA[b]
    rate = dynamics.eta * (math.sqrt(s / (1 - (s if s < 1 else SIGMA_NEXT[b]))) if dynamics.kind == "flow" else 1.0)
    return x * (1 + rate**2 / (2 * s) * dt) + v * (1 + rate**2 * (1 - s) / (2 * s)) * dt, rate * math.sqrt(-dt)


def each(tensor, b: int) -> list[float]:
    return tensor[b].flatten().tolist()


def log_prob(dynamics, before, after, velocity, b: int) -> float:
    total = 0.0
    for x, y, v in zip(each(before, b), each(after, b), each(velocity, b), strict=True):
        mean, std = moments(dynamics, x, v, b)
        total += -((y - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
    return total / before[b].numel()


def reference(spec: GRPOLossSpec, dynamics, before, after, velocity, ref, stored, b: int) -> tuple[float, float]:
    """Loss and divergence from the base of one item."""
    ratio = math.exp(log_prob(dynamics, before, after, velocity, b) - float(stored[b]))
    advantage = max(-spec.advantage_clip, min(spec.advantage_clip, ADVANTAGE[b]))
    bound = max(1 - spec.clip_range, min(1 + spec.clip_range, ratio))
    away = 0.0
    for x, v, base in zip(each(before, b), each(velocity, b), each(ref, b), strict=True):
        (mean, std), (base_mean, _) = moments(dynamics, x, v, b), moments(dynamics, x, base, b)
        variance = std**2 / (SIGMA[b] - SIGMA_NEXT[b] if spec.kl_variance == "rate" else 1)
        away += (mean - base_mean) ** 2 / (2 * variance)
    return max(-advantage * ratio, -advantage * bound), away / before[b].numel()


def setting(modality: str, dynamics: DynamicsSpec):
    """States, velocities and stored log-probabilities such that row b has the ratio exp(LOG_RATIO[b])."""
    generator = torch.Generator().manual_seed(len(modality) + SHAPES[modality][0])
    shape = (B, *SHAPES[modality])
    before, after, velocity, ref = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    ref = velocity + 0.1 * ref
    stored = [log_prob(dynamics, before, after, velocity, b) - LOG_RATIO[b] for b in range(B)]
    return before, after, velocity, ref, torch.tensor(stored, dtype=torch.float64)


def batch_of(dynamics: DynamicsSpec, advantages=None):
    transitions, policy, ref = {}, {}, {}
    levels = [torch.tensor(values, dtype=torch.float64) for values in (SIGMA, SIGMA_NEXT)]
    for modality in SHAPES:
        before, after, velocity, base, stored = setting(modality, dynamics)
        transitions[modality] = Transition(before, after, stored, *levels)
        policy[modality], ref[modality] = velocity.clone().requires_grad_(), base
    advantage = torch.tensor(ADVANTAGE, dtype=torch.float64)
    return TransitionBatch(transitions, advantages or dict.fromkeys(SHAPES, advantage)), {"policy": policy, "ref": ref}


FLOW, DANCE = DynamicsSpec(), DynamicsSpec(kind="dance", eta=0.4)
LOSS = GRPOLossSpec(clip_range=0.05, advantage_clip=5.0, kl_weight=0.3)


@pytest.mark.parametrize("dynamics", [FLOW, DANCE], ids=lambda spec: spec.kind)
@pytest.mark.parametrize(("reduction", "kl_variance"), [("mean", "rate"), ("sum", "step")])
def test_loss_and_gradient_equal_loops(dynamics, reduction, kl_variance):
    changed = LOSS.model_copy(update={"reduction": reduction, "kl_variance": kl_variance})
    spec = FlowGRPOSpec(dynamics=dynamics, loss=changed)
    batch, predictions = batch_of(dynamics)
    terms = FlowGRPO(spec).loss(batch, predictions)
    share = 0.5 if reduction == "mean" else 1.0
    expected = torch.zeros(B, dtype=torch.float64)
    for modality in SHAPES:
        before, after, velocity, ref, stored = setting(modality, dynamics)

        def total(moved, b, given=(before, after, ref, stored)):
            before, after, ref, stored = given
            loss, away = reference(changed, dynamics, before, after, moved, ref, stored, b)
            return share * (loss + LOSS.kl_weight * away)

        expected += torch.tensor([total(velocity, b) for b in range(B)], dtype=torch.float64)
        (found,) = torch.autograd.grad(terms.loss_B.sum(), predictions["policy"][modality], retain_graph=True)
        for b in range(B):
            for index in range(velocity[b].numel()):
                step = torch.zeros_like(velocity)
                step[b].view(-1)[index] = 1e-5
                slope = (total(velocity + step, b) - total(velocity - step, b)) / 2e-5
                assert float(found[b].flatten()[index]) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    torch.testing.assert_close(terms.loss_B, expected, rtol=1e-6, atol=1e-12)


def test_the_clip_takes_the_gradient_away_where_it_would_go_further():
    batch, predictions = batch_of(FLOW)
    terms = FlowGRPO(FlowGRPOSpec(loss=LOSS)).loss(batch, predictions)
    assert terms.metrics_B["clipped/video"].tolist() == terms.metrics_B["clipped/audio"].tolist() == CLIPPED
    free = FlowGRPO(FlowGRPOSpec(loss=LOSS.model_copy(update={"kl_weight": 0.0}))).loss(batch, predictions)
    (grad,) = torch.autograd.grad(free.loss_B.sum(), predictions["policy"]["video"])
    moving = grad.abs().amax((1, 2)) > 0
    assert moving.tolist() == [True, False, True, False, True, False]


def test_metrics_say_how_far_the_policy_is_from_the_one_that_sampled():
    batch, predictions = batch_of(FLOW)
    terms = FlowGRPO(FlowGRPOSpec(loss=LOSS)).loss(batch, predictions)
    expected = torch.tensor(LOG_RATIO, dtype=torch.float64)
    for m in SHAPES:
        torch.testing.assert_close(terms.metrics_B[f"ratio/{m}"], expected.exp())
        torch.testing.assert_close(terms.metrics_B[f"kl/{m}"], expected**2 / 2)
    assert all(value.shape == (B,) and not value.requires_grad for value in terms.metrics_B.values())
    names = {f"{name}/{m}" for name in ("loss", "ratio", "clipped", "kl", "loss/reference") for m in SHAPES}
    assert set(terms.metrics_B) == names | {"loss/total"}


@pytest.mark.parametrize(
    ("levels", "released"),
    # g = 0.7 sqrt(0.8 / 0.2) = 1.4, so g^2 = 1.96, and the means differ by (1 + 1.96 * 0.2 / 1.6) * -0.2 = -0.249 where
    # the velocities differ by 1: 0.249^2 / (2 * 1.96). At sigma 1: g^2 = 0.49 * 1 / 0.1 = 4.9 and -0.1: 0.01 / 9.8.
    [((0.8, 0.6), 0.015816582), ((1.0, 0.9), 0.0010204082)],
)
def test_the_released_weight_meets_the_divergence_it_was_chosen_for(levels, released):
    sigma, sigma_next = (torch.tensor([level], dtype=torch.float64) for level in levels)
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    transition = Transition(zero, zero, torch.zeros(1, dtype=torch.float64), sigma, sigma_next)
    advantage = torch.zeros(1, dtype=torch.float64)

    def divergence(**chosen) -> float:
        return float(grpo_loss(GRPOLossSpec(**chosen), FLOW, transition, zero + 1, zero, advantage)["reference"])

    assert FlowGRPOSpec().loss.kl_weight == 0.04 and divergence() == pytest.approx(released, rel=1e-6)
    assert divergence(kl_variance="step") == pytest.approx(released / (levels[0] - levels[1]), rel=1e-6)


def test_the_base_is_read_only_where_it_has_a_weight():
    assert FlowGRPO(FlowGRPOSpec(loss=LOSS)).anchors == ("ref",)
    algorithm = FlowGRPO(FlowGRPOSpec(loss=GRPOLossSpec(kl_weight=0.0)))
    assert algorithm.anchors == ()
    batch, predictions = batch_of(FLOW)
    terms = algorithm.loss(batch, {"policy": predictions["policy"]})
    assert "loss/reference/video" not in terms.metrics_B


def test_half_precision_velocities_are_not_rounded_again():
    before, after, velocity, ref, stored = (part.float() for part in setting("video", FLOW))
    transition = Transition(before, after, stored, torch.tensor(SIGMA), torch.tensor(SIGMA_NEXT))
    half, base, advantage = velocity.bfloat16(), ref.bfloat16(), torch.tensor(ADVANTAGE)
    loose = grpo_loss(LOSS, FLOW, transition, half, base, advantage)
    exact = grpo_loss(LOSS, FLOW, transition, half.float(), base.float(), advantage)
    assert loose["loss"].dtype == torch.float32
    assert all(torch.equal(loose[name], exact[name]) for name in loose)


def scored(values: dict[str, tuple[float, ...]]) -> ScoredGroup:
    request = RolloutRequest(1, 0, Prompt("p", "av", "v", "a"), tuple(range(B)), 0, RolloutPlan("old", 8))
    scores = {name: RewardScores(name, "1", row, ("ok",) * B) for name, row in values.items()}
    return ScoredGroup(SampleGroup(request, 0, None, None), scores)


def test_a_reward_of_the_sound_gives_the_pictures_log_probability_no_weight():
    rewards = [SoundReward(name="sound"), TextVideoReward(name="text_video", weight=0.0)]
    algorithm = FlowGRPO(FlowGRPOSpec(loss=GRPOLossSpec(kl_weight=0.0, clip_range=0.5)))
    group = scored({"sound": (0.1, 0.9, 0.3, 0.5, 0.2, 0.4), "text_video": (0.3, 0.1, 0.8, 0.2, 0.9, 0.5)})
    credit = algorithm.credit([group], rewards, ("video", "audio"))
    advantages = {modality: value[0] for modality, value in credit.advantages.items()}
    batch, predictions = batch_of(FLOW, advantages)
    loss = algorithm.loss(batch, predictions).loss_B.sum()
    video, audio = torch.autograd.grad(loss, [predictions["policy"][m] for m in ("video", "audio")])
    assert not video.any()
    assert audio.abs().amax((1, 2)).min() > 0


def test_by_default_the_policy_itself_samples_the_next_step():
    assert [FlowGRPO(FlowGRPOSpec()).eta(step) for step in (1, 10, 1000)] == [0.0, 0.0, 0.0]
    slow = FlowGRPO(FlowGRPOSpec.model_validate({"old_policy": {"start": 0.1, "rate": 0.01}}))
    assert [slow.eta(step) for step in (1, 10, 400)] == pytest.approx([0.11, 0.2, 0.5])


def test_the_best_and_the_worst_of_a_group_are_trained():
    group = torch.tensor([[0.5, -1.0, 2.0, 0.1, -0.2, -2.0, 0.3, 0.3], [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0, 0.0]])
    half = [[0.5, -1.0, 2.0, 0, 0, -2.0, 0, 0], [0, 1.0, 1.0, -1.0, -1.0, 0, 0, 0]]
    assert torch.equal(best_and_worst(group, 0.5), torch.tensor(half))
    assert best_and_worst(group, 0.01)[0].tolist() == [0, 0, 2.0, 0, 0, -2.0, 0, 0]  # one of each at least
    assert torch.equal(best_and_worst(group, 1.0), group)
    assert torch.equal(best_and_worst(group[:, :3], 1.0), group[:, :3])
    dance = FlowGRPOSpec.model_validate({"preset": "dance_grpo"})  # of 24 clips its script trains 8
    assert (best_and_worst(torch.arange(24.0)[None] - 11.5, dance.trained_share) != 0).sum() == 8


def test_only_the_recipe_that_selects_selects():
    rewards = [TextVideoReward(name="text_video"), SoundReward(name="sound")]
    values = (0.1, 0.9, 0.3, 0.5, 0.2, 0.4)
    group = scored({"sound": values, "text_video": values[::-1]})
    for preset, trained in (("flow_grpo", 6), ("dance_grpo", 2)):
        credit = FlowGRPO(FlowGRPOSpec.model_validate({"preset": preset})).credit([group], rewards, ("video", "audio"))
        assert [int((credit.advantages[m] != 0).sum()) for m in ("video", "audio")] == [trained, trained]


def test_a_delayed_old_policy_copies_until_its_step():
    spec = OldPolicySpec(delay=75, rate=0.0075, maximum=0.999)
    assert [spec.share(step) for step in (1, 74, 75, 76, 175, 1000)] == pytest.approx([0, 0, 0, 0.0075, 0.75, 0.999])
    started = OldPolicySpec(delay=3, start=0.2, rate=0.1)
    assert [started.share(step) for step in (2, 3, 4)] == pytest.approx([0.0, 0.2, 0.3])
