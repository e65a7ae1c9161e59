"""A tiny Whisper: files and key names of the published ones, random weights, 16 wide, 2 layers, stretches of 2 s.

Its tokens are whole words; the special ones follow them in the published order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WIDE, INNER, HEADS, LAYERS, MELS, SECONDS, PLACES, TARGETS = 16, 24, 4, 2, 80, 2, 100, 32
WORDS = """good morning red ball rain dog wind bell the a loud stone glass river night moon star song horse train"""
TEXTS = [f"Ġ{word}" for word in WORDS.split()]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
           "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
           *(f"<|{place * 0.02:.2f}|>" for place in range(6))]  # fmt: skip
IDS = {token: place for place, token in enumerate([*TEXTS, *SPECIAL])}
END, START = IDS["<|endoftext|>"], IDS["<|startoftranscript|>"]
SUPPRESSED = [1, *range(START, IDS["<|notimestamps|>"] + 1)]
SUPPRESSED_FIRST = [IDS["Ġstone"], IDS["Ġhorse"], END]  # words that most transcripts would begin with


def state_dict(seed: int = 4) -> dict[str, torch.Tensor]:
    """Random weights by published name."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.encoder.conv1.weight": (WIDE, MELS, 3), "model.encoder.conv2.weight": (WIDE, WIDE, 3),
        "model.encoder.conv1.bias": (WIDE,), "model.encoder.conv2.bias": (WIDE,),
        "model.encoder.embed_positions.weight": (PLACES, WIDE), "model.decoder.embed_positions.weight": (TARGETS, WIDE),
        "model.decoder.embed_tokens.weight": (len(IDS), WIDE),
    }  # fmt: skip
    norms = ["model.encoder.layer_norm", "model.decoder.layer_norm"]
    for half, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for index in range(LAYERS):
            layer = f"model.{half}.layers.{index}"
            for attention in attentions:
                shapes |= {f"{layer}.{attention}.{part}_proj.weight": (WIDE, WIDE) for part in ("q", "k", "v", "out")}
                shapes |= {f"{layer}.{attention}.{part}_proj.bias": (WIDE,) for part in ("q", "v", "out")}
                norms.append(f"{layer}.{attention}_layer_norm")
            shapes |= {f"{layer}.fc1.weight": (INNER, WIDE), f"{layer}.fc1.bias": (INNER,)}
            shapes |= {f"{layer}.fc2.weight": (WIDE, INNER), f"{layer}.fc2.bias": (WIDE,)}
            norms.append(f"{layer}.final_layer_norm")
    shapes |= {f"{name}.{part}": (WIDE,) for name in norms for part in ("weight", "bias")}
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        one = 1.0 if "layer_norm.weight" in name else 0.0
        wide = 9.0 if name == "model.decoder.embed_positions.weight" else 2.0  # so that transcripts have several words
        state[name] = one + torch.randn(shape, generator=generator) * wide * WIDE**-0.5
    return state


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor] | None = None, **changed: dict[str, Any]) -> None:
    """The directory as it is published; `changed` are fields by file: `config`, `generation`, `extractor`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state or state_dict(), folder / "model.safetensors", {"format": "pt"})
    tokenizer = Tokenizer(models.BPE({token: place for token, place in IDS.items() if place < END}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": WIDE,
        "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "num_mel_bins": MELS,
        "max_source_positions": PLACES, "max_target_positions": TARGETS, "vocab_size": len(IDS),
        "eos_token_id": END, "bos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START,
        "is_encoder_decoder": True, "activation_function": "gelu", "scale_embedding": False,
    }  # fmt: skip
    generation = {
        "decoder_start_token_id": START, "eos_token_id": END, "bos_token_id": END, "pad_token_id": END,
        "suppress_tokens": SUPPRESSED, "begin_suppress_tokens": SUPPRESSED_FIRST, "is_multilingual": True,
        "lang_to_id": {token: IDS[token] for token in ("<|en|>", "<|de|>")}, "max_length": TARGETS,
        "task_to_id": {task: IDS[f"<|{task}|>"] for task in ("transcribe", "translate")}, "return_timestamps": False,
        "no_timestamps_token_id": IDS["<|notimestamps|>"], "max_initial_timestamp_index": 1,
        "prev_sot_token_id": IDS["<|startofprev|>"],
    }  # fmt: skip
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": SECONDS, "feature_size": MELS,
        "hop_length": 160, "n_fft": 400, "n_samples": SECONDS * 16_000, "nb_max_frames": SECONDS * 100,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False, "sampling_rate": 16_000,
        "processor_class": "WhisperProcessor",
    }  # fmt: skip
    for name, said in (("config", config), ("generation_config", generation), ("preprocessor_config", extractor)):
        (folder / f"{name}.json").write_text(json.dumps(said | changed.get(name, {})))
