"""The sampler against diffusers' own pipeline, and what the pipeline does with an exported adapter."""

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline

from accord.backbones.adapters import adapter_state, export_lora, role
from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.config.sampling import SamplingSpec
from accord.diffusion.noise import group_noise
from accord.run_folder import LORA_FILE
from accord.types import RolloutPlan
from rollout_workers.sampler import denoise

SAMPLING = SamplingSpec(frames=9, height=32, width=32, fps=12.0, num_steps=4)

SEEDS = (101, 202)
STEPS = 4
PROMPT = "a red ball"
OFF = {
    "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0,
}  # fmt: skip


def pipeline_latents(pipeline, backbone, **guidance):
    """Run LTX2Pipeline.__call__ from the sampler's noise; return its final latents packed and normalised."""
    noise = {m: group_noise(SEEDS, f"init/{m}", shape) for m, shape in backbone.latent_shapes().items()}
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    grid, bins = backbone.grid, audio_vae.config.mel_bins // 4
    video = pipeline._denormalize_latents(
        pipeline._unpack_latents(noise["video"], *grid), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    audio = pipeline._unpack_audio_latents(
        pipeline._denormalize_audio_latents(noise["audio"], audio_vae.latents_mean, audio_vae.latents_std),
        backbone.audio_tokens,
        bins,
    )
    sampling = backbone.sampling
    video, audio = pipeline(
        prompt=[PROMPT, PROMPT], negative_prompt=["", ""], height=sampling.height, width=sampling.width,
        num_frames=sampling.frames, frame_rate=sampling.fps, num_inference_steps=STEPS, latents=video,
        audio_latents=audio, output_type="latent", return_dict=False,
        max_sequence_length=pipeline.tokenizer_max_length, **{**OFF, **guidance},
    )  # fmt: skip
    packed = pipeline._pack_latents(pipeline._normalize_latents(video, vae.latents_mean, vae.latents_std))
    sound = pipeline._normalize_audio_latents(
        pipeline._pack_audio_latents(audio), audio_vae.latents_mean, audio_vae.latents_std
    )
    return {"video": packed, "audio": sound}


def plain_pipeline(directory):
    pipeline = LTX2Pipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pair(model_dir):
    """Our backbone and a plain pipeline, whose perturbed pass is switched on: the config of LTX-2 leaves it out."""
    backbone = LTX2Backbone.load(LTX2Spec(path=str(model_dir), lora=LoRASpec(rank=2)), SAMPLING, seed=11)
    pipeline = plain_pipeline(model_dir)
    perturbed = type(pipeline.transformer).from_pretrained(model_dir / "transformer", perturbed_attn=True)
    pipeline.register_modules(transformer=perturbed)
    return backbone, pipeline


def ours(backbone, **fields):
    """Sample with these guidance fields of a job."""
    prompt, empty = backbone.encode([PROMPT]), backbone.encode([""])
    plan = SamplingSpec(num_steps=STEPS, **fields).plan("policy")
    return denoise(backbone, prompt, empty, SEEDS, plan).latents


GUIDED = {
    "off": ({}, {}),
    "text": ({"guidance": 2.5}, {"guidance_scale": 2.5, "audio_guidance_scale": 2.5}),
    "text of the sound": ({"audio_guidance": 4.0}, {"audio_guidance_scale": 4.0}),
    "stg of the picture": (
        {"stg_scale": 1.5, "audio_stg_scale": 0.5, "stg_blocks": (1,)},
        {"stg_scale": 1.5, "audio_stg_scale": 0.5, "spatio_temporal_guidance_blocks": [1]},
    ),
    "everything": (
        {
            "guidance": 3.0, "audio_guidance": 2.0, "stg_scale": 1.0, "stg_blocks": (0, 2), "modality_scale": 1.5,
            "audio_modality_scale": 3.0, "guidance_rescale": 0.7, "audio_guidance_rescale": 0.4,
        },
        {
            "guidance_scale": 3.0, "audio_guidance_scale": 2.0, "stg_scale": 1.0, "audio_stg_scale": 1.0,
            "spatio_temporal_guidance_blocks": [0, 2], "modality_scale": 1.5, "audio_modality_scale": 3.0,
            "guidance_rescale": 0.7, "audio_guidance_rescale": 0.4,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("terms", GUIDED)
def test_sampler_equals_the_pipeline(pair, terms):
    backbone, pipeline = pair
    fields, arguments = GUIDED[terms]
    theirs = pipeline_latents(pipeline, backbone, **arguments)
    for modality, latent in ours(backbone, **fields).items():
        torch.testing.assert_close(latent, theirs[modality], rtol=1e-4, atol=2e-5)
        assert latent.std() > 0.1


TEXT, BLOCKS = {"guidance": 2.0}, {"stg_blocks": (1,)}


@pytest.mark.parametrize(
    ("without", "fields"),
    [
        ({}, TEXT),
        (BLOCKS, {**BLOCKS, "stg_scale": 1.0}),
        (BLOCKS, {**BLOCKS, "audio_stg_scale": 1.0}),
        ({}, {"modality_scale": 2.0}),
        (TEXT, {**TEXT, "guidance_rescale": 0.7}),
    ],
)
def test_every_term_changes_the_sample(pair, without, fields):
    backbone, _ = pair
    plain, guided = ours(backbone, **without), ours(backbone, **fields)
    assert max((plain[m] - guided[m]).abs().max() for m in plain) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_text_guidance_alone_has_the_bits_of_its_equation(pair, scale):
    """v + (g - 1)(v - v_u), in this order of operations, and v itself when it is off."""
    backbone, _ = pair
    prompt, empty = (backbone.encode([text]).repeat(2) for text in (PROMPT, ""))
    latents = {m: group_noise(SEEDS, f"init/{m}", shape) for m, shape in backbone.latent_shapes().items()}
    sigmas = backbone.sigmas(STEPS)
    for step in range(STEPS):
        levels = {m: sigmas[step].expand(2) for m in latents}
        velocity = backbone.velocity(latents, levels, prompt)
        if scale > 1:
            weak = backbone.velocity(latents, levels, empty)
            velocity = {m: v + (scale - 1.0) * (v - weak[m]) for m, v in velocity.items()}
        latents = {m: x + (sigmas[step + 1] - sigmas[step]) * velocity[m] for m, x in latents.items()}
    found = ours(backbone, guidance=scale)
    assert all(torch.equal(latents[m], found[m]) for m in latents)


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, 1),
        ({"guidance_rescale": 0.7, "stg_blocks": (1,)}, 1),
        ({"audio_guidance": 2.0}, 2),
        ({"stg_scale": 1.0, "stg_blocks": (1,)}, 2),
        ({"guidance": 2.0, "audio_stg_scale": 1.0, "stg_blocks": (1,), "modality_scale": 2.0}, 4),
    ],
)
def test_a_term_that_is_off_costs_no_forward(pair, fields, passes, monkeypatch):
    backbone, _ = pair
    calls = []
    velocity = backbone.velocity
    monkeypatch.setattr(backbone, "velocity", lambda *inputs: calls.append(1) or velocity(*inputs))
    ours(backbone, **fields)
    assert len(calls) == STEPS * passes and SamplingSpec(**fields).passes == passes


def test_decoded_clips_equal_the_pipelines(model_dir, load):
    backbone, pipeline = load(model_dir), plain_pipeline(model_dir)
    latents = {m: torch.randn(2, *shape) for m, shape in backbone.latent_shapes().items()}
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    with torch.no_grad():
        video = pipeline._denormalize_latents(
            pipeline._unpack_latents(latents["video"], *backbone.grid), vae.latents_mean, vae.latents_std
        )
        frames = pipeline.video_processor.postprocess_video(vae.decode(video, return_dict=False)[0], output_type="np")
        audio = pipeline._denormalize_audio_latents(latents["audio"], audio_vae.latents_mean, audio_vae.latents_std)
        mel = audio_vae.decode(pipeline._unpack_audio_latents(audio, backbone.audio_tokens, 4), return_dict=False)[0]
        sound = pipeline.vocoder(mel)
    for index, clip in enumerate(backbone.decode(latents)):
        assert clip.video_FHWC.dtype == np.uint8 and clip.video_FHWC.shape == (9, 32, 32, 3)
        assert np.abs(clip.video_FHWC / 255.0 - frames[index]).max() < 0.51 / 255 + 1e-4
        assert clip.audio_CS.dtype == np.float32
        np.testing.assert_allclose(clip.audio_CS, sound[index].clamp(-1, 1), atol=1e-5)
        assert clip.sample_rate == pipeline.vocoder.config.output_sampling_rate


def test_exported_adapter_loads_in_diffusers(model_dir, load, perturb, tmp_path):
    backbone = load(model_dir)
    perturb(backbone.velocity_model, "policy")
    spec = LTX2Spec(lora=LoRASpec(rank=4, alpha=6.0))
    export_lora(adapter_state(backbone.velocity_model, "policy"), spec, tmp_path / LORA_FILE)
    prompt = backbone.encode([PROMPT])
    with role(backbone.velocity_model, "policy"):
        tuned = denoise(backbone, prompt, None, SEEDS, RolloutPlan("policy", STEPS)).latents
    with role(backbone.velocity_model, "ref"):
        base = denoise(backbone, prompt, None, SEEDS, RolloutPlan("policy", STEPS)).latents
    pipeline = plain_pipeline(model_dir)
    pipeline.load_lora_weights(tmp_path)
    theirs = pipeline_latents(pipeline, backbone)
    for modality, latent in tuned.items():
        torch.testing.assert_close(latent, theirs[modality], rtol=1e-4, atol=2e-5)
        assert not torch.allclose(latent, base[modality], atol=1e-3)
