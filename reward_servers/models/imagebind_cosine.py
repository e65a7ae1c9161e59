"""How near picture, sound and text lie in ImageBind's space. For evaluation alone: its licence is CC-BY-NC-SA-4.0.

Measures: the cosine of two embeddings (Girdhar et al. 2023, arXiv 2305.05665).
* `imagebind_av`: picture and sound. * `imagebind_tv`: `prompt_v` and picture. * `imagebind_ta`: `prompt_a` and sound.
  With `text = "whole"` the text is `prompt_av`, as JavisBench asks.
Range -1 to 1, higher is better; 0.05 to 0.4 on real clips.
* Picture: five stretches of 2 s, evenly spaced, the first and the last frame of each, short side 224 (bilinear), three
  squares along the long side, CLIP's means; the mean of the 15 unit embeddings.
* Sound: the first channel alone, as published, 16 kHz, three stretches of 2 s, evenly spaced, each less its mean;
  Kaldi's log-mel of 128 bands, 25 ms every 10 ms, zeros up to 204 steps, (x + 4.268) / 9.138; the mean of the three.
* Text: 77 of CLIP's tokens; its `tokenizer.json` is not in the checkpoint and is named by `tokenizer`.

Limits: it says whether sound and picture are of one thing, not whether they happen together; other samplings of frames
(av-benchmark's) give other numbers. Known hack, and one more reason not to train on it: coloured noise that pleases it
while every other metric falls.

File: `imagebind_huge.pth`, 4.8 GB; each reward loads two of its towers. A clip's forwards are its own, on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from typing_extensions import override

from accord.config.clip_dir import TOKENIZER
from accord.config.rewards.imagebind import ImageBindReward, Sense
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.clip import clip_tokenizer
from reward_servers.models.frames import CLIP_MEAN, CLIP_STD
from reward_servers.models.imagebind import BANDS, STEPS, Tower, load_towers
from reward_servers.signals import Float, resampled
from reward_servers.weight_files import digest, load_tensors

RATE = 16_000
STRETCH_S = 2.0
SEEN, HEARD = 5, 3
"""Stretches of a picture and of a sound."""
_CROPS = 3
_MEL_MEAN, _MEL_STD = -4.268, 9.138
_TEXTS_KEPT = 4096


class ImageBindModel(RewardModel):
    """The checkpoint at `spec.path`, as far as the reward needs it.

    Raises:
        ModelError: at construction, when a file is missing, torn, or not ImageBind's.
    """

    def __init__(self, spec: ImageBindReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        self._spec = spec
        self._texts: dict[str, torch.Tensor] = {}
        self.towers = load_towers(spec.weights, load_tensors(spec.weights), spec.senses)
        for tower in self.towers.values():
            tower.to(self._device)
        files = [spec.weights]
        if (reads := self.towers.get("text")) is not None:
            files.append(spec.tokenizer_root / TOKENIZER)
            self._tokenizer = clip_tokenizer(files[-1], reads.sizes.words, reads.sizes.places)
        self.weights_digest = digest(files)

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The cosine of the two; no components."""
        first, second = (self.embed(sense, prompt, clip) for sense in self._spec.senses)
        return Score(float(functional.cosine_similarity(first, second, dim=0)))

    @torch.no_grad()
    def embed(self, sense: Sense, prompt: Prompt, clip: Clip) -> torch.Tensor:
        """What one sense has of a clip or its prompt [1024]; the mean of unit vectors, and shorter."""
        tower = self.towers[sense]
        if sense == "text":
            return self._read(tower, self._spec.asked(prompt))
        if sense == "audio":
            mel_NMT = torch.from_numpy(np.stack([log_mel(part) for part in sounds(clip)])).float()
            return tower.hear(mel_NMT.to(self._device)).mean(dim=0).double()
        seen = [tower.see(pair.to(self._device)) for pair in pictures(clip, tower.sizes.side)]
        return torch.cat(seen).mean(dim=0).double()

    def _read(self, tower: Tower, text: str) -> torch.Tensor:
        if text not in self._texts:
            if len(self._texts) >= _TEXTS_KEPT:
                self._texts.clear()
            words = torch.tensor(self._tokenizer.encode(text).ids, device=self._device)
            self._texts[text] = tower.read(words).double()
        return self._texts[text]


def stretches(length_s: float, count: int) -> list[float]:
    """Where evenly spaced stretches of 2 s begin; all at 0 in what is shorter."""
    last = max(0.0, length_s - STRETCH_S)
    return [last * place / (count - 1) for place in range(count)]


def pictures(clip: Clip, side: int) -> list[torch.Tensor]:
    """Squares of pairs of frames, one tensor [3, 3, 2, side, side] for each stretch."""
    total = len(clip.video_FHWC)
    found = []
    for start in stretches(total / clip.fps, SEEN):
        first = min(total - 1, math.ceil(start * clip.fps - 1e-6))
        last = max(first, min(total, math.ceil((start + STRETCH_S) * clip.fps - 1e-6)) - 1)
        found.append(squares(clip.video_FHWC[[first, last]], side))
    return found


def squares(frames_FHWC: NDArray[np.uint8], side: int) -> torch.Tensor:
    """Both ends and the middle of frames along their long side [3, 3, F, side, side], normalised."""
    pixels = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[2:]
    short = min(height, width)
    size = (side * height // short, side * width // short)
    pixels = functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
    pixels = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    room = max(size) - side
    cuts = [math.ceil(room * place / (_CROPS - 1)) for place in range(_CROPS)]
    along = 2 if height > width else 3
    return torch.stack([pixels.narrow(along, cut, side).transpose(0, 1) for cut in cuts])


def sounds(clip: Clip) -> Sequence[Float]:
    """Stretches of the first channel, at 16 kHz."""
    sound_S = resampled(np.asarray(clip.audio_CS[0], np.float64), clip.sample_rate, RATE)
    starts = [int(start * RATE) for start in stretches(len(sound_S) / RATE, HEARD)]
    return [sound_S[start : start + int(STRETCH_S * RATE)] for start in starts]


def log_mel(sound_S: Float) -> Float:
    """Kaldi's filter bank of a stretch, filled up and normalised [128, 204]."""
    bank, window = _kaldi()
    sound_S = np.pad(sound_S - sound_S.mean(), (0, max(0, len(window) - len(sound_S))))
    found = spectrogram(
        sound_S, window, frame_length=len(window), hop_length=RATE // 100, fft_length=512, power=2.0, center=False,
        preemphasis=0.97, mel_filters=bank, log_mel="log", mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    )  # fmt: skip
    whole = np.zeros((BANDS, STEPS))
    whole[:, : found.shape[1]] = found[:, :STEPS]
    return (whole - _MEL_MEAN) / _MEL_STD


@cache
def _kaldi() -> tuple[Float, Float]:
    """Bank [257, 128] and window [400]."""
    bank = mel_filter_bank(257, BANDS, 20.0, RATE / 2, RATE, mel_scale="kaldi", triangularize_in_mel_space=True)
    return bank, window_function(RATE // 40, "hann", periodic=False)
