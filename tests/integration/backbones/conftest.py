"""Small random `LTX2Pipeline` directories of both config families, in the real on-disk format."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.config.sampling import SamplingSpec

TEXT = 16
TOKENS = 8
FAMILIES = {
    "ltx2": {
        "transformer": {"rope_type": "split", "caption_channels": TEXT},
        "connectors": {},
    },
    "ltx2.3": {
        "transformer": {
            "rope_type": "split", "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True,
            "audio_cross_attn_mod": True, "perturbed_attn": True, "use_prompt_embeddings": False,
        },
        "connectors": {
            "per_modality_projections": True, "video_hidden_dim": 32, "audio_hidden_dim": 16, "proj_bias": True,
            "video_gated_attn": True, "audio_gated_attn": True, "video_connector_attention_head_dim": 16,
            "audio_connector_attention_head_dim": 8,
        },
    },
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "red", "blue", "ball", "bell", "drum"]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=TOKENS, padding_side="left", pad_token="<pad>", eos_token="<eos>",
        bos_token="<bos>", unk_token="<unk>",
    )  # fmt: skip


def text_encoder() -> Gemma3ForConditionalGeneration:
    text = Gemma3TextConfig(
        vocab_size=10, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3, boi_token_index=3,
            eoi_token_index=3,
        )
    )  # fmt: skip


def transformer(**overrides) -> LTX2VideoTransformer3DModel:
    config = {
        "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16,
        "cross_attention_dim": 32, "vae_scale_factors": (4, 16, 16), "pos_embed_max_pos": 2, "base_height": 32,
        "base_width": 32, "audio_in_channels": 16, "audio_out_channels": 16, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "audio_pos_embed_max_pos": 2, "num_layers": 3,
        "rope_theta": 100.0, **overrides,
    }  # fmt: skip
    return LTX2VideoTransformer3DModel(**config)


def connectors(**overrides) -> LTX2TextConnectors:
    config = {
        "caption_channels": TEXT, "text_proj_in_factor": 3, "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 8, "video_connector_num_layers": 1,
        "video_connector_num_learnable_registers": TOKENS, "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 8, "audio_connector_num_layers": 1,
        "audio_connector_num_learnable_registers": TOKENS, "connector_rope_base_seq_len": TOKENS,
        "rope_type": "split", **overrides,
    }  # fmt: skip
    return LTX2TextConnectors(**config)


def video_vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(16, 32), decoder_block_out_channels=(16, 32),
        down_block_types=("LTX2VideoDownBlock3D", "LTX2VideoDownBlock3D"), layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True), decoder_inject_noise=(False, False, False),
        downsample_type=("temporal", "temporal"), upsample_type=("temporal", "temporal"),
        upsample_residual=(True, True), upsample_factor=(2, 2), patch_size=16, spatial_compression_ratio=16,
        temporal_compression_ratio=4,
    )  # fmt: skip


def vocoder(family: str):
    if family == "ltx2":
        return LTX2Vocoder(
            in_channels=16, hidden_channels=16, out_channels=1, upsample_kernel_sizes=[4, 320],
            upsample_factors=[2, 80], resnet_kernel_sizes=[3], resnet_dilations=[[1]], output_sampling_rate=16000,
        )  # fmt: skip
    return LTX2VocoderWithBWE(
        in_channels=16, hidden_channels=16, out_channels=1, upsample_kernel_sizes=[4, 160], upsample_factors=[2, 80],
        resnet_kernel_sizes=[3], resnet_dilations=[[1]], bwe_in_channels=8, bwe_hidden_channels=16, bwe_out_channels=1,
        bwe_upsample_kernel_sizes=[4, 120], bwe_upsample_factors=[4, 60], bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1]], filter_length=64, hop_length=80, window_length=64, num_mel_channels=8,
    )  # fmt: skip


def build(directory: Path, family: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        audio_vae = AutoencoderKLLTX2Audio(
            base_channels=16, latent_channels=4, mel_bins=16, ch_mult=(1, 2, 4), num_res_blocks=1, in_channels=1,
            output_channels=1, resolution=16, sample_rate=16000, mel_hop_length=160,
        )  # fmt: skip
        pipeline = LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
                max_image_seq_len=4096, shift_terminal=0.1,
            ),
            vae=video_vae(),
            audio_vae=audio_vae,
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            connectors=connectors(**FAMILIES[family]["connectors"]),
            transformer=transformer(**FAMILIES[family]["transformer"]),
            vocoder=vocoder(family),
        )  # fmt: skip
        for vae in (pipeline.vae, pipeline.audio_vae):  # statistics that a forgotten normalisation would show
            vae.latents_mean.normal_()
            vae.latents_std.uniform_(0.5, 2.0)
        pipeline.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def model_dir(request, tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="session")
def ltx2_dir(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("models") / "plain", "ltx2")


SAMPLING = SamplingSpec(frames=9, height=32, width=32, fps=12.0, num_steps=4)


@pytest.fixture
def load():
    def load_backbone(directory: Path, **overrides) -> LTX2Backbone:
        spec = LTX2Spec(path=str(directory), lora=LoRASpec(rank=4, alpha=6.0), **overrides)
        return LTX2Backbone.load(spec, SAMPLING, seed=11)

    return load_backbone


@pytest.fixture
def perturb():
    """Give a role weights that do something."""

    def fill(module, name: str, seed: int = 0) -> None:
        from accord.backbones.adapters import adapter_parameters

        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter_parameters(module, name).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    return fill
