"""The denoising loop around stochastic steps, on a small random module: outside the window nothing changes."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from accord.backbones.base import Conditions, WatchesAttention
from accord.backbones.region import RegionCapture
from accord.config.forward import OmniNFTSpec
from accord.config.grpo import DynamicsSpec
from accord.diffusion.noise import group_noise, sample_noise
from accord.diffusion.solver import euler_step, log_density, sde_moments
from accord.errors import RolloutError
from accord.types import Fork, Prompt, RolloutPlan, RolloutRequest, StochasticSteps
from rollout_workers.sampler import denoise

SHAPES = {"video": (6, 4), "audio": (5, 3)}
SEEDS = [11, 12, 13]
SCHEDULE = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1, 0.0])
STEPS = 5
FLOW = DynamicsSpec()


class Backbone(nn.Module):
    """Both modalities see each other, as in a joint model."""

    modalities = ("video", "audio")
    device = "cpu"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.own = nn.ModuleDict({m: nn.Linear(channels, channels) for m, (_, channels) in SHAPES.items()})
        self.other = nn.ModuleDict({"video": nn.Linear(3, 4), "audio": nn.Linear(4, 3)})

    def sigmas(self, num_steps):
        return SCHEDULE

    def latent_shapes(self):
        return SHAPES

    def velocity(self, latents, sigmas, conditions):
        means = {m: x.mean(1, keepdim=True) for m, x in latents.items()}
        across = {"video": self.other["video"](means["audio"]), "audio": self.other["audio"](means["video"])}
        return {m: torch.tanh(self.own[m](x) + across[m]) * sigmas[m].view(-1, 1, 1) for m, x in latents.items()}


BACKBONE = Backbone()
PROMPT = Conditions({"text": torch.zeros(1, 1, 1)})


class OneBlock(nn.Module, WatchesAttention):
    """Shows as the attention of sample g the number g + 1 in every step."""

    depth = 1

    @contextmanager
    def watch_video_attention(self, blocks, sink):
        yield
        sink(torch.tensor([[1.0], [2.0], [3.0]]))


def sample(steps=(), seeds=SEEDS, dynamics=FLOW, start_seed=0, **more):
    stochastic = StochasticSteps(dynamics.kind, dynamics.eta, steps) if steps else None
    plan = RolloutPlan("old", STEPS, stochastic=stochastic, **more)
    found = denoise(BACKBONE, PROMPT, None, seeds, plan, start_seed=start_seed)
    transitions = found.transitions or {}
    return found.latents, {m: [torch.from_numpy(part) for part in parts(t)] for m, t in transitions.items()}


def parts(transitions):
    return transitions.before_KGTC, transitions.after_KGTC, transitions.log_prob_KG


@torch.no_grad()
def euler(latents, first: int, last: int):
    """The ODE from step `first` up to and without `last`."""
    for step in range(first, last):
        levels = dict.fromkeys(latents, SCHEDULE[step].expand(len(SEEDS)))
        velocity = BACKBONE.velocity(latents, levels, None)
        latents = {m: euler_step(x, velocity[m], SCHEDULE[step], SCHEDULE[step + 1]) for m, x in latents.items()}
    return latents


def start(seeds=SEEDS):
    return {m: group_noise(seeds, f"init/{m}", shape) for m, shape in SHAPES.items()}


def same(left, right) -> bool:
    return all(torch.equal(left[m], right[m]) for m in SHAPES)


def test_without_stochastic_steps_the_sampler_is_the_ode():
    expected = euler(start(), 0, STEPS)
    latents, recorded = sample(())
    assert same(latents, expected) and recorded == {}
    assert same(denoise(BACKBONE, PROMPT, None, SEEDS, RolloutPlan("old", STEPS)).latents, expected)


@pytest.mark.parametrize("window", [(0, 1), (1, 2), (3,)])
def test_outside_the_window_steps_are_eulers_bit_for_bit(window):
    latents, recorded = sample(window)
    before = {m: recorded[m][0][0] for m in SHAPES}
    after = {m: recorded[m][1][-1] for m in SHAPES}
    assert same(before, euler(start(), 0, window[0]))
    assert same(latents, euler(after, window[-1] + 1, STEPS))
    for m in SHAPES:
        assert torch.equal(recorded[m][1][:-1], recorded[m][0][1:])  # one step ends where the next begins
        assert recorded[m][2].shape == (len(window), len(SEEDS))


@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_a_stochastic_step_is_its_gaussian_with_noise_from_seed_and_step(kind):
    dynamics = DynamicsSpec(kind=kind, eta=0.5)
    _, recorded = sample((0, 2), dynamics=dynamics)
    for place, step in enumerate((0, 2)):
        before = {m: recorded[m][0][place] for m in SHAPES}
        levels = dict.fromkeys(before, SCHEDULE[step].expand(len(SEEDS)))
        with torch.no_grad():
            velocity = BACKBONE.velocity(before, levels, None)
        for m in SHAPES:
            mean, std = sde_moments(
                dynamics.kind, dynamics.eta, before[m], velocity[m], *SCHEDULE[step : step + 2].view(2, 1).expand(2, 3)
            )
            noise = torch.stack([sample_noise(seed, f"sde/{m}/{step}", SHAPES[m]) for seed in SEEDS])
            after = recorded[m][1][place]
            assert torch.equal(after, mean + std * noise)
            assert torch.equal(recorded[m][2][place], log_density(after, mean, std))


def test_a_samples_path_hangs_on_its_own_seed():
    window = (0, 1, 3)
    _, first = sample(window)
    _, again = sample(window)
    _, turned = sample(window, seeds=SEEDS[::-1])
    for m in SHAPES:
        assert all(torch.equal(*pair) for pair in zip(first[m], again[m], strict=True))
        torch.testing.assert_close(first[m][1], turned[m][1].flip(1))


def test_noise_differs_between_steps_and_modalities():
    drawn = {(m, step): sample_noise(11, f"sde/{m}/{step}", (8,)) for m in SHAPES for step in (0, 1)}
    values = [tuple(noise.tolist()) for noise in [*drawn.values(), sample_noise(11, "init/video", (8,))]]
    assert len(set(values)) == 5


def test_a_shared_start_leaves_the_stochastic_steps_to_tell_samples_apart():
    latents, recorded = sample((1,), initial_noise="shared", start_seed=77)
    for m in SHAPES:
        before, after, _ = (part[0] for part in recorded[m])
        assert all(torch.equal(before[0], row) for row in before)
        assert len({tuple(row.flatten().tolist()) for row in after}) == len(SEEDS)
        assert len({tuple(row.flatten().tolist()) for row in latents[m]}) == len(SEEDS)
    ode, _ = sample((), initial_noise="shared", start_seed=77)
    assert same(ode, euler(start([77] * 3), 0, STEPS))


def test_a_forked_sample_shares_its_parents_prefix_and_then_goes_its_own_way():
    window, forks = (0, 1, 2, 3), (Fork(sample=1, parent=0, step=2), Fork(sample=2, parent=1, step=3))
    _, alone = sample(window)
    latents, forked = sample(window, forks=forks)
    for m in SHAPES:
        for part, plain in zip(forked[m], alone[m], strict=True):
            assert torch.equal(part[:, 0], plain[:, 0]), "who forks changes nothing for its parent"
            assert torch.equal(part[:2, 1], part[:2, 0]) and torch.equal(part[:3, 2], part[:3, 1])
        before, after, _ = forked[m]
        assert torch.equal(before[2, 1], before[2, 0]) and torch.equal(before[3, 2], before[3, 1])
        assert not torch.equal(after[2, 1], after[2, 0]) and not torch.equal(after[3, 2], after[3, 1])
        assert len({tuple(row.flatten().tolist()) for row in latents[m]}) == len(SEEDS)


def test_a_fork_at_the_start_shares_the_noise():
    _, recorded = sample((0,), forks=(Fork(sample=2, parent=0, step=0),))
    for m in SHAPES:
        before, after, _ = (part[0] for part in recorded[m])
        assert torch.equal(before[2], sample_noise(SEEDS[0], f"init/{m}", SHAPES[m]))
        assert not torch.equal(after[2], after[0])


def test_a_forked_sample_takes_over_the_attention_that_was_read():
    capture = OmniNFTSpec().region.capture(1)
    region = RegionCapture(OneBlock(), replace(capture, first_step=0.0), STEPS)
    plan = RolloutPlan("old", STEPS, stochastic=StochasticSteps("flow", 0.7, (3,)), forks=(Fork(1, 0, 2),))
    denoise(BACKBONE, PROMPT, None, SEEDS, plan, region=region)
    first, forked, other = region.scores()[:, 0].tolist()
    assert (first, forked, other) == (1.0, pytest.approx((1.0 * 2 + 2.0 * 3) / 5), 3.0)


BAD_FORKS = {
    "itself": ((Fork(1, 1, 2),), "that is itself"),
    "unknown parent": ((Fork(1, 3, 2),), "the group has 3 samples, counted from 0"),
    "unknown sample": ((Fork(-1, 0, 2),), "the group has 3 samples"),
    "no such step": ((Fork(1, 0, 5),), "there are 5 steps, counted from 0"),
    "a parent that forks later": ((Fork(1, 0, 1), Fork(0, 2, 2)), "the parent itself forks at step 2"),
    "a parent that forks at once": ((Fork(1, 0, 1), Fork(0, 2, 1)), "a parent forks before its children"),
    "twice": ((Fork(1, 0, 1), Fork(1, 2, 2)), "forks more than once"),
    "nothing is drawn any more": ((Fork(1, 0, 4),), "no stochastic step follows"),
}


@pytest.mark.parametrize("case", BAD_FORKS)
def test_a_fork_without_a_place_in_its_group_is_refused(case):
    forks, message = BAD_FORKS[case]
    plan = RolloutPlan("old", STEPS, stochastic=StochasticSteps("flow", 0.7, (1, 2, 3)), forks=forks)
    with pytest.raises(RolloutError, match=message):
        RolloutRequest(1, 0, Prompt("p", "av", "v", "a"), tuple(SEEDS), 0, plan)
