"""The sampler against diffusers' own pipeline, and what the pipeline does with an exported adapter."""

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline

from accord.backbones.adapters import adapter_state, export_lora, role
from accord.config.backbones import LoRASpec
from accord.diffusion.noise import group_noise
from rollout_workers.sampler import denoise

SEEDS = (101, 202)
STEPS = 4
PROMPT = "a red ball"
OFF = {
    "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0,
}  # fmt: skip


def pipeline_latents(pipeline, backbone, guidance: float):
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
        num_frames=sampling.frames, frame_rate=sampling.fps, num_inference_steps=STEPS, guidance_scale=guidance,
        audio_guidance_scale=guidance, latents=video, audio_latents=audio, output_type="latent", return_dict=False,
        max_sequence_length=pipeline.tokenizer_max_length, **OFF,
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


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampler_equals_the_pipeline(model_dir, load, guidance):
    backbone = load(model_dir)
    prompt, empty = backbone.encode([PROMPT]), backbone.encode([""])
    ours = denoise(backbone, prompt, empty, SEEDS, num_steps=STEPS, guidance=guidance)
    theirs = pipeline_latents(plain_pipeline(model_dir), backbone, guidance)
    for modality, latent in ours.items():
        torch.testing.assert_close(latent, theirs[modality], rtol=1e-4, atol=2e-5)
        assert latent.std() > 0.1


def test_guidance_changes_the_sample(ltx2_dir, load):
    backbone = load(ltx2_dir)
    prompt, empty = backbone.encode([PROMPT]), backbone.encode([""])
    off = denoise(backbone, prompt, None, SEEDS, num_steps=STEPS)
    on = denoise(backbone, prompt, empty, SEEDS, num_steps=STEPS, guidance=2.0)
    assert not torch.allclose(off["video"], on["video"], atol=1e-4)


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
    export_lora(adapter_state(backbone.velocity_model, "policy"), LoRASpec(rank=4, alpha=6.0), tmp_path)
    prompt = backbone.encode([PROMPT])
    with role(backbone.velocity_model, "policy"):
        tuned = denoise(backbone, prompt, None, SEEDS, num_steps=STEPS)
    with role(backbone.velocity_model, "ref"):
        base = denoise(backbone, prompt, None, SEEDS, num_steps=STEPS)
    pipeline = plain_pipeline(model_dir)
    pipeline.load_lora_weights(tmp_path)
    theirs = pipeline_latents(pipeline, backbone, 1.0)
    for modality, latent in tuned.items():
        torch.testing.assert_close(latent, theirs[modality], rtol=1e-4, atol=2e-5)
        assert not torch.allclose(latent, base[modality], atol=1e-3)
