"""A tiny AST of AudioSet: files and key names of the published one, random weights, 24 wide, 2 layers, 128 frames.

Some classes have AudioSet's labels at AudioSet's places, the others stand-ins; there are 527.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDE, INNER, HEADS, LAYERS, PATCH, STRIDE, MELS, FRAMES = 24, 32, 4, 2, 16, 10, 128, 128
MEAN, STD = -4.2677393, 4.5689974
LABELS = {
    0: "Speech", 1: "Male speech, man speaking", 2: "Female speech, woman speaking", 16: "Laughter", 27: "Singing",
    38: "Groan", 53: "Walk, footsteps", 67: "Applause", 72: "Animal", 73: "Domestic animals, pets", 74: "Dog",
    75: "Bark", 80: "Whimper (dog)", 84: "Hiss", 111: "Bird", 113: "Chirp, tweet", 122: "Canidae, dogs, wolves",
    137: "Music", 140: "Guitar", 143: "Acoustic guitar", 152: "Keyboard (musical)", 164: "Drum", 200: "Bell",
    201: "Church bell", 251: "Blues", 267: "Background music", 283: "Wind", 289: "Rain", 298: "Fire", 300: "Vehicle",
    307: "Car", 310: "Car alarm", 323: "Police car (siren)", 354: "Door", 359: "Knock", 384: "Typing", 388: "Alarm",
    396: "Siren", 400: "Fire alarm", 404: "Mechanisms", 426: "Explosion", 437: "Wood", 441: "Glass", 444: "Liquid",
    445: "Splash, splatter", 457: "Sonar", 471: "Bouncing", 481: "Beep, bleep", 491: "Clicking", 500: "Silence",
    513: "Noise", 524: "Television", 526: "Field recording",
}  # fmt: skip


def labels() -> list[str]:
    """527 of them."""
    return [LABELS.get(place, f"Class {place}") for place in range(527)]


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by published name; the head's bias makes most classes improbable."""
    at = "audio_spectrogram_transformer"
    grid = ((MELS - PATCH) // STRIDE + 1) * ((FRAMES - PATCH) // STRIDE + 1)
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}.embeddings.cls_token": (1, 1, WIDE), f"{at}.embeddings.distillation_token": (1, 1, WIDE),
        f"{at}.embeddings.position_embeddings": (1, grid + 2, WIDE),
        f"{at}.embeddings.patch_embeddings.projection.weight": (WIDE, 1, PATCH, PATCH),
        f"{at}.embeddings.patch_embeddings.projection.bias": (WIDE,),
    }  # fmt: skip
    linears, norms = {"classifier.dense": (527, WIDE)}, [f"{at}.layernorm", "classifier.layernorm"]
    for index in range(LAYERS):
        layer = f"{at}.encoder.layer.{index}"
        linears |= {f"{layer}.attention.attention.{part}": (WIDE, WIDE) for part in ("query", "key", "value")}
        linears |= {f"{layer}.attention.output.dense": (WIDE, WIDE), f"{layer}.intermediate.dense": (INNER, WIDE)}
        linears |= {f"{layer}.output.dense": (WIDE, INNER)}
        norms += [f"{layer}.layernorm_before", f"{layer}.layernorm_after"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {f"{name}.{part}": (WIDE,) for name in norms for part in ("weight", "bias")}
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        fan = int(torch.tensor(shape[1:]).prod()) if name.endswith("weight") and len(shape) > 1 else 9
        one = 1.0 if "layernorm" in name and name.endswith("weight") else 0.0
        state[name] = one + torch.randn(shape, generator=generator) * fan**-0.5
    state["classifier.dense.bias"] -= 1.0
    return state


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    """The directory as it is published."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state or state_dict(), folder / "model.safetensors", {"format": "pt"})
    said: dict[str, Any] = {
        "architectures": ["ASTForAudioClassification"], "model_type": "audio-spectrogram-transformer",
        "hidden_size": WIDE, "intermediate_size": INNER, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "patch_size": PATCH, "frequency_stride": STRIDE, "time_stride": STRIDE, "max_length": FRAMES,
        "num_mel_bins": MELS, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
        "id2label": {str(place): label for place, label in enumerate(labels())},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said | config))
    settings = {
        "feature_extractor_type": "ASTFeatureExtractor", "do_normalize": True, "feature_size": 1, "max_length": FRAMES,
        "mean": MEAN, "std": STD, "num_mel_bins": MELS, "padding_side": "right", "padding_value": 0.0,
        "return_attention_mask": False, "sampling_rate": 16_000,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
