"""One worker on the tiny model: what determines the bits of a group, and what a worker refuses."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from accord.backbones.adapters import ADAPTER_ROLES, adapter_state
from accord.backbones.ltx2.spec import LTX2Spec
from accord.config.job import JobSpec
from accord.config.sampling import SamplingSpec
from accord.errors import NonFiniteError, RolloutError
from accord.requests import step_requests
from accord.types import Guidance, PolicyState, Prompt, RolloutPlan, RolloutRequest
from rollout_workers.worker import RolloutWorker

RED = Prompt("red", "a red ball bouncing with a bell sound", "a red ball bouncing", "a bell sound")
BLUE = Prompt("blue", "a blue ball sliding with a drum sound", "a blue ball sliding", "a drum sound")


@pytest.fixture(scope="module")
def job() -> JobSpec:
    return JobSpec.model_validate(
        {
            "steps": 2,
            "backbone": {"name": "ltx2", "lora": {"rank": 4, "alpha": 8.0}},
            "sampling": {"num_steps": 3},
            "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 2},
            "guards": {"allow_prompt_blind": True},
            "rewards": ({"name": "sync"},),
            "algorithm": {"name": "omninft"},
        }
    )


@pytest.fixture(scope="module")
def worker(job) -> RolloutWorker:
    return RolloutWorker(job.backbone, job.sampling, seed=job.seed)


@pytest.fixture(autouse=True)
def base(worker):
    worker.load(None)


def request(prompt=RED, seeds=(1, 2), version=0, role="old", **more) -> RolloutRequest:
    plan = RolloutPlan(role, num_steps=3, **more)
    return RolloutRequest(1, 0, prompt, tuple(seeds), version, plan)


def state(worker, version=3) -> PolicyState:
    rng = np.random.default_rng(version)
    return PolicyState(
        version,
        {
            role: {
                key: (0.1 * rng.standard_normal(value.shape)).astype(np.float32)
                for key, value in adapter_state(worker.backbone.velocity_model, role).items()
            }
            for role in ADAPTER_ROLES
        },
    )


def video(group) -> np.ndarray:
    return group.data.latents["video"]


def test_a_group_has_its_shapes_its_stamp_and_its_clips(worker):
    group = worker.sample(request())
    shapes = worker.backbone.latent_shapes()
    assert {m: x.shape for m, x in group.data.latents.items()} == {m: (2, *shape) for m, shape in shapes.items()}
    assert all(x.dtype == np.float32 for x in group.data.latents.values())
    assert group.policy_version == 0 and group.data.token_weights_GT is None
    assert len(group.clips) == 2 and group.clips[0].video_FHWC.shape == (25, 32, 32, 3)
    assert group.clips[0].audio_CS.shape == (1, 32_800) and group.clips[0].sample_rate == 16_000


def test_a_group_brings_its_prompt_as_any_other_process_would_encode_it(worker):
    backbone = worker.backbone
    alone = (
        type(backbone).load(backbone.spec, backbone.sampling, without=("decoders",)).encode(["another", RED.prompt_av])
    )
    brought = worker.sample(request()).data.conditions
    assert len(brought) == 1 and brought.tensors.keys() == alone.tensors.keys()
    for name, tensor in pickle.loads(pickle.dumps(brought)).tensors.items():
        assert tensor.dtype == alone[name].dtype and torch.equal(tensor, alone.select([1])[name])


def test_bits_depend_on_the_request_not_on_what_came_before(worker):
    first = worker.sample(request())
    worker.sample(request(BLUE, (9, 8)))
    torch.randn(100)
    again = worker.sample(request())
    assert all(np.array_equal(first.data.latents[m], again.data.latents[m]) for m in first.data.latents)
    assert np.array_equal(first.clips[1].audio_CS, again.clips[1].audio_CS)
    assert not np.array_equal(video(first), video(worker.sample(request(BLUE))))
    assert not np.array_equal(video(first), video(worker.sample(request(seeds=(1, 3)))))


def test_a_sample_starts_from_its_own_seed_alone(worker):
    first, swapped = worker.sample(request(seeds=(1, 2))), worker.sample(request(seeds=(2, 1)))
    np.testing.assert_allclose(video(first), video(swapped)[::-1], atol=1e-4)


def test_roles_and_versions(worker):
    published = state(worker)
    base = video(worker.sample(request(role="policy")))
    worker.load(published)
    old, policy, ref = (video(worker.sample(request(version=3, role=role))) for role in ("old", "policy", "ref"))
    assert not np.allclose(old, policy, atol=1e-3) and not np.allclose(policy, base, atol=1e-3)
    np.testing.assert_array_equal(ref, base)
    worker.load(None)
    np.testing.assert_array_equal(video(worker.sample(request(role="policy"))), base)


def test_another_version_than_the_one_loaded_is_refused(worker):
    with pytest.raises(RolloutError, match="version 1 while 0 is loaded"):
        worker.sample(request(version=1))


def test_captured_weights_come_along_and_change_nothing(worker, job):
    plain, captured = worker.sample(request()), worker.sample(request(capture=job.algorithm.region.capture(1)))
    weights = captured.data.token_weights_GT
    assert weights.shape == (2, worker.backbone.latent_shapes()["video"][0]) and weights.dtype == np.float32
    strength = job.algorithm.region.strength
    assert np.allclose(weights.min(1), 1.0) and np.allclose(weights.max(1), 1.0 + strength)
    assert all(np.array_equal(plain.data.latents[m], captured.data.latents[m]) for m in plain.data.latents)


def test_captured_weights_have_the_strength_of_their_step(worker, job):
    region = job.algorithm.region.model_copy(update={"warmup_steps": 4})
    warming = job.model_copy(update={"algorithm": job.algorithm.model_copy(update={"region": region})})
    for step, share in ((1, 0.0), (2, 0.25), (9, 1.0)):
        plan = warming.algorithm.plan(warming, step)
        weights = worker.sample(replace(request(), plan=plan)).data.token_weights_GT
        assert np.allclose(weights.max(1), 1.0 + share * region.strength)


def test_a_prompt_is_encoded_once(worker, monkeypatch):
    worker._encoded.clear()
    calls = []
    encode = worker.backbone.encode
    monkeypatch.setattr(worker.backbone, "encode", lambda texts: calls.append(texts) or encode(texts))
    for _ in range(2):
        worker.sample(request())
        worker.sample(request(BLUE))
    assert calls == [[RED.prompt_av], [BLUE.prompt_av]]


def test_weights_that_give_nan_are_named(worker):
    broken = state(worker, 5)
    key = next(key for key in broken.adapters["old"] if "lora_A" in key)
    broken.adapters["old"][key][:] = np.nan
    worker.load(broken)
    with pytest.raises(NonFiniteError, match="prompt 'red', version 5"):
        worker.sample(request(version=5))
    worker.load(None)
    assert np.isfinite(video(worker.sample(request()))).all(), "nothing of it is left in version 0"


@pytest.mark.parametrize("fields", [{"audio_guidance": 3.0}, {"stg_scale": 1.0, "stg_blocks": (1,)}])
def test_guidance_of_the_job_reaches_the_sampler(worker, job, fields):
    plain = worker.sample(step_requests(job, [RED], 1)[0]).data.latents
    guided = job.model_copy(update={"sampling": job.sampling.model_copy(update=fields)})
    changed = worker.sample(step_requests(guided, [RED], 1)[0]).data.latents
    assert max(np.abs(changed[m] - plain[m]).max() for m in plain) > 1e-3


def test_a_worker_samples_for_what_is_no_training_job():
    clip = SamplingSpec(frames=9)
    endpoint = RolloutWorker(LTX2Spec(), clip)
    plan = RolloutPlan("policy", num_steps=2, guidance=Guidance(text={"video": 2.0, "audio": 2.0}))
    group = endpoint.sample(RolloutRequest(0, 0, RED, (1, 2, 3), 0, plan))
    assert len(group.clips) == 3 and group.clips[0].video_FHWC.shape == (9, 32, 32, 3)
    assert np.array_equal(video(group), video(endpoint.sample(group.request)))
