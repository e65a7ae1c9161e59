"""Exports of a real checkpoint, loaded by diffusers alone: the same clip as the worker that had this version."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel

from accord.backbones.adapters import ADAPTER_ROLES, adapter_state
from accord.backbones.export import write_merged
from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.model_dir import inspect_model_dir, resolve_model_path
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.config.job import JobSpec
from accord.diffusion.noise import group_noise
from accord.errors import CheckpointError, ModelError, UserError
from accord.run_folder import RunFolder
from accord.types import PolicyState, Prompt, RolloutRequest
from learner.checkpoint import Checkpoints
from learner.collectives import Ranks
from rollout_workers.worker import RolloutWorker
from services.results.export import NOTE, export

BASE = resolve_model_path("builtin:tiny-ltx2")
TEXT = "a red ball bouncing with a bell sound"
SEEDS = (7, 8)
STEPS = 2


@pytest.fixture(scope="module")
def job() -> JobSpec:
    return JobSpec.model_validate(
        {
            "steps": 9,
            "backbone": {"name": "ltx2", "lora": {"rank": 3, "alpha": 4.0}},
            "sampling": {"num_steps": STEPS},
            "prompts": {"train": "t", "held_out": "h"},
            "guards": {"allow_prompt_blind": True},
            "rewards": ({"name": "sync"},),
            "algorithm": {"name": "omninft"},
            "checkpoint": {"keep": 5},
        }
    )


@pytest.fixture(scope="module")
def worker(job) -> RolloutWorker:
    return RolloutWorker(job.backbone, job.sampling, seed=job.seed)


def random_state(worker, version: int) -> PolicyState:
    rng = np.random.default_rng(version)
    roles = {role: adapter_state(worker.backbone.velocity_model, role) for role in ADAPTER_ROLES}
    return PolicyState(
        version,
        {
            role: {key: (0.2 * rng.standard_normal(a.shape)).astype(np.float32) for key, a in part.items()}
            for role, part in roles.items()
        },
    )


@pytest.fixture(scope="module")
def states(worker) -> dict[int, PolicyState]:
    return {version: random_state(worker, version) for version in (3, 4, 5)}


@pytest.fixture(scope="module")
def runs(job, states, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    checkpoints = Checkpoints(RunFolder(folder / "job-a"), job, Ranks())
    checkpoints.save(4, [states[3], states[4]], {"0/step": torch.tensor(4.0)})
    checkpoints.save(5, [states[4], states[5]], {"0/step": torch.tensor(5.0)})
    return folder


@pytest.fixture(scope="module")
def ours(worker, job, states):
    """What the worker with version 5 makes, and the noise it started from."""
    worker.load(states[5])
    group = worker.sample(RolloutRequest(1, 0, Prompt("p", TEXT, "", ""), SEEDS, 5, job.sampling.plan("policy")))
    noise = {m: group_noise(SEEDS, f"init/{m}", shape) for m, shape in worker.backbone.latent_shapes().items()}
    return group, noise, worker.backbone.grid


@torch.no_grad()
def theirs(pipeline, noise, grid):
    """Diffusers alone, from packed noise: latents [G, T, C], frames [G, F, H, W, 3] in [0, 1], sound [G, C, S]."""
    pipeline.set_progress_bar_config(disable=True)
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    mean, std = vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)
    video = noise["video"].unflatten(1, grid).permute(0, 4, 1, 2, 3) * std + mean
    packed = noise["audio"] * audio_vae.latents_std + audio_vae.latents_mean
    audio = packed.unflatten(2, (audio_vae.config.latent_channels, -1)).transpose(1, 2)
    video, audio = pipeline(
        [TEXT] * 2, height=32, width=32, num_frames=25, frame_rate=12.0, num_inference_steps=STEPS, guidance_scale=1.0,
        audio_guidance_scale=1.0, stg_scale=0.0, audio_stg_scale=0.0, modality_scale=1.0, audio_modality_scale=1.0,
        guidance_rescale=0.0, audio_guidance_rescale=0.0, latents=video, audio_latents=audio, output_type="latent",
        max_sequence_length=pipeline.tokenizer_max_length, return_dict=False,
    )  # fmt: skip
    frames = pipeline.video_processor.postprocess_video(vae.decode(video, return_dict=False)[0], output_type="np")
    sound = pipeline.vocoder(audio_vae.decode(audio, return_dict=False)[0])
    latents = {
        "video": ((video - mean) / std).permute(0, 2, 3, 4, 1).flatten(1, 3),
        "audio": (audio.transpose(1, 2).flatten(2) - audio_vae.latents_mean) / audio_vae.latents_std,
    }
    return latents, frames, sound


def from_lora(runs):
    pipeline = LTX2Pipeline.from_pretrained(BASE, dtype=torch.float32)
    pipeline.load_lora_weights(export(runs, "job-a", "lora"))
    return pipeline


def from_merged(runs):
    return LTX2Pipeline.from_pretrained(export(runs, "job-a", "merged", link=True), dtype=torch.float32)


@pytest.mark.parametrize("load", [from_lora, from_merged])
def test_an_export_makes_the_workers_clip_in_diffusers(load, runs, ours, worker, job):
    group, noise, grid = ours
    latents, frames, sound = theirs(load(runs), noise, grid)
    for modality, latent in group.data.latents.items():
        np.testing.assert_allclose(latents[modality], latent, rtol=1e-3, atol=1e-4)
        assert np.abs(latent).std() > 0.1
    for index, clip in enumerate(group.clips):
        assert np.abs(clip.video_FHWC / 255.0 - frames[index]).max() < 0.51 / 255 + 1e-3
        np.testing.assert_allclose(clip.audio_CS, sound[index].clamp(-1, 1), atol=1e-3)
    worker.load(None)
    base = worker.sample(RolloutRequest(1, 0, Prompt("p", TEXT, "", ""), SEEDS, 0, job.sampling.plan("policy")))
    assert np.abs(base.data.latents["video"] - group.data.latents["video"]).max() > 0.1


def test_a_merged_export_is_a_backbone(runs, job, tmp_path):
    place = export(runs, "job-a", "merged", step=4, out=tmp_path / "mine")
    facts = inspect_model_dir(str(place))
    assert facts.depth == 4 and place == tmp_path / "mine"
    spec = job.backbone.model_copy(update={"path": str(place)})
    backbone = LTX2Backbone.load(spec, job.sampling, without=("decoders",))
    assert backbone.pipeline.transformer.proj_in.weight.dtype == torch.float32
    assert json.loads((place / NOTE).read_text()) == {
        "job": "job-a", "step": 4, "form": "merged", "base": "builtin:tiny-ltx2",
    }  # fmt: skip
    assert {path.name for path in place.iterdir() if path.is_dir()} == {
        "transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path != place], "nothing is left beside it"


def test_what_is_there_is_not_overwritten(runs, tmp_path):
    place = export(runs, "job-a", "lora", step=4, out=tmp_path / "mine")
    (old,) = place.glob("*.safetensors")
    before = old.read_bytes()
    with pytest.raises(UserError, match=r"exists.*--force"):
        export(runs, "job-a", "lora", step=5, out=place)
    assert old.read_bytes() == before
    export(runs, "job-a", "lora", step=5, out=place, force=True)
    assert old.read_bytes() != before and [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only-copy.tex").write_text("x")
    with pytest.raises(UserError, match="not an export of Accord"):
        export(runs, "job-a", "lora", out=tmp_path / "thesis", force=True)
    assert (tmp_path / "thesis" / "only-copy.tex").exists()


def test_what_is_missing_is_named(runs, job, states, tmp_path):
    with pytest.raises(UserError, match="no job 'job-b'"):
        export(runs, "job-b", "lora")
    with pytest.raises(UserError, match="no checkpoint of step 3; there are 4, 5"):
        export(runs, "job-a", "lora", step=3)
    (tmp_path / "job-c").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        export(tmp_path, "job-c", "lora")


def test_a_torn_checkpoint_is_refused(job, states, tmp_path):
    Checkpoints(RunFolder(tmp_path / "job-d"), job, Ranks()).save(5, [states[5]], {})
    file = tmp_path / "job-d" / "checkpoints" / "step-000005" / "policy-000005.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-000005 is torn \(policy-000005.*sha256"):
        export(tmp_path, "job-d", "lora")
    assert not (tmp_path / "job-d" / "exports").exists()


def test_a_sharded_transformer_stays_sharded(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    transformer = LTX2VideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=1, caption_channels=8, rope_type="split",
    )  # fmt: skip
    transformer.save_pretrained(base / "transformer", max_shard_size="20KB")
    (base / "model_index.json").write_text('{"transformer": ["diffusers", "LTX2VideoTransformer3DModel"]}')
    rng = np.random.default_rng(0)
    layers = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"]
    state = {}
    for layer in layers:
        out, into = transformer.get_parameter(f"{layer}.weight").shape
        state[f"{layer}.lora_A.weight"] = rng.standard_normal((3, into)).astype(np.float32)
        state[f"{layer}.lora_B.weight"] = rng.standard_normal((out, 3)).astype(np.float32)
    spec = LTX2Spec(dtype="bfloat16", lora=LoRASpec(rank=3, alpha=4.0))
    write_merged(base, spec, state, tmp_path / "merged")
    whole = LTX2VideoTransformer3DModel.from_pretrained(tmp_path / "merged" / "transformer")
    assert len(list((tmp_path / "merged" / "transformer").glob("*.safetensors"))) > 1
    for name, weight in whole.named_parameters():
        layer = name.removesuffix(".weight")
        expected = transformer.get_parameter(name).double()
        if layer in layers:
            a, b = (state[f"{layer}.lora_{part}.weight"].astype(np.float64) for part in "AB")
            expected = expected + 4.0 / 3.0 * torch.from_numpy(b @ a)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ModelError, match="was the adapter trained on this model"):
        write_merged(base, spec, {f"another.{key}": a for key, a in state.items()}, tmp_path / "wrong")
