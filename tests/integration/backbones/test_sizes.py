"""What `accord plan` counts: against real tensors on the small models, and on the real-size configs without weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.model_dir import resolve_model_path
from accord.backbones.ltx2.sizes import model_sizes, numbers_in
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.backbones.sizes import kept_bytes, peak_bytes
from accord.config.sampling import SamplingSpec
from accord.errors import ModelError
from learner.memory import STAGES, rank_bytes

SAMPLING = SamplingSpec(frames=9, height=32, width=32, fps=12.0, num_steps=4)
WEIGHTS = ("transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder")


def of_a_real_forward(directory: Path, batch: int, **overrides) -> tuple[int, int, int]:
    """With real tensors: bytes that autograd keeps, most that lives at once without it, parameters of a role."""
    spec = LTX2Spec(path=str(directory), lora=LoRASpec(rank=4, alpha=6.0), **overrides)
    backbone = LTX2Backbone.load(spec, SAMPLING, without=("decoders",))
    latents = {m: torch.randn(batch, *shape) for m, shape in backbone.latent_shapes().items()}
    sigmas = {m: torch.full((batch,), 0.5) for m in latents}
    conditions = backbone.encode(["a red ball"]).repeat(batch)
    kept = kept_bytes(backbone.velocity_model, lambda: backbone.velocity(latents, sigmas, conditions), fused=False)
    peak = peak_bytes(lambda: backbone.velocity(latents, sigmas, conditions), fused=False)
    trained = sum(p.numel() for p in backbone.velocity_model.parameters() if p.requires_grad)
    return kept, peak, trained


def test_counted_as_real_tensors_are_kept(model_dir):
    directory, dtype = model_dir, "bfloat16" if model_dir.name == "ltx2.3" else "float32"
    sizes = model_sizes(LTX2Spec(path=str(directory), lora=LoRASpec(rank=4, alpha=6.0), dtype=dtype), SAMPLING)
    kept, peak, trained = of_a_real_forward(directory, 3, dtype=dtype)
    assert sizes.adapter_parameters == trained
    assert 3 * sizes.activations.plain == pytest.approx(kept, rel=0.05)
    inputs, _, _ = of_a_real_forward(directory, 3, dtype=dtype, gradient_checkpointing=True)
    assert 3 * sizes.activations.checkpointed == pytest.approx(inputs + 3 * sizes.activations.block, rel=0.05)
    assert kept / 3 > 3 * sizes.activations.block * 0.95
    assert 3 * sizes.activations.forward == pytest.approx(peak, rel=0.1)


def test_the_most_that_lives_at_once():
    x = torch.zeros(256)  # 1 KiB, existed before

    def forward():
        a = x + 1  # 1
        b = a.view(16, 16) * 2  # 2
        del a  # 1
        c = b.repeat(3, 1)  # 4
        del b  # 3
        c += 1
        return torch.cat([c, c])  # 9

    assert peak_bytes(forward) == 9 * 1024
    assert peak_bytes(lambda: (x + 1).view(-1)[:4] + 1) == 1024 + 16


def test_headers_and_classes_give_what_is_loaded(model_dir, tmp_path):
    pipeline = LTX2Pipeline.from_pretrained(model_dir)
    index = json.loads((model_dir / "model_index.json").read_text())
    for name in WEIGHTS:
        part = getattr(pipeline, name)
        real = sum(tensor.numel() for tensor in [*part.parameters(), *part.buffers()])
        found = {"headers": numbers_in(model_dir / name, index[name])}
        (tmp_path / name).mkdir()
        shutil.copy(model_dir / name / "config.json", tmp_path / name)
        found["configs"] = numbers_in(tmp_path / name, index[name])
        for file in (model_dir / name).glob("*.safetensors"):
            content = file.read_bytes()
            (tmp_path / name / file.name).write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
        found["headers alone"] = numbers_in(tmp_path / name, index[name])
        assert found == dict.fromkeys(found, pytest.approx(real, rel=0.01)), name


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> Path:
    """The published LTX-2 as configs alone."""
    root = tmp_path_factory.mktemp("full")
    tiny = resolve_model_path("builtin:tiny-ltx2")
    for name in ("scheduler", "tokenizer"):
        (root / name).mkdir()
    shutil.copy(tiny / "scheduler" / "scheduler_config.json", root / "scheduler")
    shutil.copy(tiny / "model_index.json", root)
    with torch.device("meta"):
        LTX2VideoTransformer3DModel(rope_type="split", num_layers=1).save_config(root / "transformer")
        AutoencoderKLLTX2Video(spatial_compression_ratio=32, temporal_compression_ratio=8).save_config(root / "vae")
        AutoencoderKLLTX2Audio().save_config(root / "audio_vae")
        LTX2Vocoder().save_config(root / "vocoder")
        LTX2TextConnectors(rope_type="split").save_config(root / "connectors")
    config = json.loads((root / "transformer" / "config.json").read_text())
    (root / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 48}))
    text = Gemma3TextConfig(
        hidden_size=3840, intermediate_size=15360, num_hidden_layers=48, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, vocab_size=262208,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=896,
        patch_size=14,
    )  # fmt: skip
    Gemma3Config(text_config=text, vision_config=vision).save_pretrained(root / "text_encoder")
    return root


def test_full_size_from_configs_alone(full_size):
    spec = LTX2Spec(path=str(full_size), dtype="bfloat16", lora=LoRASpec(rank=32, alpha=64.0))
    sampling = SamplingSpec(frames=121, height=512, width=768, fps=24.0, num_steps=20)
    sizes = model_sizes(spec, sampling)
    assert 18.5e9 < sizes.parameters["transformer"] < 19.5e9
    assert 11.5e9 < sizes.parameters["text_encoder"] < 12.5e9
    assert sizes.weight_bytes["transformer"] == 2 * sizes.parameters["transformer"]
    assert sizes.weight_bytes["vae"] == 4 * sizes.parameters["vae"]
    assert sizes.adapter_parameters == 48 * 6_422_528
    assert sizes.tokens == {"video": 6144, "audio": 126, "text": 1024}
    kept = sizes.activations
    layers = 4 * 6144 * (4096 * 8 + 2048 + 4096 * 2 + 16384)  # float32 inputs of the adapted layers on video tokens
    assert kept.plain > 48 * layers and kept.plain < 3 * 48 * layers
    feed_forward = 6144 * 16384 * (2 + 4)  # in bfloat16, and as its adapter reads it
    assert feed_forward < kept.forward < 3 * feed_forward
    hidden = 48 * 6144 * 4096 * 2
    assert hidden < kept.checkpointed - kept.block < 1.5 * hidden


def test_a_config_that_is_missing_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"vae/config\.json"):
        numbers_in(tmp_path / "vae", ["diffusers", "AutoencoderKLLTX2Video"])
    with pytest.raises(ModelError, match="no LTX9Video"):
        numbers_in(_with_config(tmp_path / "x"), ["diffusers", "LTX9Video"])


def _with_config(component: Path) -> Path:
    component.mkdir()
    (component / "config.json").write_text("{}")
    return component


def test_what_a_rank_holds_per_stage():
    held = {stage: rank_bytes(stage, 4, weights=800, frozen=400, adapter=100) for stage in STAGES}
    assert [held[stage]["weights"] for stage in STAGES] == [800, 800, 800, 200]
    assert [held[stage]["adapters"] for stage in STAGES] == [800, 800, 800, 200]
    assert [held[stage]["gradients"] for stage in STAGES] == [400, 500, 100, 100]
    assert [held[stage]["optimizer"] for stage in STAGES] == [800, 300, 300, 300]
    assert [held[stage]["buffers"] for stage in STAGES] == [400, 400, 400, 1200]
    following = rank_bytes(3, 4, weights=800, frozen=400, adapter=100, roles=3)
    assert following == held[3] | {"adapters": 300}
    alone = rank_bytes(0, 1, weights=800, frozen=400, adapter=100)
    assert sum(alone.values()) == 800 + 800 + 400 + 800
