"""Writers of tiny Qwen2-VL reward checkpoints: the files, key names and layouts of the published ones, random weights.

Key names are those from before transformers 4.52 (`visual.`, `model.`, `lm_head.`), in which HPSv3 and VideoReward are
published. Two layers, 64 wide, 28 pixels a visual token as in the real ones, a byte-level tokenizer of 300 entries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2Model, Qwen2VLForConditionalGeneration

WIDE, INNER, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
EYE, EYE_LAYERS, EYE_HEADS = 32, 2, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
HPS_TEMPLATE = "Rate the picture for this text - {text_prompt}\nThe overall rating: <|Reward|>\nEND"
ALIGN_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
ALIGN_TEMPLATE = (
    "Rate the video.\nVisual quality: <|VQ_reward|>\nMotion quality: <|MQ_reward|>\n"
    "Text - {text_prompt}\nText alignment: <|TA_reward|>\nEND"
)
CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMS = {"vq": (3.6757, 2.2476), "mq": (1.1646, 1.3811), "ta": (2.8105, 2.5121)}


def write_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level BPE with Qwen2-VL's special tokens; returns it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=292, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([HPS_TEMPLATE, ALIGN_TEMPLATE, "a red ball bouncing with a bell sound"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def base_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` as transformers 4.45 wrote it: the language model's numbers stand at the top."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "torch_dtype": "bfloat16",
        "hidden_size": WIDE, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": 320, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "tie_word_embeddings": False, "use_sliding_window": False,
        "sliding_window": 4096, "max_window_layers": LAYERS,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"), "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_config": {
            "depth": EYE_LAYERS, "embed_dim": EYE, "num_heads": EYE_HEADS, "mlp_ratio": 4, "in_chans": 3,
            "hidden_size": WIDE, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "hidden_act": "quick_gelu", "model_type": "qwen2_vl",
        },
    }  # fmt: skip


def write_base(folder: Path) -> Tokenizer:
    """The directory of Qwen2-VL-Instruct without its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    files = {
        "config.json": base_config(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>",
            "additional_special_tokens": list(SPECIAL[1:]), "model_max_length": 4096,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056,
            "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "chat_template.json": {"chat_template": CHAT},
    }  # fmt: skip
    for name, tree in files.items():
        (folder / name).write_text(json.dumps(tree))
    return tokenizer


def backbone(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a whole Qwen2-VL under its published names: bfloat16, larger than at the start of a training
    so that a picture and a word make a difference."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}

    def linear(name: str, out: int, inside: int, *, bias: bool = True) -> None:
        made[f"{name}.weight"] = 1.5 * torch.randn(out, inside, generator=generator) / inside**0.5
        if bias:
            made[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)

    def norm(name: str, width: int, *, bias: bool) -> None:
        made[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        if bias:
            made[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    made["model.embed_tokens.weight"] = torch.randn(rows, WIDE, generator=generator)
    for layer in (f"model.layers.{index}" for index in range(LAYERS)):
        narrow = WIDE // HEADS * KV_HEADS
        for part, width in (("q", WIDE), ("k", narrow), ("v", narrow)):
            linear(f"{layer}.self_attn.{part}_proj", width, WIDE)
        linear(f"{layer}.self_attn.o_proj", WIDE, WIDE, bias=False)
        linear(f"{layer}.mlp.gate_proj", INNER, WIDE, bias=False)
        linear(f"{layer}.mlp.up_proj", INNER, WIDE, bias=False)
        linear(f"{layer}.mlp.down_proj", WIDE, INNER, bias=False)
        norm(f"{layer}.input_layernorm", WIDE, bias=False)
        norm(f"{layer}.post_attention_layernorm", WIDE, bias=False)
    norm("model.norm", WIDE, bias=False)
    linear("lm_head", rows, WIDE, bias=False)
    made["visual.patch_embed.proj.weight"] = torch.randn(EYE, 3, 2, 14, 14, generator=generator) / 20
    for block in (f"visual.blocks.{index}" for index in range(EYE_LAYERS)):
        linear(f"{block}.attn.qkv", 3 * EYE, EYE)
        linear(f"{block}.attn.proj", EYE, EYE)
        linear(f"{block}.mlp.fc1", 4 * EYE, EYE)
        linear(f"{block}.mlp.fc2", EYE, 4 * EYE)
        norm(f"{block}.norm1", EYE, bias=True)
        norm(f"{block}.norm2", EYE, bias=True)
    norm("visual.merger.ln_q", EYE, bias=True)
    linear("visual.merger.mlp.0", 4 * EYE, 4 * EYE)
    linear("visual.merger.mlp.2", WIDE, 4 * EYE)
    return {name: tensor.to(torch.bfloat16) for name, tensor in made.items()}


def write_hpsv3(bundle: Path, base: Path, seed: int = 0) -> Path:
    """`HPSv3/HPSv3.safetensors` of the OmniNFT bundle, its words beside it, and its base; returns the bundle."""
    tokenizer = write_base(base)
    state = backbone(tokenizer.get_vocab_size() + 1, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for place, out, inside in ((0, 24, WIDE), (3, 16, 24), (5, 2, 16)):
        state[f"rm_head.{place}.weight"] = 2 * torch.randn(out, inside, generator=generator) / inside**0.5
        state[f"rm_head.{place}.bias"] = 0.1 * torch.randn(out, generator=generator)
    part = bundle / "HPSv3"
    part.mkdir(parents=True, exist_ok=True)
    save_file(state, part / "HPSv3.safetensors", metadata={"format": "pt"})
    (part / "prompt_template.txt").write_text(HPS_TEMPLATE)
    return bundle


def video_reward_config(rank: int, alpha: int) -> dict[str, Any]:
    """`model_config.json` as VideoAlign's training writes it."""
    return {
        "data_config": {
            "meta_data": "train.csv", "data_dir": "videos", "max_frame_pixels": 200704, "num_frames": None, "fps": 2.0,
            "eval_dim": ["VQ", "MQ", "TA"], "prompt_template_type": "detailed_special", "sample_type": "uniform",
        },
        "training_args": {"bf16": True},
        "model_config": {
            "model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "output_dim": 3, "use_special_tokens": True,
            "torch_dtype": "bfloat16", "reward_token": "special",
        },
        "peft_lora_config": {"lora_enable": True, "lora_r": rank, "lora_alpha": alpha, "use_rslora": False},
        "inference_config": {
            f"{axis.upper()}_{part}": number
            for axis, pair in NORMS.items() for part, number in zip(("mean", "std"), pair, strict=True)
        },
    }  # fmt: skip


def video_reward_state(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """All weights of a VideoReward, three heads without bias among them."""
    generator = torch.Generator().manual_seed(seed + 1)
    head = 2 * torch.randn(3, WIDE, generator=generator) / WIDE**0.5
    return backbone(rows, seed) | {"rm_head.weight": head.to(torch.bfloat16)}


def write_video_reward(bundle: Path, base: Path, seed: int = 0) -> Path:
    """`VideoReward/` of the OmniNFT bundle, merged, its words beside it, and its base; returns the bundle."""
    tokenizer = write_base(base)
    part = bundle / "VideoReward"
    (part / "checkpoint-11352").mkdir(parents=True, exist_ok=True)
    (part / "model_config.json").write_text(json.dumps(video_reward_config(4, 8)))
    torch.save(video_reward_state(tokenizer.get_vocab_size() + 3, seed), part / "checkpoint-11352" / "model.pth")
    (part / "prompt_template.txt").write_text(ALIGN_TEMPLATE)
    return bundle


def write_video_reward_lora(bundle: Path, base: Path, seed: int = 0, rank: int = 4, alpha: int = 8) -> Path:
    """The same in the form that training writes: a LoRA of the attention and the MLP, what was trained besides (the
    embeddings with the three tokens, the merger, the heads), and a base with its weights. Returns the bundle."""
    tokenizer = write_base(base)
    rows, generator = tokenizer.get_vocab_size(), torch.Generator().manual_seed(seed + 2)
    state = video_reward_state(rows + 3, seed)
    below = {name: tensor.clone() for name, tensor in state.items() if name != "rm_head.weight"}
    padded = torch.cat([state["model.embed_tokens.weight"][:rows], torch.zeros(20, WIDE, dtype=torch.bfloat16)])
    below |= {"model.embed_tokens.weight": padded, "lm_head.weight": padded.clone()}
    save_file(below, base / "model.safetensors", metadata={"format": "pt"})
    part = bundle / "VideoReward"
    checkpoint = part / "checkpoint-90"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (part / "checkpoint-8").mkdir(exist_ok=True)
    (part / "checkpoint-8" / "trainer_state.json").write_text("{}")
    (part / "model_config.json").write_text(json.dumps(video_reward_config(rank, alpha)))
    besides = {name: tensor for name, tensor in state.items()
               if name.startswith(("model.embed_tokens", "visual.merger", "rm_head"))}  # fmt: skip
    besides["visual.merger.mlp.2.bias"] = besides["visual.merger.mlp.2.bias"] + 0.5
    torch.save(
        {f"base_model.model.{name}": tensor for name, tensor in besides.items()}, checkpoint / "non_lora_state_dict.pth"
    )
    adapter = {}
    for index in range(LAYERS):
        for layer in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
            name = f"model.layers.{index}.{layer}"
            out, inside = state[f"{name}.weight"].shape
            adapter[f"base_model.model.{name}.lora_A.weight"] = (
                torch.randn(rank, inside, generator=generator) / inside**0.5
            )
            adapter[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / rank**0.5
    save_file(adapter, checkpoint / "adapter_model.safetensors", metadata={"format": "pt"})
    (checkpoint / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": False, "bias": "none", "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct",
    }))  # fmt: skip
    (part / "prompt_template.txt").write_text(ALIGN_TEMPLATE)
    return bundle


def patches_one_by_one(frames_FHWC: np.ndarray) -> torch.Tensor:
    """Patches of frames whose sides are multiples of 28, each cut out by itself: two frames at a time, visual token by
    visual token, its patches two by two, and in a patch channel by channel and frame by frame."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels_FHWC = (frames_FHWC / 255.0 - mean) / std
    cut = []
    for first in range(0, len(pixels_FHWC), 2):
        for top in range(0, pixels_FHWC.shape[1], 28):
            for left in range(0, pixels_FHWC.shape[2], 28):
                for down, right in ((0, 0), (0, 14), (14, 0), (14, 14)):
                    rows, columns = slice(top + down, top + down + 14), slice(left + right, left + right + 14)
                    pair = pixels_FHWC[first : first + 2, rows, columns]
                    cut.append(np.concatenate([pair[f, ..., c].ravel() for c in range(3) for f in range(2)]))
    return torch.tensor(np.stack(cut), dtype=torch.float32)


def as_library_loads(state: dict[str, torch.Tensor], base: Path, folder: Path) -> Qwen2VLForConditionalGeneration:
    """Weights under their published names as a directory that transformers loads and renames by itself; no heads."""
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": len(state["lm_head.weight"])}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plain = {name: tensor for name, tensor in state.items() if not name.startswith("rm_head.")}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def one_dimensional(library: Qwen2VLForConditionalGeneration) -> Qwen2Model:
    """The language model as a plain Qwen2, which knows one position for each token and no other."""
    text = library.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
    plain = Qwen2Model(Qwen2Config(**{name: getattr(text, name) for name in names}, rope_theta=1e6)).eval()
    plain.load_state_dict(library.model.language_model.state_dict())
    return plain


def embedded(library: Qwen2VLForConditionalGeneration, ids_BL: torch.Tensor, seen: torch.Tensor, token: int):
    """Embeddings of a sequence with what is seen in place of its placeholders."""
    found = library.model.get_input_embeddings()(ids_BL)
    found[ids_BL == token] = seen
    return found
