"""Sound to classes of sound, by an Audio Spectrogram Transformer in a transformers directory.

Sound is mixed to mono at 16 kHz and cut into evenly spaced windows of the checkpoint's length (10.2 s); a shorter one
is filled up behind the spectrogram, as the model was trained. Each window is one forward of one shape on one thread, so
an answer has the same bits in any company.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from accord.backbones.components import refuse_partial
from accord.config.ast_dir import FILES, RATE, AstFiles
from accord.errors import ModelError
from accord.types import Clip
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest

FRAME, HOP = 400, 160
"""Samples of a frame of the spectrogram, and between two."""


class AudioTagger:
    """The classifier of a directory that was inspected. Raises ModelError at construction."""

    def __init__(self, files: AstFiles, device: torch.device) -> None:
        torch.set_num_threads(1)
        self._device = device
        try:
            self._extractor = ASTFeatureExtractor.from_pretrained(files.root, local_files_only=True)
            loaded: Any = ASTForAudioClassification.from_pretrained(
                files.root, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"{files.root} is not an AST that transformers can load: {error}") from error
        model, report = loaded
        refuse_partial(files.root, report)
        self._model = model.eval().to(device)
        self._length = FRAME + (int(self._extractor.max_length) - 1) * HOP
        self.digest = digest([files.root / name for name in FILES])

    def logits(self, clip: Clip) -> Float:
        """Logits of the classes in each window of a clip's sound [W, L]."""
        windows = cut(resampled(mono(clip.audio_CS), clip.sample_rate, RATE), self._length)
        return np.stack([self._window(window) for window in windows])

    @torch.no_grad()
    def _window(self, window_S: Float) -> Float:
        made = self._extractor(window_S, sampling_rate=RATE, return_tensors="pt")
        logits: Float = self._model(made["input_values"].float().to(self._device)).logits[0].double().cpu().numpy()
        return logits


def cut(sound_S: Float, length: int) -> list[Float]:
    """Evenly spaced windows of a length that cover all of a sound; a shorter sound is one window."""
    count = max(1, -(-len(sound_S) // length))
    starts = np.linspace(0, max(0, len(sound_S) - length), count).round().astype(int)
    return [sound_S[start : start + length] for start in starts]


def apart(logits_WL: Float) -> Float:
    """Probability of each class by itself, window by window [W, L]: as the model was trained."""
    return np.asarray(torch.sigmoid(torch.from_numpy(logits_WL)).numpy())


def shares(logits_WL: Float) -> Float:
    """The classes as one distribution: softmax, mean over windows [L]."""
    return np.asarray(torch.softmax(torch.from_numpy(logits_WL), dim=1).mean(dim=0).numpy())
