"""Train the built-in tiny CLAP on the procedural world and write it to `reward_servers/checkpoints/tiny-clap`.

    python -m tiny_models.clap --pipeline accord/world/pretrained/tiny-ltx2

A transformers `ClapModel` (Swin audio tower, RoBERTa text tower) learns by a sigmoid contrastive loss: for each sound
in a batch and each of the four texts, sigmoid(scale * cosine + bias) should be the share of the sound's energy that
belongs to the named sound. Mixtures and hiss have shares between 0 and 1, which makes the score graded; sounds at a
pitch between the four, plain noise and near silence have share 0 everywhere. Half of the sounds pass through log-mel,
the audio autoencoder and the vocoder of the built-in pipeline, as generated sound does. Same seed, same files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tokenizers.pre_tokenizers import Whitespace
from torch.nn import functional
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    PreTrainedTokenizerFast,
)

from accord.config.clap_dir import SHIPPED
from accord.world.scene import ALL_PROMPTS, AUDIO_SAMPLES, SAMPLE_RATE, SOUNDS, render_audio
from tiny_models.codecs import build_vocoder, log_mel
from tiny_models.pipeline import load_backbone, word_tokenizer

Float = NDArray[np.float32]
NAMES = tuple(SOUNDS)
TEMPLATES = ("a {} sound", "{} sound", "the sound of a {}", "a {}", "{}")
SCALE, BIAS = 10.0, -5.0
EVALUATION = 512


# ---------------------------------------------------------------- the world's sounds, with shares


def draw_sound(rng: np.random.Generator) -> tuple[Float, Float]:
    """One sound [S] and the share of its energy per name [4]."""
    parts = np.zeros((len(NAMES), AUDIO_SAMPLES), dtype=np.float32)
    kind = rng.uniform()
    count = 1 if kind < 0.6 else 2 if kind < 0.78 else 0
    for index in rng.choice(len(NAMES), size=count, replace=False):
        parts[index] = rng.uniform(0.25, 1.0) * render_audio(_onsets(rng), NAMES[index])
    other = np.zeros(AUDIO_SAMPLES, dtype=np.float32)
    if rng.uniform() < (0.7 if count == 0 else 0.1):
        other += _stranger(rng)
    if rng.uniform() < 0.6 or count == 0:
        other += (10.0 ** rng.uniform(-3.5, -1.2) * rng.standard_normal(AUDIO_SAMPLES)).astype(np.float32)
    energy = np.square(parts).sum(axis=1)
    share = energy / max(float(energy.sum() + np.square(other).sum()), 1.0)
    return np.clip(parts.sum(axis=0) + other, -1.0, 1.0), share.astype(np.float32)


def _onsets(rng: np.random.Generator) -> Float:
    """One to five onset times in seconds, evenly spaced or not."""
    count = int(rng.integers(1, 6))
    if rng.uniform() < 0.5:
        times = rng.uniform(0, 0.8) + rng.uniform(0.5, 1.1) * np.arange(count)
    else:
        times = rng.uniform(0, 2.0, size=count)
    return times.astype(np.float32)


def _stranger(rng: np.random.Generator) -> Float:
    """Decaying or steady tones at a pitch that lies between those of the world."""
    pitch = float(rng.choice([270.0, 820.0, 2050.0, 5000.0])) * float(rng.uniform(0.9, 1.1))
    time_S = np.arange(AUDIO_SAMPLES) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * pitch * time_S)
    if rng.uniform() < 0.5:
        tone *= np.exp(-np.mod(time_S - rng.uniform(0, 1), rng.uniform(0.5, 1.0)) / 0.1)
    return (rng.uniform(0.05, 0.5) * tone).astype(np.float32)


def make_codec(directory: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """What generated sound goes through: mel, audio autoencoder of a pipeline, vocoder; [B, S] to [B, S]."""
    vae: Any = load_backbone(directory).pipeline.audio_vae
    vocoder: Any = build_vocoder()

    @torch.no_grad()
    def codec(sound_BS: torch.Tensor) -> torch.Tensor:
        mel = log_mel(sound_BS)
        latents = vae.encode(mel).latent_dist.mode()
        mel = vae.decode(latents + 0.1 * latents.std() * torch.randn_like(latents)).sample[:, :, : mel.shape[2]]
        return vocoder(mel)[:, 0]

    return codec


def dataset(
    count: int, seed: int, codec: Callable[[torch.Tensor], torch.Tensor], extractor: ClapFeatureExtractor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N, 1, T, mels] and shares [N, 4]; every second sound has been through the codec."""
    rng = np.random.default_rng(seed)
    features, shares = [], []
    for _ in range(0, count, 64):
        drawn = [draw_sound(rng) for _ in range(64)]
        sounds = torch.from_numpy(np.stack([sound for sound, _ in drawn]))
        sounds[::2] = codec(sounds[::2])
        batch = extractor(list(sounds.numpy()), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features.append(batch["input_features"].float())
        shares += [share for _, share in drawn]
    return torch.cat(features)[:count], torch.from_numpy(np.stack(shares))[:count]


# ---------------------------------------------------------------- the model


def new_extractor() -> ClapFeatureExtractor:
    """Log-mel features of 2.05 s at 16 kHz: 103 frames of 32 bands."""
    extractor = ClapFeatureExtractor(
        feature_size=32, sampling_rate=SAMPLE_RATE, hop_length=320, max_length_s=AUDIO_SAMPLES / SAMPLE_RATE,
        fft_window_size=1024, frequency_min=50, frequency_max=8000, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    extractor.nb_max_samples = AUDIO_SAMPLES
    return extractor


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer over the captions of the world and the training templates."""
    texts = [prompt.prompt_av for prompt in ALL_PROMPTS] + [template.format("") for template in TEMPLATES]
    return word_tokenizer(
        texts, ("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>", Whitespace(),
        bos_token="<s>", pad_token="<pad>", eos_token="</s>", model_max_length=32,
    )  # fmt: skip


def new_model(vocabulary: int) -> ClapModel:
    """A ClapModel of about half a million parameters; scale of the loss as its logit scale."""
    audio = ClapAudioConfig(
        spec_size=64, num_mel_bins=32, window_size=4, patch_size=4, patch_stride=[4, 4], patch_embeds_hidden_size=32,
        depths=[2, 2], num_attention_heads=[2, 4], hidden_size=64, projection_dim=64, num_classes=len(NAMES),
        drop_path_rate=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    text = ClapTextConfig(
        vocab_size=vocabulary, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=34, projection_dim=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=64, logit_scale_init_value=SCALE)
    return ClapModel(config)


def draw_texts(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> Any:
    """One text for each of the four names: short templates, or a whole caption of the world."""
    texts = []
    for name in NAMES:
        if rng.uniform() < 0.3:
            captions = [prompt.prompt_av for prompt in ALL_PROMPTS if prompt.sound == name]
            texts.append(str(rng.choice(captions)))
        else:
            texts.append(str(rng.choice(TEMPLATES)).format(name))
    return tokenizer(texts, padding=True, return_tensors="pt")


def cosines(model: ClapModel, features: torch.Tensor, tokens: Any) -> torch.Tensor:
    """Cosine of every sound with every text, [B, 4]."""
    longer = torch.zeros(len(features), 1, dtype=torch.bool)
    sound = model.get_audio_features(features, is_longer=longer).pooler_output
    text = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    return functional.normalize(sound, dim=1) @ functional.normalize(text, dim=1).T


def train(
    model: ClapModel, tokenizer: PreTrainedTokenizerFast, features: torch.Tensor, shares: torch.Tensor, steps: int
) -> None:
    """AdamW with a cosine schedule on the sigmoid contrastive loss."""
    rng = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(len(features), size=48))
        target = 0.02 + 0.96 * shares[rows]
        logits = SCALE * cosines(model, features[rows], draw_texts(tokenizer, rng)) + BIAS
        loss = functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    model.eval()


@torch.no_grad()
def measure(
    model: ClapModel, tokenizer: PreTrainedTokenizerFast, features: torch.Tensor, shares: torch.Tensor
) -> dict[str, float]:
    """Quality on sounds that were not trained on."""
    tokens = tokenizer([f"a {name} sound" for name in NAMES], padding=True, return_tensors="pt")
    cosine = torch.cat([cosines(model, part, tokens) for part in features.split(64)])
    clear = shares.max(dim=1).values > 0.5
    right = cosine.argmax(dim=1) == shares.argmax(dim=1)
    return {
        "right_name": float(right[clear].float().mean()),
        "cosine_clean": float(cosine[shares > 0.9].mean()),
        "cosine_absent": float(cosine[shares < 0.05].mean()),
        "rank_correlation_with_share": float(spearmanr(cosine.numpy().ravel(), shares.numpy().ravel()).statistic),
    }


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--sounds", type=int, default=3072)
    parser.add_argument(
        "--pipeline", type=Path, required=True, help="LTX2Pipeline directory whose audio autoencoder to use"
    )
    parser.add_argument("--out", type=Path, default=SHIPPED["builtin:tiny-clap"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.monotonic()
    extractor, tokenizer = new_extractor(), new_tokenizer()
    model, codec = new_model(len(tokenizer)), make_codec(arguments.pipeline)
    features, shares = dataset(arguments.sounds, 0, codec, extractor)
    unseen = dataset(EVALUATION, 1, codec, extractor)
    print(f"{len(features)} sounds in {time.monotonic() - started:.0f} s", flush=True)
    train(model, tokenizer, features, shares, arguments.steps)
    quality = measure(model, tokenizer, *unseen)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in (model, tokenizer, extractor):
        part.save_pretrained(arguments.out)
    for path in arguments.out.iterdir():
        path.chmod(0o644)
    print(json.dumps({"seconds": round(time.monotonic() - started), **quality}, indent=1))


if __name__ == "__main__":
    main()
