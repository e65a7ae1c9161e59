"""Codecs, pipeline directory, training pieces and held-out measures of the tiny model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline

from accord.backbones.ltx2.model import LTX2Backbone
from accord.world import latent_distance, measure
from accord.world.scene import ALL_PROMPTS, make_clips
from tiny_models import descent, gates
from tiny_models.build import probe_corpus, untrained_pipeline
from tiny_models.codecs import log_mel, video_to_tensor
from tiny_models.pipeline import encode_text, load_backbone, normalise_latents, save_pipeline
from tiny_models.pretrain import Denoiser, Recipe, coupling_probe, draw_sigmas, flow_loss, make_corpus

PLAIN = {
    "height": 32,
    "width": 32,
    "num_frames": 25,
    "frame_rate": 12.0,
    "max_sequence_length": 16,
    "guidance_scale": 1.0,
    "audio_guidance_scale": 1.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
}
SHIPPED = latent_distance.CLEAN_WORLD.parent / "tiny-ltx2"


@pytest.fixture(scope="module")
def untrained() -> LTX2Pipeline:
    return untrained_pipeline(seed=1, clips=64)


@pytest.fixture(scope="module")
def shipped() -> LTX2Backbone:
    return load_backbone(SHIPPED)


def test_closed_form_video_codec_gives_the_picture_back(untrained: LTX2Pipeline) -> None:
    again = untrained.vae
    with torch.no_grad():
        frames = video_to_tensor(np.stack([clip.video for clip in make_clips(32, 5)]))
        latents = again.encode(frames).latent_dist.mode()
        error = (again.decode(latents).sample - frames).square().mean()
    assert latents.shape == (32, 40, 7, 2, 2)
    assert 10.0 * float(torch.log10(4.0 / error)) > 23.0


def test_closed_form_vocoder_keeps_onsets_and_pitch(untrained: LTX2Pipeline) -> None:
    clips = list(make_clips(32, 6))
    mel = log_mel(torch.from_numpy(np.stack([clip.audio for clip in clips])))
    with torch.no_grad():
        sounds = untrained.vocoder(mel)[:, 0].numpy()
    for clip, sound in zip(clips, sounds, strict=True):
        onsets = measure.audio_onsets(sound)
        assert len(onsets) == len(clip.onsets)
        assert np.abs(onsets - clip.onsets).max() < 0.020
        assert measure.sound_shares(sound).argmax() == measure.sound_shares(clip.audio).argmax()


def test_shipped_codecs_round_trip(shipped: LTX2Backbone) -> None:
    truth = gates.as_clip_set(list(make_clips(32, 7)))
    found = gates.measure_clips(gates.through_codecs(shipped, truth))
    assert found["colour right"] == found["motion right"] == found["sound right"] == 1.0
    assert found["median offset (ms)"] < 25.0
    assert found["sync"] > 0.7


def test_a_saved_directory_loads_with_the_same_weights(untrained: LTX2Pipeline, tmp_path: Path) -> None:
    before = untrained.transformer.proj_in.weight.detach().clone()
    save_pipeline(untrained, tmp_path)
    assert torch.equal(untrained.transformer.proj_in.weight, before)
    loaded = load_backbone(tmp_path).pipeline
    assert torch.equal(loaded.transformer.proj_in.weight, before.bfloat16().float())
    assert loaded.transformer.dtype == torch.float32


def test_the_shipped_directory_is_small_safe_and_complete(shipped: LTX2Backbone) -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".png", ".md"}
    out = shipped.pipeline(prompt=ALL_PROMPTS[0].prompt_av, num_inference_steps=2, output_type="np", **PLAIN)
    assert out.frames.shape == (1, 25, 32, 32, 3)
    assert out.audio.shape == (1, 1, 32_800)


def test_our_sampler_is_the_pipeline(shipped: LTX2Backbone) -> None:
    prompts = gates.even_prompts(2)
    sampled = gates.sample_latents(shipped, prompts, seed=3, steps=4)
    pipeline, vae, audio_vae = shipped.pipeline, shipped.pipeline.vae, shipped.pipeline.audio_vae
    generator = torch.Generator().manual_seed(3)
    noise, audio_noise = torch.randn(2, 28, 40, generator=generator), torch.randn(2, 52, 16, generator=generator)
    unpacked = pipeline._unpack_latents(noise, 7, 2, 2)
    scaled = pipeline._denormalize_audio_latents(audio_noise, audio_vae.latents_mean, audio_vae.latents_std)
    out = pipeline(
        prompt=[prompt.prompt_av for prompt in prompts],
        latents=pipeline._denormalize_latents(unpacked, vae.latents_mean, vae.latents_std),
        audio_latents=pipeline._unpack_audio_latents(scaled, 52, 4),
        num_inference_steps=4,
        output_type="latent",
        **PLAIN,
    )
    again = normalise_latents(pipeline, out.frames, out.audio)
    assert torch.allclose(again["video"], sampled["video"], atol=1e-4)
    assert torch.allclose(again["audio"], sampled["audio"], atol=1e-4)


def test_our_sigmas_are_those_of_the_pipeline(shipped: LTX2Backbone) -> None:
    sigmas = shipped.sigmas(8)
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0 and sigmas[-2] == pytest.approx(0.1, abs=1e-4)
    assert torch.all(sigmas[1:] < sigmas[:-1])


def test_an_empty_prompt_has_a_token(shipped: LTX2Backbone) -> None:
    _, mask = encode_text(shipped.pipeline, ["", "a red ball bouncing with a bell sound"])
    assert mask.sum(1).tolist() == [1, 9]


def test_sigmas_are_mixed_as_the_recipe_says() -> None:
    video, audio = draw_sigmas(20_000, torch.Generator().manual_seed(0)).values()
    assert float((video == audio).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(((video < 0.31) & (audio >= 0.5)).float().mean()) > 0.2
    assert float(video.min()) > 0.0 and float(audio.max()) < 1.0


def test_a_training_step_reaches_every_trained_weight(untrained: LTX2Pipeline, tmp_path: Path) -> None:
    save_pipeline(untrained, tmp_path)
    backbone = load_backbone(tmp_path)
    denoiser = Denoiser(backbone)
    generator = torch.Generator().manual_seed(0)
    losses = flow_loss(denoiser, make_corpus(backbone, 8, 3), torch.arange(8), Recipe(), generator)
    sum(losses.values()).backward()
    missing = [name for name, value in denoiser.named_parameters() if value.grad is None]
    assert not missing
    assert all(1.0 < float(loss.detach()) < 5.0 for loss in losses.values())


def test_the_shipped_model_is_as_coupled_as_its_card_says(shipped: LTX2Backbone) -> None:
    card = json.loads((SHIPPED / "measured.json").read_text(encoding="utf-8"))["coupling"]["shipped"]
    worse = coupling_probe(Denoiser(shipped), probe_corpus(shipped, seed=0), (0.85, 0.85))
    assert worse["video"] == pytest.approx(card["video at .85/.85"], rel=1e-3)
    assert worse["audio"] == pytest.approx(card["audio at .85/.85"], rel=1e-3)
    assert worse["audio"] >= gates.LEAST_COUPLING


def test_training_follows_the_loss_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1_000))
    monkeypatch.setattr(descent, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    weight = torch.nn.Parameter(torch.tensor(3.0))
    steps = list(descent.descend([weight], lambda: weight.square(), 4.0, 0.2, warm_up=5, least=0.1))
    assert abs(float(weight.detach())) < 0.3
    lefts = [left for left, _ in steps]
    assert lefts == sorted(lefts, reverse=True) and lefts[-1] <= 0.0
    assert 0 < sum(mean is not None for _, mean in steps) <= 4


def test_distance_to_the_clean_world(shipped: LTX2Backbone) -> None:
    world = latent_distance.load_clean_world()
    clean = make_corpus(shipped, 128, 33).latents
    noise = torch.randn(128, 28, 40, generator=torch.Generator().manual_seed(0))
    near = latent_distance.frechet_distance(clean["video"], world["video"])
    assert near < 0.25 * latent_distance.frechet_distance(noise, world["video"])
    frozen = clean["video"][:1].expand(128, -1, -1)
    assert (
        latent_distance.diversity(frozen, world["video"])
        < 0.01
        < latent_distance.diversity(clean["video"], world["video"])
    )
    with pytest.raises(ValueError, match="at least 2"):
        latent_distance.frechet_distance(clean["video"][:1], world["video"])
    with pytest.raises(ValueError, match="values a clip"):
        latent_distance.diversity(clean["audio"], world["video"])
