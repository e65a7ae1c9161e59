"""Acceptance gates of the tiny model: sample it, measure the samples, and say whether it may ship.

The gates: (a) the audio is denoised at least 10 % worse beside another clip's video at sigma .85/.85; (b) the sync
score of samples exceeds that of shuffled pairs by at least 0.15 on the clean (stage one) model; (c) colour, motion and
sound of samples follow the caption far above chance.

Shapes: N clips, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from accord.backbones.base import Latents
from accord.backbones.ltx2.model import LTX2Backbone
from accord.diffusion.solver import euler_step
from accord.types import MODALITIES, Clip, Modality
from accord.world import measure
from accord.world.latent_distance import WorldStatistics, diversity, frechet_distance
from accord.world.scene import ALL_PROMPTS, COLOURS, FPS, FRAMES, MOTIONS, SOUNDS, WorldClip, WorldPrompt
from tiny_models.pipeline import encode_clips

SAMPLING_STEPS = 8
LEAST_COUPLING = 0.10
LEAST_SYNC_GAP = 0.15
LEAST_ACCURACY = {"colour": 0.6, "motion": 0.8, "sound": 0.6}


@dataclass(frozen=True)
class ClipSet:
    """Clips to be measured, with their captions and, if at hand, the latents they were decoded from [N, T, C]."""

    prompts: Sequence[WorldPrompt]
    clips: Sequence[Clip]
    latents: Latents | None = None


@torch.no_grad()
def sample_latents(
    backbone: LTX2Backbone, prompts: Sequence[WorldPrompt], seed: int, steps: int = SAMPLING_STEPS
) -> dict[Modality, Tensor]:
    """Latents [N, T, C] by modality from noise of `seed`: Euler steps, no guidance."""
    generator = torch.Generator().manual_seed(seed)
    count = len(prompts)
    latents = {m: torch.randn(count, *shape, generator=generator) for m, shape in backbone.latent_shapes().items()}
    conditions = backbone.encode([prompt.prompt_av for prompt in prompts])
    for sigma, sigma_next in pairwise(backbone.sigmas(steps)):
        velocity = backbone.velocity(latents, {m: sigma.expand(count) for m in latents}, conditions)
        latents = {m: euler_step(x, velocity[m], sigma, sigma_next) for m, x in latents.items()}
    return latents


def sample_clips(backbone: LTX2Backbone, prompts: Sequence[WorldPrompt], seed: int) -> ClipSet:
    """Sample and decode one clip for each caption, 32 at a time."""
    parts = [
        sample_latents(backbone, prompts[start : start + 32], seed + start) for start in range(0, len(prompts), 32)
    ]
    latents = {modality: torch.cat([part[modality] for part in parts]) for modality in MODALITIES}
    return ClipSet(prompts, backbone.decode(latents), latents)


def as_clip_set(clips: Sequence[WorldClip]) -> ClipSet:
    """True clips, as made."""
    return ClipSet([made.prompt for made in clips], [made.clip for made in clips])


def through_codecs(backbone: LTX2Backbone, clips: ClipSet) -> ClipSet:
    """The same clips encoded and decoded again: the ceiling for samples."""
    latents = encode_clips(backbone.pipeline, clips.clips)
    return ClipSet(clips.prompts, backbone.decode(latents), latents)


def even_prompts(count: int) -> list[WorldPrompt]:
    """`count` captions that go through all of them in turn."""
    return [ALL_PROMPTS[index % len(ALL_PROMPTS)] for index in range(count)]


def measure_clips(clips: ClipSet, statistics: Mapping[Modality, WorldStatistics] | None = None) -> dict[str, float]:
    """All measures of a set of clips, averaged; see `measure` for each.

    Shuffled pairs take the audio of another clip of the same caption where there is one (32 clips further on).
    """
    videos, sounds = [clip.video_FHWC for clip in clips.clips], [clip.audio_CS[0] for clip in clips.clips]
    contacts = [measure.visual_contacts(video) for video in videos]
    onsets = [np.maximum(measure.audio_onsets(audio) - measure.VOCODER_LATENCY_S, 0.0) for audio in sounds]
    count = len(contacts)
    step = len(ALL_PROMPTS) if count > len(ALL_PROMPTS) else 1
    shuffled = [onsets[(index + step) % count] for index in range(count)]
    paired_f1 = np.asarray([measure.soft_f1(a, b) for a, b in zip(contacts, onsets, strict=True)])
    shuffled_f1 = np.asarray([measure.soft_f1(a, b) for a, b in zip(contacts, shuffled, strict=True)])
    gap_error = float((paired_f1 - shuffled_f1).std() / np.sqrt(count))
    row: dict[str, list[float]] = {}
    for prompt, video, audio in zip(clips.prompts, videos, sounds, strict=True):
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
    if statistics is not None and clips.latents is not None:
        for modality, latents in clips.latents.items():
            found[f"{modality} distance to clean world"] = frechet_distance(latents, statistics[modality])
            found[f"{modality} diversity"] = diversity(latents, statistics[modality])
    return found


def verdict(coupling: float, stage_one: dict[str, float], shipped: dict[str, float]) -> dict[str, bool]:
    """The gates by name; all must hold."""
    right = {name: min(stage_one[f"{name} right"], shipped[f"{name} right"]) for name in LEAST_ACCURACY}
    return {
        "coupling": coupling >= LEAST_COUPLING,
        "sync gap of the clean model": stage_one["sync gap"] >= LEAST_SYNC_GAP,
        **{f"{name} follows the caption": right[name] >= least for name, least in LEAST_ACCURACY.items()},
    }
