"""How far sound and picture are apart in time, by Synchformer.

Measures: the offset g between the streams as a distribution over 21 classes from -2 to 2 s (`synchformer.py`). The
value is 1 / (1 + E|g|), the expectation over the softmax: it changes smoothly, where the usual DeSync, |argmax|, moves
in steps of 0.2 s and ties whole groups. `desync_s` is that published metric, for reports.
Windows: the length that both streams have, cut to whole segments of 0.64 s, one every 0.32 s; one window of 14 segments
(4.8 s) if that is all, else the first 14 and the last 14, averaged. Nothing is padded. A shorter clip is `too_short`.
Range: 1/3 to 1, higher is better. Silence gets 1/3, valid: a policy whose silent clips left the statistics would
learn to fall silent. Components: `expected_s` (E|g|), `offset_s` (E g; positive: the sound is late), `desync_s`,
`entropy` (of the softmax over log 21: 1 = it has no idea), `windows`.
Limits: rain, wind, music and sources outside of the picture have no offset and get one all the same; see `entropy`.
Offsets beyond 2 s are not known. It is blind to the prompt and to what the sound is of.
Known hacks: flashes with clicks. Train it beside rewards of picture, sound and text.

Files: `synchformer_state_dict.pth` (MIT), 0.95 GB. 32 s for a clip on two cores; meant for a GPU.
A window is one forward of one shape, so a score has the same bits in any company.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank
from typing_extensions import override

from accord.config.rewards.cross import DesyncReward
from accord.config.torch_files import inspect_torch_file
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import SILENCE_PEAK, RewardModel, Score
from reward_servers.models.synchformer import (
    CLASSES,
    FRAMES,
    MEL_BANDS,
    MEL_FRAMES,
    SEGMENTS,
    Sizes,
    Synchformer,
    own_names,
)
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest, fill, load_tensors

FPS, RATE = 25.0, 16_000
STRIDE = 8
"""Frames from one segment to the next."""
SAMPLES, SAMPLE_STRIDE = 10_240, 5_120
GRID_S = np.linspace(-2.0, 2.0, CLASSES)
"""Seconds by which the sound is early, by class."""
PREPROC = (
    "25 Hz by nearest frame; short side by torch's antialiased bicubic, rounded, centre crop; "
    "16 kHz by scipy's resample_poly; log-mel HTK 128, n_fft 1024, win 400, hop 160, padded to 66"
)
"""Part of the digest: another way to prepare a clip gives other scores."""
_MEL_MEAN, _MEL_STD = -4.2677393, 4.5689974


class DesyncModel(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when the file is missing, torn, or does not hold Synchformer.
    """

    def __init__(self, spec: DesyncReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        file = spec.weights
        inspect_torch_file(file)
        state = load_tensors(file)
        try:
            sizes = Sizes.of(state)
        except (KeyError, IndexError, ValueError) as error:
            raise ModelError(f"{file}: is no state dict of Synchformer ({error!r}); take the published file") from error
        self.network = Synchformer(sizes)
        self._side = sizes.side
        fill(file, self.network, own_names(state))
        self.network.to(self._device)
        self.weights_digest = digest([file], PREPROC)

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Expected offset over the windows of a clip."""
        sound_S = mono(clip.audio_CS)
        starts = windows(len(clip.video_FHWC) / clip.fps, len(sound_S) / clip.sample_rate)
        if not starts:
            return Score.invalid("too_short")
        if float(np.abs(sound_S).max()) < SILENCE_PEAK:
            return self.empty("silent_audio")
        heard_S = resampled(sound_S, clip.sample_rate, RATE)
        chances_WK = np.stack([self._chances(clip, heard_S, start) for start in starts])
        expected = float((chances_WK @ np.abs(GRID_S)).mean())
        published = np.abs(GRID_S[chances_WK.argmax(axis=1)]).mean()
        entropy = -(chances_WK * np.log(np.maximum(chances_WK, 1e-30))).sum(axis=1).mean() / np.log(CLASSES)
        parts = {
            "expected_s": expected, "offset_s": -float((chances_WK @ GRID_S).mean()), "desync_s": float(published),
            "entropy": float(entropy), "windows": float(len(starts)),
        }  # fmt: skip
        return Score(1.0 / (1.0 + expected), parts)

    @torch.no_grad()
    def _chances(self, clip: Clip, heard_S: Float, start: int) -> NDArray[np.float64]:
        """Softmax over the offsets [21] of the window that starts at a segment."""
        places = nearest(start * STRIDE, len(clip.video_FHWC), clip.fps)
        frames_FCHW = prepared(clip.video_FHWC, places, self._side).to(self._device)
        segments_SCFHW = frames_FCHW.unfold(0, FRAMES, STRIDE).permute(0, 1, 4, 2, 3)
        at = start * SAMPLE_STRIDE
        sound = torch.from_numpy(heard_S[at : at + SAMPLES + (SEGMENTS - 1) * SAMPLE_STRIDE]).float()
        mel_STM = log_mel(sound.unfold(0, SAMPLES, SAMPLE_STRIDE).to(self._device))
        logits_K = self.network(segments_SCFHW[None], mel_STM[None])[0]
        chances: NDArray[np.float64] = functional.softmax(logits_K.double(), dim=0).cpu().numpy()
        return chances


def windows(video_s: float, audio_s: float) -> tuple[int, ...]:
    """First segments of the windows that are judged; none where the streams share less than 4.8 s."""
    frames = int(min(video_s, audio_s) * FPS + 1e-6)
    last = (frames - FRAMES) // STRIDE + 1 - SEGMENTS
    return () if last < 0 else (0,) if last == 0 else (0, last)


def nearest(first: int, frames: int, fps: float) -> NDArray[np.int64]:
    """Frames of the clip that lie nearest to those of a window at 25 Hz whose first is given [120]."""
    times_F = (first + np.arange(FRAMES + (SEGMENTS - 1) * STRIDE)) / FPS
    return np.minimum(np.floor(times_F * fps + 0.5).astype(np.int64), frames - 1)


def prepared(video_FHWC: NDArray[np.uint8], places_F: NDArray[np.int64], side: int) -> torch.Tensor:
    """Frames at `places_F` as the network sees them: [F, 3, side, side] in [-1, 1]. Each is scaled once."""
    wanted, back = np.unique(places_F, return_inverse=True)
    scaled = torch.stack([_scaled(torch.from_numpy(video_FHWC[place].copy()), side) for place in wanted])
    return scaled[torch.from_numpy(back)]


def _scaled(frame_HWC: torch.Tensor, side: int) -> torch.Tensor:
    height, width = frame_HWC.shape[:2]
    short = min(height, width)
    size = [side * height // short, side * width // short]
    pixels = frame_HWC.permute(2, 0, 1)[None].float()
    pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (round((length - side) / 2) for length in size)
    return pixels[0, :, top : top + side, left : left + side].round().clamp(0, 255) / 127.5 - 1.0


def log_mel(sound_NS: torch.Tensor) -> torch.Tensor:
    """Normalised log-mel of segments: [N, 10240] to [N, 66, 128]; one zero frame is put behind."""
    window = torch.hann_window(400, device=sound_NS.device)
    stft = torch.stft(sound_NS, 1024, 160, 400, window, center=True, pad_mode="reflect", return_complex=True)
    power_NFT = stft.real**2 + stft.imag**2
    mel_NMT = torch.log(_bank().to(sound_NS.device).T @ power_NFT + 1e-6)
    mel_NMT = functional.pad(mel_NMT, (0, MEL_FRAMES - mel_NMT.shape[2]))
    return (mel_NMT.transpose(1, 2) - _MEL_MEAN) / (2 * _MEL_STD)


@cache
def _bank() -> torch.Tensor:
    """Triangles on the HTK scale [513, 128], unnormalised."""
    bank = mel_filter_bank(513, MEL_BANDS, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    return torch.from_numpy(bank).float()
