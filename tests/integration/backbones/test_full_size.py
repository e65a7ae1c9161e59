"""The real-size configs on the meta device: names, counts, targets. No weights are made."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from accord.backbones.adapters import adapter_parameters, add_roles, target_layers
from accord.backbones.ltx2.model import LTX2Velocity
from accord.backbones.ltx2.shapes import check_complete, check_transformer
from accord.backbones.ltx2.spec import LoRASpec
from accord.backbones.ltx2.streams import GATES
from accord.backbones.surgery import audio_to_video, gradient_surgery
from accord.config.forward import OmniNFTSpec
from accord.errors import ModelError

LTX2 = {"rope_type": "split"}  # everything else of the published config is the class's default
LTX23 = {
    **LTX2, "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True,
    "perturbed_attn": True, "use_prompt_embeddings": False,
}  # fmt: skip
PUBLISHED = LoRASpec(rank=32, alpha=64.0)


def on_meta(config) -> LTX2VideoTransformer3DModel:
    with torch.device("meta"):
        return LTX2VideoTransformer3DModel(**config).requires_grad_(False)


@pytest.fixture(scope="module", params=[LTX2, LTX23], ids=["ltx2", "ltx2.3"])
def transformer(request):
    return on_meta(request.param)


def test_the_published_sizes_agree_with_their_config(transformer):
    shapes = {name.replace(".base_layer", ""): tuple(value.shape) for name, value in transformer.named_parameters()}
    check_transformer(Path("transformer"), dict(transformer.config), shapes)
    with pytest.raises(ModelError, match="2048 x 128 in the weights and 2048 x 64 by config"):
        check_transformer(Path("transformer"), {**transformer.config, "audio_in_channels": 64}, shapes)


CLASSES = [
    ("vae", AutoencoderKLLTX2Video, {}),
    ("vae", AutoencoderKLLTX2Video, {"timestep_conditioning": True}),
    ("audio_vae", AutoencoderKLLTX2Audio, {}),
    ("audio_vae", AutoencoderKLLTX2Audio, {"mid_block_add_attention": True}),
    ("vocoder", LTX2Vocoder, {}),
    ("vocoder", LTX2Vocoder, {"act_fn": "snakebeta", "antialias": True, "final_bias": False}),
    ("vocoder", LTX2VocoderWithBWE, {}),
    ("connectors", LTX2TextConnectors, {}),
    (
        "connectors", LTX2TextConnectors,
        {"per_modality_projections": True, "proj_bias": True, "video_gated_attn": True, "audio_gated_attn": True},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "config"), CLASSES, ids=[f"{n}-{len(c)}" for n, _, c in CLASSES])
def test_nothing_is_missing_in_what_the_classes_make(name, kind, config):
    with torch.device("meta"):
        made = kind(**config)
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    check_complete(Path(name), {"_class_name": kind.__name__, **made.config}, shapes)


def test_nothing_is_missing_in_a_whole_transformer_or_text_encoder(transformer):
    shapes = {name.replace(".base_layer", ""): tuple(value.shape) for name, value in transformer.named_parameters()}
    shapes = {name: shape for name, shape in shapes.items() if ".lora_" not in name}
    check_complete(Path("transformer"), dict(transformer.config), shapes)
    with torch.device("meta"):
        gemma = Gemma3ForConditionalGeneration(Gemma3Config())
    check_complete(
        Path("text_encoder"), gemma.config.to_dict(), {n: tuple(v.shape) for n, v in gemma.named_parameters()}
    )


def test_size_and_adapter_counts(transformer):
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    assert 18.5e9 < parameters < 21e9
    targets = target_layers(transformer, PUBLISHED, GATES)
    assert len(targets) == 48 * (6 * 4 + 2 * 2)
    assert not any("to_gate_logits" in target for target in targets)
    add_roles(transformer, PUBLISHED, seed=0, frozen=GATES)
    policy = adapter_parameters(transformer, "policy")
    assert sum(parameter.numel() for parameter in policy.values()) == 48 * 6_422_528
    assert policy.keys() == adapter_parameters(transformer, "old").keys()
    assert "transformer_blocks.47.audio_to_video_attn.to_out.0.lora_B.weight" in policy
    assert all(parameter.is_meta for parameter in transformer.parameters())


def test_published_surgery_fits_its_depth(transformer):
    velocity = LTX2Velocity(transformer, (16, 16, 24), 126, 24.0)
    assert velocity.depth == 48
    spec = OmniNFTSpec.model_validate({"preset": "published"}).surgery
    attentions = [block.audio_to_video_attn for block in transformer.transformer_blocks]
    with gradient_surgery(audio_to_video(velocity), spec):
        hooked = [index for index, attention in enumerate(attentions) if attention._forward_pre_hooks]
    assert hooked == [*range(11), *range(40, 48)]
    assert not any(attention._forward_pre_hooks for attention in attentions)
