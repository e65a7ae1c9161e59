"""What every registered backbone promises, checked on the smallest model each of them ships."""

import pickle

import numpy as np
import pytest
import torch

from accord.backbones.adapters import adapter_parameters, role
from accord.backbones.base import Conditions, VelocityModel
from accord.backbones.region import capture_region
from accord.backbones.surgery import audio_to_video, gradient_surgery
from accord.config.algorithm_parts import RegionSpec, SurgerySpec
from accord.config.sampling import SamplingSpec
from accord.plugins import load_impl, names, spec_class
from accord.types import MODALITIES

SAMPLING = SamplingSpec(num_steps=3)
TEXTS = ["a red ball bouncing with a bell sound", "a blue ball sliding with a drum sound", ""]


@pytest.fixture(scope="module", params=names("backbones"))
def backbone(request):
    torch.set_num_threads(1)
    spec = spec_class("backbones", request.param)()
    return load_impl(spec).load(spec, SAMPLING, seed=1)


@pytest.fixture
def batch(backbone):
    generator = torch.Generator().manual_seed(4)
    latents = {m: torch.randn(3, *shape, generator=generator) for m, shape in backbone.latent_shapes().items()}
    return latents, {m: torch.tensor([0.2, 0.6, 1.0]) for m in latents}, backbone.encode(TEXTS)


def test_declares_what_it_is(backbone):
    assert set(backbone.modalities) <= set(MODALITIES)
    assert set(backbone.latent_shapes()) == set(backbone.modalities)
    assert isinstance(backbone.velocity_model, VelocityModel)
    assert torch.device(backbone.device) == next(backbone.velocity_model.parameters()).device
    assert backbone.depth == backbone.velocity_model.depth > 0
    assert backbone.latent_shapes()["video"][0] % backbone.latent_frames == 0


def test_schedule_falls_from_one_to_zero(backbone):
    sigmas = backbone.sigmas(7)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (8,)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_conditions_are_rows(backbone):
    together = backbone.encode(TEXTS)
    assert len(together) == 3
    alone = backbone.encode(TEXTS[1:2])
    group, chosen = alone.repeat(4), together.select([1])
    assert len(group) == 4 and chosen.tensors.keys() == alone.tensors.keys()
    for name, tensor in alone.tensors.items():
        assert torch.equal(chosen[name], tensor) and torch.equal(group[name][3], tensor[0])
    assert any(not torch.equal(tensor[0], tensor[1]) for tensor in together.tensors.values())


def test_conditions_travel_bit_for_bit(backbone):
    encoded = backbone.encode(TEXTS)
    there = pickle.loads(pickle.dumps(encoded))
    joined = Conditions.joined([encoded.select([0]), encoded.select([2, 1])]).select([0, 2, 1])
    for name, tensor in encoded.tensors.items():
        assert there[name].dtype == tensor.dtype and torch.equal(there[name], tensor)
        assert torch.equal(joined[name], tensor)


def test_conditions_repeat_keeps_a_prompts_rows_together():
    repeated = Conditions({"text": torch.arange(6.0).view(2, 3, 1)}).repeat(2)
    assert torch.equal(repeated["text"][:, 0, 0], torch.tensor([0.0, 0.0, 3.0, 3.0]))


@torch.no_grad()
def test_velocity_is_deterministic_and_of_its_latents_shape(backbone, batch):
    first, second = backbone.velocity(*batch), backbone.velocity_model(*batch)
    for modality, latent in batch[0].items():
        assert first[modality].shape == latent.shape and first[modality].dtype == torch.float32
        assert torch.equal(first[modality], second[modality])


@torch.no_grad()
@pytest.mark.parametrize("changed", MODALITIES)
def test_each_modality_has_its_own_sigma(backbone, batch, changed):
    latents, sigmas, conditions = batch
    other = {**sigmas, changed: sigmas[changed] * 0.5}
    before, after = backbone.velocity(latents, sigmas, conditions), backbone.velocity(latents, other, conditions)
    assert not torch.equal(before[changed], after[changed])


@torch.no_grad()
def test_the_prompt_matters(backbone, batch):
    latents, sigmas, conditions = batch
    turned = conditions.select([1, 0, 2])
    before, after = backbone.velocity(latents, sigmas, conditions), backbone.velocity(latents, sigmas, turned)
    assert not torch.equal(before["video"][0], after["video"][0])
    torch.testing.assert_close(before["video"][2], after["video"][2], rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_policy_and_nothing_else(backbone, batch):
    sum(value.square().mean() for value in backbone.velocity(*batch).values()).backward()
    reached = {name for name, p in backbone.velocity_model.named_parameters() if p.grad is not None}
    assert reached and all(".policy." in name for name in reached)
    for parameter in adapter_parameters(backbone.velocity_model, "policy").values():
        parameter.grad = None


@torch.no_grad()
def test_shapers_change_no_forward_value(backbone, batch):
    plain = backbone.velocity(*batch)
    region = capture_region(backbone.velocity_model, RegionSpec(first_step=0.0).capture(1), 1)
    with gradient_surgery(audio_to_video(backbone.velocity_model), SurgerySpec()), region.during(0):
        shaped = backbone.velocity(*batch)
    assert all(torch.equal(plain[modality], shaped[modality]) for modality in plain)
    assert region.weights(backbone.latent_frames).shape == batch[0]["video"].shape[:2]


@torch.no_grad()
def test_isolated_modalities_do_not_see_each_other(backbone, batch):
    latents, sigmas, conditions = batch
    other = {**latents, "audio": latents["audio"].flip(0)}
    plain = backbone.velocity(latents, sigmas, conditions)
    assert not torch.equal(plain["video"], backbone.velocity(other, sigmas, conditions)["video"])
    with backbone.velocity_model.isolating_modalities():
        alone = backbone.velocity(latents, sigmas, conditions)
        assert torch.equal(alone["video"], backbone.velocity(other, sigmas, conditions)["video"])
    assert not torch.equal(alone["video"], plain["video"])
    assert torch.equal(backbone.velocity(latents, sigmas, conditions)["video"], plain["video"])


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_without_self_attention_a_token_keeps_to_itself(backbone, batch, modality):
    latents, sigmas, conditions = batch
    changed = latents[modality].clone()
    changed[:, 0] += 1.0
    other = {**latents, modality: changed}
    plain = backbone.velocity(latents, sigmas, conditions)
    model = backbone.velocity_model
    with model.isolating_modalities(), model.skipping_self_attention(range(backbone.depth)):
        before, after = (backbone.velocity(x, sigmas, conditions)[modality] for x in (latents, other))
    assert not torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 1:], after[:, 1:])
    with model.skipping_self_attention([1]):
        assert not torch.equal(backbone.velocity(latents, sigmas, conditions)[modality], plain[modality])
    with model.skipping_self_attention([]):
        assert torch.equal(backbone.velocity(latents, sigmas, conditions)[modality], plain[modality])


@torch.no_grad()
def test_fresh_roles_are_the_base(backbone, batch):
    outputs = []
    for name in ("policy", "old", "ref"):
        with role(backbone.velocity_model, name):
            outputs.append(backbone.velocity(*batch))
    assert all(torch.equal(outputs[0][m], output[m]) for output in outputs[1:] for m in backbone.modalities)


def test_decoding_gives_clips_of_the_asked_size(backbone, batch):
    clips = backbone.decode(batch[0])
    assert len(clips) == 3
    for clip in clips:
        assert clip.video_FHWC.dtype == np.uint8
        assert clip.video_FHWC.shape == (SAMPLING.frames, SAMPLING.height, SAMPLING.width, 3)
        assert clip.fps == SAMPLING.fps
        assert clip.audio_CS.dtype == np.float32 and np.abs(clip.audio_CS).max() <= 1.0
        seconds = clip.audio_CS.shape[1] / clip.sample_rate
        assert abs(seconds - SAMPLING.frames / SAMPLING.fps) < 0.1
