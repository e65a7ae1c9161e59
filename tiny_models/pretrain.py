"""The recipe that pretrains the tiny audio-video model on the built-in world.

1. Build the closed-form codecs, encode some thousand clips, tune the two decoders (`polish.py`).
2. Stage one: clean, fully synchronous clips and *independent* noise levels for video and audio. With one shared level
   each modality already shows its own events wherever the other one would, and the attention between them is never
   learnt; with independent levels the cleaner modality tells the noisier one where its events are.
3. Stage two: a short fine-tune on deliberately imperfect clips, so that reinforcement learning has something to mend
   while the clean and synchronous mode still exists among the samples.

Everything is a function of the seed and the number of steps; how many steps fit a time budget depends on the machine.
Shapes: N clips, B batch, P prompts, video tokens [B, 28, 40], audio tokens [B, 52, 16].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.world.scene import ALL_PROMPTS, CLEAN, FPS, IMPERFECT, Imperfections, make_clips
from tiny_models.codecs import log_mel, video_to_tensor
from tiny_models.pipeline import (
    AUDIO_TOKENS,
    LATENT_GRID,
    encode_text,
    normalise_latents,
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """The constants of the recipe. Times are minutes of wall clock, rates are per optimiser step."""

    seed: int = 0
    clean_clips: int = 6400
    imperfect_clips: int = 4800
    batch: int = 32
    learning_rate: float = 2e-3
    fine_tune_rate: float = 5e-4
    warmup_steps: int = 100
    ema: float = 0.995
    text_dropout: float = 0.10
    clip_norm: float = 1.0
    audio_weight: float = 1.0
    imperfections: Imperfections = IMPERFECT


@dataclass(frozen=True)
class Corpus:
    """Encoded clips: normalised packed latents and the index of each clip's caption in `ALL_PROMPTS`."""

    video: Tensor
    audio: Tensor
    prompt: Tensor


@dataclass
class Texts:
    """Frozen text features of the 32 captions and, last, of the empty prompt: [P + 1, 16, 192] and [P + 1, 16]."""

    embeds: Tensor
    mask: Tensor


class Denoiser(nn.Module):
    """Connectors and transformer as one module: the part of the pipeline that is trained.

    `forward` is the call that sampling makes too: one sigma in [0, 1] per clip and modality in, velocities out.
    """

    def __init__(self, connectors: Any, transformer: Any) -> None:
        super().__init__()
        self.connectors = connectors
        self.transformer = transformer

    def forward(
        self, video: Tensor, audio: Tensor, video_sigma: Tensor, audio_sigma: Tensor, embeds: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities `noise - clean` for noisy `video` [B, 28, 40] and `audio` [B, 52, 16].

        `video_sigma` and `audio_sigma` are noise levels [B]; `embeds` [B, 16, 192] and `mask` [B, 16] the frozen text
        features.
        """
        text, audio_text, text_mask = self.connectors(embeds, mask, padding_side="left")
        frames, height, width = LATENT_GRID
        batch, device = video.shape[0], video.device
        video_coords = self.transformer.rope.prepare_video_coords(batch, frames, height, width, device, fps=FPS)
        audio_coords = self.transformer.audio_rope.prepare_audio_coords(batch, AUDIO_TOKENS, device)
        video_time, audio_time = video_sigma * 1000.0, audio_sigma * 1000.0
        velocity: tuple[Tensor, Tensor] = self.transformer(
            hidden_states=video,
            audio_hidden_states=audio,
            encoder_hidden_states=text,
            audio_encoder_hidden_states=audio_text,
            timestep=video_time,
            audio_timestep=audio_time,
            sigma=video_time,
            audio_sigma=audio_time,
            encoder_attention_mask=text_mask,
            audio_encoder_attention_mask=text_mask,
            num_frames=frames,
            height=height,
            width=width,
            fps=FPS,
            audio_num_frames=AUDIO_TOKENS,
            video_coords=video_coords,
            audio_coords=audio_coords,
            isolate_modalities=False,
            use_cross_timestep=True,
            return_dict=False,
        )
        return velocity


@torch.no_grad()
def encode_clips(pipeline: Any, count: int, seed: int, imperfections: Imperfections) -> Corpus:
    """Make and encode `count` clips that go through all captions in turn."""
    videos: list[Tensor] = []
    audios: list[Tensor] = []
    clips = make_clips(count, seed, imperfections)
    for start in range(0, count, 64):
        part = [next(clips) for _ in range(min(64, count - start))]
        frames = video_to_tensor(np.stack([clip.video for clip in part]))
        mel = log_mel(torch.from_numpy(np.stack([clip.audio for clip in part])))
        raw_video = pipeline.vae.encode(frames).latent_dist.mode()
        raw_audio = pipeline.audio_vae.encode(mel).latent_dist.mode()
        video, audio = normalise_latents(pipeline, raw_video, raw_audio)
        videos.append(video)
        audios.append(audio)
    return Corpus(torch.cat(videos), torch.cat(audios), torch.arange(count) % len(ALL_PROMPTS))


def encode_captions(pipeline: Any) -> Texts:
    """Text features of every caption, the empty prompt last."""
    return Texts(*encode_text(pipeline, [*(prompt.prompt_av for prompt in ALL_PROMPTS), ""]))


def draw_sigmas(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise levels of video and audio, [B] each in (0, 1).

    45 % independent, 20 % nearly clean video with noisy audio, 10 % the reverse, 25 % equal (as in sampling). The
    levels lean to the noisy side, where sampling decides when the events happen.
    """
    draws = torch.rand(4, batch, generator=generator)
    normal = torch.randn(2, batch, generator=generator)
    noisy = torch.sigmoid(0.7 + 1.2 * normal)
    nearly_clean = 0.02 + 0.28 * draws[1]
    high = 0.5 + 0.5 * draws[2]
    kind = draws[0]
    video = torch.where((kind >= 0.45) & (kind < 0.65), nearly_clean, noisy[0])
    audio = torch.where((kind >= 0.65) & (kind < 0.75), nearly_clean, noisy[1])
    audio = torch.where((kind >= 0.45) & (kind < 0.65), high, audio)
    video = torch.where((kind >= 0.65) & (kind < 0.75), high, video)
    audio = torch.where(kind >= 0.75, video, audio)
    return video.clamp(0.01, 0.999), audio.clamp(0.01, 0.999)


def mix(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noisy state `(1 - sigma) clean + sigma noise`, sigma [B]."""
    level = sigma[:, None, None]
    return (1.0 - level) * clean + level * noise


def flow_loss(
    denoiser: nn.Module, corpus: Corpus, texts: Texts, rows: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean squared velocity errors (video, audio) of the clips `rows` [B] at freshly drawn noise and levels."""
    batch = len(rows)
    video, audio, prompt = corpus.video[rows], corpus.audio[rows], corpus.prompt[rows]
    dropped = torch.rand(batch, generator=generator) < recipe.text_dropout
    prompt = torch.where(dropped, len(texts.embeds) - 1, prompt)
    video_sigma, audio_sigma = draw_sigmas(batch, generator)
    video_noise = torch.randn(video.shape, generator=generator)
    audio_noise = torch.randn(audio.shape, generator=generator)
    video_velocity, audio_velocity = denoiser(
        mix(video, video_noise, video_sigma),
        mix(audio, audio_noise, audio_sigma),
        video_sigma,
        audio_sigma,
        texts.embeds[prompt],
        texts.mask[prompt],
    )
    video_loss = (video_velocity - (video_noise - video)).square().mean()
    audio_loss = (audio_velocity - (audio_noise - audio)).square().mean()
    return video_loss, audio_loss


@torch.no_grad()
def coupling_probe(
    denoiser: nn.Module, corpus: Corpus, texts: Texts, levels: tuple[float, float], count: int = 256
) -> tuple[float, float]:
    """How much worse each modality is denoised beside another clip's partner, as fractions (video, audio).

    Both sides use the same noise; the partner comes from a clip of the same caption (32 clips further on), so only
    what the text does not say, above all the event times, can make a difference. 0 means that the model ignores the
    other modality; the gate asks for 0.10 on the audio at levels (0.85, 0.85).
    """
    generator = torch.Generator().manual_seed(7)
    rows = torch.arange(count)
    video, audio = corpus.video[rows], corpus.audio[rows]
    video_noise = torch.randn(video.shape, generator=generator)
    audio_noise = torch.randn(audio.shape, generator=generator)
    sigmas = [torch.full((count,), level) for level in levels]
    noisy_video, noisy_audio = mix(video, video_noise, sigmas[0]), mix(audio, audio_noise, sigmas[1])
    embeds, mask = texts.embeds[corpus.prompt[rows]], texts.mask[corpus.prompt[rows]]
    other = torch.roll(rows, len(ALL_PROMPTS))

    def errors(video_in: Tensor, audio_in: Tensor) -> tuple[Tensor, Tensor]:
        return denoiser(video_in, audio_in, sigmas[0], sigmas[1], embeds, mask)  # type: ignore[no-any-return]

    with torch.compiler.set_stance("force_eager"):
        own_video, own_audio = errors(noisy_video, noisy_audio)
        _, audio_beside_other = errors(noisy_video[other], noisy_audio)
        video_beside_other, _ = errors(noisy_video, noisy_audio[other])

    def error(velocity: Tensor, noise: Tensor, clean: Tensor) -> float:
        return float((velocity - (noise - clean)).square().mean())

    worse_video = error(video_beside_other, video_noise, video) / error(own_video, video_noise, video) - 1.0
    worse_audio = error(audio_beside_other, audio_noise, audio) / error(own_audio, audio_noise, audio) - 1.0
    return worse_video, worse_audio


@dataclass
class Trainer:
    """Adam with warm-up, cosine decay on the clock, gradient clipping and an exponential moving average of weights."""

    denoiser: Denoiser
    texts: Texts
    recipe: Recipe
    say: Progress
    checkpoint: Path
    average: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.average:
            self.average = {key: value.detach().clone() for key, value in self.denoiser.state_dict().items()}

    def train(self, corpus: Corpus, probe: Corpus, minutes: float, rate: float, name: str) -> None:
        """Train on a corpus for so many minutes with the learning rate decaying from `rate` to 3 % of it."""
        recipe, started = self.recipe, time.monotonic()
        optimiser = torch.optim.AdamW(self.denoiser.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        generator = torch.Generator().manual_seed(recipe.seed + 1000 * (1 + self.steps))
        losses = torch.zeros(2)
        spoken, seen, first = started, 0, self.steps
        while (elapsed := time.monotonic() - started) < minutes * 60.0:
            decay = 0.03 + 0.97 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, elapsed / (minutes * 60.0))))
            warm = min(1.0, (self.steps - first + 1) / recipe.warmup_steps)
            for group in optimiser.param_groups:
                group["lr"] = rate * decay * warm
            rows = torch.randint(len(corpus.prompt), (recipe.batch,), generator=generator)
            video_loss, audio_loss = flow_loss(self.denoiser, corpus, self.texts, rows, recipe, generator)
            optimiser.zero_grad(set_to_none=True)
            (video_loss + recipe.audio_weight * audio_loss).backward()
            nn.utils.clip_grad_norm_(self.denoiser.parameters(), recipe.clip_norm)
            optimiser.step()
            self._blend()
            losses += torch.stack([video_loss.detach(), audio_loss.detach()])
            seen += 1
            if time.monotonic() - spoken > 60.0:
                left = minutes - (time.monotonic() - started) / 60.0
                pace = (self.steps - first) / (time.monotonic() - started)
                self._report(name, losses / seen, probe, pace, left)
                losses, seen, spoken = torch.zeros(2), 0, time.monotonic()
        self.save()

    def _blend(self) -> None:
        """One step of the moving average; it follows faster at the beginning."""
        self.steps += 1
        keep = min(self.recipe.ema, 1.0 - 1.0 / (1.0 + 0.2 * self.steps))
        with torch.no_grad():
            for key, value in self.denoiser.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1.0 - keep)

    def _report(self, name: str, losses: Tensor, probe: Corpus, pace: float, left: float) -> None:
        """Say where training stands, and keep a checkpoint."""
        worse_video, worse_audio = coupling_probe(self.denoiser, probe, self.texts, (0.85, 0.85))
        _, worse_audio_clean = coupling_probe(self.denoiser, probe, self.texts, (0.1, 0.85))
        self.say(
            f"{name}: step {self.steps}, loss video {losses[0]:.4f} audio {losses[1]:.4f}, "
            f"coupling at .85/.85 video {worse_video:+.1%} audio {worse_audio:+.1%}, at .1/.85 audio "
            f"{worse_audio_clean:+.1%}, {pace:.2f} steps/s, {left:.1f} min left"
        )
        self.save()

    def save(self) -> None:
        """Write the averaged and the current weights, so that a broken run loses a minute at most."""
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(self.average, self.checkpoint / "average.safetensors")
        current = {key: value.detach().clone() for key, value in self.denoiser.state_dict().items()}
        save_file(current, self.checkpoint / "current.safetensors")

    def use_average(self) -> None:
        """Put the averaged weights into the model."""
        self.denoiser.load_state_dict(self.average)


def restore(denoiser: Denoiser, checkpoint: Path, which: str = "average") -> None:
    """Load the weights `average` or `current` of a checkpoint."""
    denoiser.load_state_dict(load_file(checkpoint / f"{which}.safetensors"))


def clean_corpus(pipeline: Any, recipe: Recipe) -> tuple[Corpus, Corpus]:
    """The corpus of stage one and a small one of other clips for the coupling probe."""
    corpus = encode_clips(pipeline, recipe.clean_clips, recipe.seed + 1, CLEAN)
    return corpus, encode_clips(pipeline, 256, recipe.seed + 2, CLEAN)


def imperfect_corpus(pipeline: Any, recipe: Recipe) -> Corpus:
    """The corpus of stage two."""
    return encode_clips(pipeline, recipe.imperfect_clips, recipe.seed + 3, recipe.imperfections)
