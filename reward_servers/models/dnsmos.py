"""How good speech sounds, by DNSMOS P.835.

Measures: what people would rate, from 1 to 5, of the speech itself (SIG), of how little its background disturbs (BAK)
and of both (OVRL), as ITU-T P.835 asks (Reddy et al. 2022, "DNSMOS P.835", arXiv 2110.01763). A small network hears
windows of 9.01 s at 16 kHz, one a second; what it says of a window is put on the scale by the published quadratics
(`SCALES`; cubics for the personalised model), and windows are averaged. A shorter sound is doubled until it fills a
window. The value is OVRL.
Range: about 1 to 4; the network has no hard bound. Silence gets the floor, 1.

Limits: made for speech. Of music, foley or wind it says that they are bad speech: use it where the prompts speak. It
knows nothing of the prompt, nor of what is said, and is deaf above 8 kHz.
Known hacks: a clean voice that says anything, or mumbles; keep a reward of the words beside it.

Files: `sig_bak_ovr.onnx` of microsoft/DNS-Challenge, from `DNSMOS`, or from `pDNSMOS` with `personalized`; 1.2 MB,
CC-BY-4.0 (name the authors). It runs in onnxruntime on one thread of the CPU, window by window, so a score has the same
bits in any company. A file that wants other files, or operators of its own, is refused before a runtime sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from typing_extensions import override

from accord.config.dnsmos_file import NUMBERS, RATE, SECONDS, WINDOW, inspect_dnsmos
from accord.config.rewards.sound import DnsmosReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest

PARTS = ("sig", "bak", "ovrl")
"""In the order of the network's outputs."""
SCALES: Mapping[bool, tuple[tuple[float, ...], ...]] = {
    False: (
        (-0.08397278, 1.22083953, 0.0052439), (-0.13166888, 1.60915514, -0.39604546),
        (-0.06766283, 1.11546468, 0.04602535),
    ),
    True: (
        (-0.01019296, 0.02751166, 1.19576786, -0.24348726), (-0.04976499, 0.44276479, -0.1644611, 0.96883132),
        (-0.00533021, 0.005101, 1.18058466, -0.11236046),
    ),
}  # fmt: skip
"""Coefficients for each part, highest power first, by whether the model is personalised."""


class DnsmosModel(RewardModel):
    """The network at `spec.path`.

    Raises:
        ModelError: at construction, when the file is missing, torn, not this network, or wants anything besides itself.
    """

    def __init__(self, spec: DnsmosReward) -> None:
        super().__init__(spec)
        file = inspect_dnsmos(str(spec.weights))
        self._scales = SCALES[spec.personalized]
        self._session = open_session(file)
        self._input = self._session.get_inputs()[0].name
        self._rate(file, np.zeros(WINDOW))
        self.weights_digest = digest([file])

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The three ratings, averaged over windows."""
        windows = cut(resampled(mono(clip.audio_CS), clip.sample_rate, RATE))
        rated_W3 = np.stack([self._rate(self.spec.name, window) for window in windows])
        parts = dict(zip(PARTS, (float(part) for part in rated_W3.mean(axis=0)), strict=True))
        return Score(parts["ovrl"], parts | {"windows": float(len(windows))})

    def _rate(self, told: str | Path, window_S: Float) -> Float:
        """SIG, BAK and OVRL of one window [3]. Raises ModelError when the network gives anything but three numbers."""
        try:
            (said, *_) = self._session.run(None, {self._input: window_S.astype(np.float32)[None]})
        except Exception as error:  # the runtime has exceptions of its own, without a base
            raise ModelError(f"{told}: does not run ({str(error).splitlines()[0]}); copy it again") from error
        raw_13 = np.asarray(said, dtype=np.float64)
        if raw_13.shape != (1, NUMBERS) or not np.isfinite(raw_13).all():
            raise ModelError(f"{told}: gives {raw_13.tolist()}, and must give three numbers; copy it again")
        return on_scale(raw_13[0], self._scales)


def open_session(file: Path) -> Any:
    """A session on one thread of the CPU, from the bytes of a file that was inspected. Raises ModelError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ModelError(f"{file}: no model that can be run ({str(error).splitlines()[0]}); copy it again") from error


def on_scale(raw_3: Float, scales: tuple[tuple[float, ...], ...]) -> Float:
    """The network's outputs [3] on the scale of people's ratings."""
    return np.array([np.polyval(scale, raw) for scale, raw in zip(scales, raw_3, strict=True)])


def cut(sound_S: Float) -> list[Float]:
    """The windows as published: one a second, the sound doubled until it fills one.

    The ends are computed in seconds, in float64, and where that makes a window one sample short it is passed over.
    """
    if len(sound_S) == 0:
        raise ValueError("no sample to repeat")
    while len(sound_S) < WINDOW:
        sound_S = np.concatenate([sound_S, sound_S])
    places = range(int(len(sound_S) // RATE - SECONDS) + 1)
    cuts = [sound_S[place * RATE : int((place + SECONDS) * RATE)] for place in places]
    return [window for window in cuts if len(window) == WINDOW]
