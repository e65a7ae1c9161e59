import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.backbones.ltx2.model import exact_sigmas
from accord.backbones.ltx2.schedule import ScheduleConfig, sigma_schedule
from accord.config.algorithm_parts import SigmaSpec
from accord.diffusion.noise import group_noise, sample_noise
from accord.diffusion.solver import clean_estimate, euler_step, noised
from accord.errors import ModelError

LTX2 = {
    "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
    "max_image_seq_len": 4096, "shift_terminal": 0.1, "time_shift_type": "exponential",
}  # fmt: skip


BITS = [1065353216, 1063963066, 1062397790, 1060622064, 1058590397, 1055521692, 1050036602, 1036831952, 0]


def theirs(config: dict, num_steps: int, tokens: int, mu: float | None = None) -> np.ndarray:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    if mu is None:
        mu = calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
    scheduler.set_timesteps(num_steps, sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    return scheduler.sigmas.numpy()


@settings(max_examples=60, deadline=None)
@given(num_steps=st.integers(2, 60), tokens=st.integers(1, 20_000), kind=st.sampled_from(["exponential", "linear"]))
def test_schedule_equals_diffusers_bit_for_bit(num_steps, tokens, kind):
    config = {**LTX2, "time_shift_type": kind}
    np.testing.assert_array_equal(exact_sigmas(config, num_steps, tokens).numpy(), theirs(config, num_steps, tokens))


@pytest.mark.parametrize("config", [{"shift": 3.0}, {"shift": 1.7, "shift_terminal": 0.05}, {}])
def test_static_shift_equals_diffusers(config):
    np.testing.assert_array_equal(exact_sigmas(config, 12, 64).numpy(), theirs(config, 12, 64))


def test_shift_of_the_job_replaces_mu():
    np.testing.assert_array_equal(exact_sigmas(LTX2, 8, 28, shift=1.5).numpy(), theirs(LTX2, 8, 28, mu=1.5))
    np.testing.assert_array_equal(exact_sigmas({}, 8, 28, shift=1.5).numpy(), theirs({"shift": 1.5}, 8, 28))


CONFIGS = [
    LTX2, {**LTX2, "time_shift_type": "linear"}, {**LTX2, "shift_terminal": None}, {"shift": 3.0},
    {"shift": 1.7, "shift_terminal": 0.05}, {},
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_the_light_schedule_is_the_schedulers_but_for_rounding(config):
    for num_steps in range(1, 61):
        for tokens, shift in ((1, None), (28, None), (4096, None), (64, 0.5), (64, 2.05), (1024, 3.0)):
            exact = exact_sigmas(config, num_steps, tokens, shift)
            light = sigma_schedule(ScheduleConfig.parse(config), num_steps, tokens, shift)
            assert exact.dtype == torch.float32 and exact.shape == (num_steps + 1,)
            assert exact[0] == light[0] == 1.0 and exact[-1] == light[-1] == 0.0
            np.testing.assert_allclose(light, exact.numpy(), rtol=0, atol=5e-7)


def test_the_default_schedule_keeps_its_bits():
    """Of the job that ships as an example: eight steps over the 28 tokens of a clip."""
    bits = exact_sigmas(LTX2, 8, 28).numpy().view(np.uint32).tolist()
    assert bits == BITS


def test_published_values_of_the_twenty_step_schedule():
    schedule = sigma_schedule(ScheduleConfig.parse(LTX2), 20, 4096)
    assert [round(s, 4) for s in schedule[:4]] == [1.0, 0.9915, 0.9821, 0.9718]
    assert schedule[-2:] == (pytest.approx(0.1), 0.0)
    assert len(SigmaSpec(low=0.915).trained(schedule)) == 8
    assert len(SigmaSpec(low=0.1).trained(schedule)) == 20


def test_one_step_has_a_finite_schedule():
    assert sigma_schedule(ScheduleConfig.parse(LTX2), 1, 28) == (1.0, 0.0)
    assert exact_sigmas(LTX2, 1, 28).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shift", [20.0, 50.0, 100.0, 1e300])
def test_a_shift_that_leaves_no_sigma_but_one_is_refused(shift):
    with pytest.raises(ArithmeticError):
        sigma_schedule(ScheduleConfig.parse(LTX2), 8, 28, shift)


@pytest.mark.parametrize("flag", ["invert_sigmas", "use_karras_sigmas", "stochastic_sampling"])
def test_other_schedules_are_refused(flag):
    with pytest.raises(ModelError, match=flag):
        ScheduleConfig.parse({flag: True})


def test_euler_step_equals_the_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler(**LTX2)
    scheduler.set_timesteps(8, sigmas=np.linspace(1.0, 1 / 8, 8), mu=0.6)
    x, v = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    expected = scheduler.step(v, scheduler.timesteps[3], x, return_dict=False)[0]
    assert torch.equal(euler_step(x, v, scheduler.sigmas[3], scheduler.sigmas[4]), expected)


def test_noising_and_its_estimate_are_inverse():
    x0, noise, sigma = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(clean_estimate(noised(x0, noise, sigma), noise - x0, sigma), x0)


def test_noise_depends_on_seed_and_purpose_only():
    torch.manual_seed(1)
    first = sample_noise(7, "init/video", (3, 2))
    torch.randn(10)
    assert torch.equal(first, sample_noise(7, "init/video", (3, 2)))
    assert not torch.equal(first, sample_noise(7, "init/audio", (3, 2)))
    assert torch.equal(group_noise([5, 7], "init/video", (3, 2))[1], first)
