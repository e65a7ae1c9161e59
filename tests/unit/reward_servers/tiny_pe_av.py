"""A tiny PE-AV: the directory that transformers writes of a `PeAudioVideoModel`, random weights.

Its sight is timm's in the published ones, and timm is not needed here: the library's class is built with another sight,
whose weights then give way to some by timm's names. Frames of 48 x 48 in 3 x 3 patches, 128 wide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PeAudioVideoConfig, PeAudioVideoModel, PeVideoEncoderConfig, ViTConfig

from tests.unit.reward_servers import tiny_imagereward

WIDE, PATCH, GRID, LAYERS, CLASSES = 128, 16, 3, 2, 20
SIDE = PATCH * GRID
SIGHT = "video_model.video_encoder.embedder.vision_model."
_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "vocab_size": tiny_imagereward.ROWS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
         "cls_token_id": 2, "sep_token_id": 3, "model_type": "modernbert"}  # fmt: skip
_DAC = {"model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 8,
        "hidden_size": 64}  # fmt: skip
_VISION = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "do_pooling": True,
           "global_pool": "map", "initializer_range": 0.02, "num_classes": CLASSES,
           "label_names": [f"LABEL_{place}" for place in range(CLASSES)],
           "model_args": {"depth": LAYERS, "embed_dim": WIDE, "img_size": SIDE, "num_heads": WIDE // 64}}  # fmt: skip


def library() -> PeAudioVideoModel:
    """The library's class; its sight is a stand-in."""
    sight = ViTConfig(
        hidden_size=4, num_hidden_layers=0, num_attention_heads=1, intermediate_size=4, num_labels=CLASSES
    )
    both: dict[str, Any] = {"audio_config": {"model_type": "pe_audio_encoder", "dac_config": _DAC} | _SMALL,
                            "video_config": PeVideoEncoderConfig(**_SMALL, vision_config=sight)}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = PeAudioVideoModel(PeAudioVideoConfig(text_config=dict(_TEXT), audio_video_config=both | _SMALL))
        for part in model.parameters():
            torch.nn.init.normal_(part, std=0.15 if part.ndim > 1 else 0.4)
    return model.eval()


def sight() -> dict[str, torch.Tensor]:
    """PE-Core by timm's names."""
    linears = {"attn_pool.q": (WIDE, WIDE), "attn_pool.kv": (2 * WIDE, WIDE), "attn_pool.proj": (WIDE, WIDE),
               "attn_pool.mlp.fc1": (4 * WIDE, WIDE), "attn_pool.mlp.fc2": (WIDE, 4 * WIDE),
               "head": (CLASSES, WIDE)}  # fmt: skip
    norms = ["norm", "norm_pre", "attn_pool.norm"]
    for layer in range(LAYERS):
        linears |= {f"blocks.{layer}.attn.qkv": (3 * WIDE, WIDE), f"blocks.{layer}.attn.proj": (WIDE, WIDE),
                    f"blocks.{layer}.mlp.fc1": (4 * WIDE, WIDE),
                    f"blocks.{layer}.mlp.fc2": (WIDE, 4 * WIDE)}  # fmt: skip
        norms += [f"blocks.{layer}.norm1", f"blocks.{layer}.norm2"]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDE), "pos_embed": (1, GRID**2 + 1, WIDE), "attn_pool.latent": (1, 1, WIDE),
        "patch_embed.proj.weight": (WIDE, 3, PATCH, PATCH),
    }  # fmt: skip
    shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    shapes |= {f"{name}.{part}": (WIDE,) for name in norms for part in ("weight", "bias")}
    generator, state = torch.Generator().manual_seed(6), {}
    for name, shape in shapes.items():
        fan = int(torch.tensor(shape[1:]).prod()) if len(shape) > 1 and name.endswith("weight") else 4
        state[name] = torch.randn(shape, generator=generator) * fan**-0.5 + float("norm" in name and "weight" in name)
    return state


def state_dict() -> dict[str, torch.Tensor]:
    """All weights by published name."""
    ours = {name: tensor for name, tensor in library().state_dict().items() if "vision_model." not in name}
    tied = ("audio_model.text_model.", "video_model.text_model.", "audio_video_encoder.embedder.audio_encoder.",
            "audio_video_encoder.embedder.video_encoder.")  # fmt: skip
    ours = {name: tensor.clone() for name, tensor in ours.items() if not name.startswith(tied)}
    return ours | {f"{SIGHT}timm_model.{name}": tensor for name, tensor in sight().items()}


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """The directory as it is published."""
    tiny_imagereward.write_tokenizer(folder)
    save_file(state or state_dict(), folder / "model.safetensors", {"format": "pt"})
    said = library().config.to_dict()
    said["audio_video_config"]["video_config"]["vision_config"] = _VISION
    (folder / "config.json").write_text(json.dumps(said | {"architectures": ["PeAudioVideoModel"]}))
