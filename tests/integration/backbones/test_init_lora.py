"""A job that starts from an adapter: the model that diffusers makes of the file, the same on every worker."""

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from accord.backbones.adapters import adapter_state, export_lora, role
from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.config.job import JobSpec
from accord.config.sampling import SamplingSpec
from accord.run_folder import LORA_FILE
from accord.types import PolicyState, Prompt, RolloutPlan, RolloutRequest
from rollout_workers.worker import RolloutWorker

LORA = LoRASpec(rank=4, alpha=6.0)
SAMPLING = SamplingSpec(frames=9, num_steps=2)
RED = Prompt("red", "a red ball", "", "")


@pytest.fixture(scope="module")
def state(ltx2_dir):
    """Random tensors of a role."""
    rng = np.random.default_rng(5)
    backbone = LTX2Backbone.load(LTX2Spec(path=str(ltx2_dir), lora=LORA), SAMPLING, without=("decoders",))
    return {
        key: (0.2 * rng.standard_normal(value.shape)).astype(np.float32)
        for key, value in adapter_state(backbone.velocity_model, "policy").items()
    }


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / LORA_FILE
    export_lora(state, LTX2Spec(lora=LORA), path)
    return path


def job(directory, file, **lora) -> JobSpec:
    return JobSpec.model_validate(
        {
            "steps": 2,
            "backbone": {
                "name": "ltx2", "path": str(directory), "init_lora": str(file),
                "lora": {"rank": 4, "alpha": 6.0, **lora},
            },
            "sampling": {"frames": 9, "num_steps": 2},
            "prompts": {"train": "t", "held_out": "h"},
            "guards": {"allow_prompt_blind": True},
            "rewards": ({"name": "sync"},),
            "algorithm": {"name": "omninft"},
        }
    )  # fmt: skip


def worker_of(ltx2_dir, file) -> RolloutWorker:
    spec = job(ltx2_dir, file)
    return RolloutWorker(spec.backbone, spec.sampling, seed=spec.seed)


@pytest.fixture(scope="module")
def worker(ltx2_dir, file) -> RolloutWorker:
    return worker_of(ltx2_dir, file)


def video(worker, version=0, name="policy") -> np.ndarray:
    return worker.sample(RolloutRequest(0, 0, RED, (1, 2), version, RolloutPlan(name, num_steps=2))).data.latents[
        "video"
    ]


def test_both_roles_start_from_the_file(worker, state):
    for name in ("policy", "old"):
        found = adapter_state(worker.backbone.velocity_model, name)
        assert found.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-9)
    trained = [p for n, p in worker.backbone.velocity_model.named_parameters() if p.requires_grad]
    assert len(trained) == len(state)


def test_version_zero_is_the_start_whatever_was_loaded_in_between(worker, ltx2_dir, file):
    worker.load(None)
    first, base = video(worker), video(worker, name="ref")
    assert np.abs(first - base).max() > 1e-2
    random = {name: adapter_state(worker.backbone.velocity_model, name) for name in ("policy", "old")}
    for part in random.values():
        for value in part.values():
            value += 0.1
    worker.load(PolicyState(3, random))
    assert np.abs(video(worker, 3) - first).max() > 1e-2
    worker.load(None)
    assert np.array_equal(video(worker), first) and np.array_equal(video(worker, name="old"), first)
    assert np.array_equal(video(worker, name="ref"), base)
    assert np.array_equal(video(worker_of(ltx2_dir, file)), first), "another worker"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["diffusers", "original", "another alpha"])
def test_the_model_is_the_one_diffusers_makes_of_the_file(ltx2_dir, file, tmp_path, kind):
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    if kind == "original":
        save_file({f"diffusion_model.{key}": value for key, value in tensors.items()}, tmp_path / "mine.safetensors")
    else:
        layers = sorted({key.rpartition(".lora_")[0] for key in tensors})
        config = LoraConfig(r=4, lora_alpha=10, target_modules=layers).to_dict() if kind == "another alpha" else None
        LTX2Pipeline.save_lora_weights(
            tmp_path, tensors, weight_name="mine.safetensors", transformer_lora_adapter_metadata=config
        )
    spec = job(ltx2_dir, tmp_path / "mine.safetensors", alpha=3.0)
    backbone = LTX2Backbone.load(spec.backbone, spec.sampling, without=("decoders",))
    pipeline = LTX2Pipeline.from_pretrained(ltx2_dir)
    pipeline.load_lora_weights(tmp_path / "mine.safetensors")
    generator = torch.Generator().manual_seed(0)
    latents = {m: torch.randn(1, *shape, generator=generator) for m, shape in backbone.latent_shapes().items()}
    sigmas = {m: torch.tensor([0.6]) for m in latents}
    conditions = backbone.encode(["a red ball"])
    ours = backbone.velocity(latents, sigmas, conditions)
    plain = type(backbone.velocity_model)(pipeline.transformer, backbone.grid, backbone.audio_tokens, 12.0)
    theirs = plain(latents, sigmas, conditions)
    with role(backbone.velocity_model, "ref"):
        base = backbone.velocity(latents, sigmas, conditions)
    for modality, value in ours.items():
        torch.testing.assert_close(value, theirs[modality], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value, base[modality], atol=1e-3)


def test_what_peft_and_kohya_write_is_as_strong_as_they_say(worker, state, ltx2_dir, tmp_path):
    """The same adapter with its scale of 1.5 in lora_B, in alpha tensors, in plain metadata and in PEFT's config."""
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    worker.load(None)
    expected = video(worker)
    alphas = {
        f"transformer.{key.removesuffix('.lora_A.weight')}.alpha": torch.tensor(6.0) for key in state if "_A" in key
    }
    plain = {f"transformer.{key}": value for key, value in tensors.items()}
    (tmp_path / "peft").mkdir()
    save_file(plain | alphas, tmp_path / "tensors.safetensors")
    save_file(plain, tmp_path / "plain.safetensors", metadata={"ss_network_alpha": "6.0", "ss_network_dim": "4"})
    save_file({f"base_model.model.{key}": value for key, value in tensors.items()}, tmp_path / "peft/a.safetensors")
    LoraConfig(r=4, lora_alpha=6).save_pretrained(tmp_path / "peft")
    for name in ("tensors", "plain", "peft/a"):
        other = worker_of(ltx2_dir, tmp_path / f"{name}.safetensors")
        other.load(None)
        np.testing.assert_allclose(video(other), expected, rtol=1e-4, atol=1e-5)
