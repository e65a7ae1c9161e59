"""Acceptance gates of the tiny model: sample it, measure the samples, and say whether it may ship.

The gates: (a) the audio is denoised at least 10 % worse beside another clip's video at sigma .85/.85; (b) the sync
score of samples exceeds that of shuffled pairs by at least 0.15 on the clean (stage one) model; (c) colour, motion and
sound of samples follow the caption far above chance.

Shapes: N clips, F frames, H, W, S audio samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accord.world import measure
from accord.world.heldout import WorldStatistics, diversity, frechet_distance
from accord.world.scene import ALL_PROMPTS, COLOURS, FPS, FRAMES, MOTIONS, SOUNDS, Clip, WorldPrompt
from tiny_models.codecs import VIDEO_LATENTS, log_mel, tensor_to_video, video_to_tensor
from tiny_models.pipeline import (
    AUDIO_CHANNELS,
    AUDIO_TOKENS,
    LATENT_GRID,
    decode_latents,
    encode_text,
    normalise_latents,
)
from tiny_models.pretrain import Denoiser

SAMPLING_STEPS = 8
LEAST_COUPLING = 0.10
LEAST_SYNC_GAP = 0.15
LEAST_ACCURACY = {"colour": 0.6, "motion": 0.8, "sound": 0.6}


@dataclass(frozen=True)
class ClipSet:
    """Clips to be measured: captions, video uint8 [N, F, H, W, 3], audio float [N, S] and, if at hand, packed
    latents [N, 28, 40] and [N, 52, 16]."""

    prompts: list[WorldPrompt]
    video: NDArray[np.uint8]
    audio: NDArray[np.float32]
    video_latents: Tensor | None = None
    audio_latents: Tensor | None = None


def sampling_sigmas(pipeline: Any, steps: int = SAMPLING_STEPS) -> Tensor:
    """The noise levels of the pipeline's own scheduler for clips of this size, falling from 1 to 0: [steps + 1]."""
    scheduler = pipeline.scheduler
    config = scheduler.config
    tokens = int(np.prod(LATENT_GRID))
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=mu)
    return scheduler.sigmas.clone().float()


@torch.no_grad()
def sample_latents(
    pipeline: Any, prompts: list[WorldPrompt], seed: int, steps: int = SAMPLING_STEPS, guidance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Euler sampling, `x <- x + (sigma' - sigma) v`, one pass a step unless `guidance` differs from 1.

    Returns packed normalised latents, video [N, 28, 40] and audio [N, 52, 16].
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(prompts)
    video = torch.randn(count, int(np.prod(LATENT_GRID)), VIDEO_LATENTS, generator=generator)
    audio = torch.randn(count, AUDIO_TOKENS, AUDIO_CHANNELS, generator=generator)
    denoiser = Denoiser(pipeline.connectors, pipeline.transformer)
    embeds, mask = encode_text(pipeline, [prompt.prompt_av for prompt in prompts])
    empty, empty_mask = encode_text(pipeline, [""] * count) if guidance != 1.0 else (embeds, mask)
    sigmas = sampling_sigmas(pipeline, steps)
    for now, following in pairwise(sigmas):
        level = now.expand(count)
        v_video, v_audio = denoiser(video, audio, level, level, embeds, mask)
        if guidance != 1.0:
            u_video, u_audio = denoiser(video, audio, level, level, empty, empty_mask)
            v_video = u_video + guidance * (v_video - u_video)
            v_audio = u_audio + guidance * (v_audio - u_audio)
        video = video + (following - now) * v_video
        audio = audio + (following - now) * v_audio
    return video, audio


def sample_clips(
    pipeline: Any, prompts: list[WorldPrompt], seed: int, guidance: float = 1.0, steps: int = SAMPLING_STEPS
) -> ClipSet:
    """Sample and decode one clip for each caption, 32 at a time."""
    parts = []
    for start in range(0, len(prompts), 32):
        video, audio = sample_latents(pipeline, prompts[start : start + 32], seed + start, steps, guidance)
        frames, sound = decode_latents(pipeline, video, audio)
        parts.append((tensor_to_video(frames), sound.numpy().astype(np.float32), video, audio))
    return ClipSet(
        prompts,
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        torch.cat([part[2] for part in parts]),
        torch.cat([part[3] for part in parts]),
    )


def as_clip_set(clips: list[Clip]) -> ClipSet:
    """True clips, as made."""
    return ClipSet(
        [clip.prompt for clip in clips], np.stack([c.video for c in clips]), np.stack([c.audio for c in clips])
    )


@torch.no_grad()
def through_codecs(pipeline: Any, clips: ClipSet) -> ClipSet:
    """The same clips encoded and decoded again: the ceiling for samples."""
    frames, sounds, latents = [], [], []
    for start in range(0, len(clips.prompts), 32):
        rows = slice(start, start + 32)
        raw_video = pipeline.vae.encode(video_to_tensor(clips.video[rows])).latent_dist.mode()
        raw_audio = pipeline.audio_vae.encode(log_mel(torch.from_numpy(clips.audio[rows]))).latent_dist.mode()
        packed = normalise_latents(pipeline, raw_video, raw_audio)
        video, audio = decode_latents(pipeline, *packed)
        frames.append(tensor_to_video(video))
        sounds.append(audio.numpy().astype(np.float32))
        latents.append(packed)
    return ClipSet(
        clips.prompts,
        np.concatenate(frames),
        np.concatenate(sounds),
        torch.cat([pair[0] for pair in latents]),
        torch.cat([pair[1] for pair in latents]),
    )


def even_prompts(count: int) -> list[WorldPrompt]:
    """`count` captions that go through all of them in turn."""
    return [ALL_PROMPTS[index % len(ALL_PROMPTS)] for index in range(count)]


def measure_clips(clips: ClipSet, statistics: dict[str, WorldStatistics] | None = None) -> dict[str, float]:
    """All measures of a set of clips, averaged; see `measure` for each.

    Shuffled pairs take the audio of another clip of the same caption where there is one (32 clips further on).
    """
    contacts = [measure.visual_contacts(video) for video in clips.video]
    onsets = [np.maximum(measure.audio_onsets(audio) - measure.VOCODER_LATENCY_S, 0.0) for audio in clips.audio]
    count = len(contacts)
    step = len(ALL_PROMPTS) if count > len(ALL_PROMPTS) else 1
    shuffled = [onsets[(index + step) % count] for index in range(count)]
    paired_f1 = np.asarray([measure.soft_f1(a, b) for a, b in zip(contacts, onsets, strict=True)])
    shuffled_f1 = np.asarray([measure.soft_f1(a, b) for a, b in zip(contacts, shuffled, strict=True)])
    gap_error = float((paired_f1 - shuffled_f1).std() / np.sqrt(count))
    row: dict[str, list[float]] = {}
    for prompt, video, audio in zip(clips.prompts, clips.video, clips.audio, strict=True):
        colour, motion = measure.colour_probabilities(video), measure.motion_probabilities(video)
        sound = measure.sound_shares(audio)
        values = {
            "object present": measure.object_presence(video),
            "colour right": float(list(COLOURS)[int(colour.argmax())] == prompt.colour and colour.max() > 0.26),
            "motion right": float(MOTIONS[int(motion.argmax())] == prompt.motion),
            "sound right": float(list(SOUNDS)[int(sound.argmax())] == prompt.sound and sound.max() > 0),
            "sound share": float(sound[list(SOUNDS).index(prompt.sound)]),
            "audio SNR (dB)": measure.audio_snr_db(audio),
            "flicker": measure.flicker(video),
            "sharpness": measure.sharpness(video),
        }
        for name, value in values.items():
            row.setdefault(name, []).append(value)
    found = {name: float(np.nanmean(values)) for name, values in row.items()}
    offsets = [measure.median_offset_s(a, b) for a, b in zip(contacts, onsets, strict=True)]
    found |= {
        "contacts per clip": float(np.mean([len(times) for times in contacts])),
        "onsets per clip": float(np.mean([len(times) for times in onsets])),
        "sync": float(paired_f1.mean()),
        "sync, shuffled pairs": float(shuffled_f1.mean()),
        "sync gap": float(paired_f1.mean() - shuffled_f1.mean()),
        "sync gap, standard error": gap_error,
        "sync, circular shifts": float(
            np.mean([measure.chance_f1(a, b, FRAMES / FPS) for a, b in zip(contacts, onsets, strict=True)])
        ),
        "median offset (ms)": float(1000.0 * np.nanmedian(offsets)),
    }
    if statistics is not None and clips.video_latents is not None and clips.audio_latents is not None:
        for name, latents in (("video", clips.video_latents), ("audio", clips.audio_latents)):
            found[f"{name} distance to clean world"] = frechet_distance(latents, statistics[name])
            found[f"{name} diversity"] = diversity(latents, statistics[name])
    return found


def verdict(coupling: float, stage_one: dict[str, float], shipped: dict[str, float]) -> dict[str, bool]:
    """The gates by name; all must hold."""
    right = {name: min(stage_one[f"{name} right"], shipped[f"{name} right"]) for name in LEAST_ACCURACY}
    return {
        "coupling": coupling >= LEAST_COUPLING,
        "sync gap of the clean model": stage_one["sync gap"] >= LEAST_SYNC_GAP,
        **{f"{name} follows the caption": right[name] >= least for name, least in LEAST_ACCURACY.items()},
    }
