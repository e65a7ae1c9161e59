"""Whether the sounds that a text names are heard in a clip, and strange ones are not, by an AST that tags sound.

Measures: the probabilities of AudioSet's 527 classes by an Audio Spectrogram Transformer (Gong et al. 2021, "AST: Audio
Spectrogram Transformer", arXiv 2104.01778), held against `prompt_a`. What a text names is found by words
(`event_names.py`): each event is as probable as the most probable of its classes; `present` is their mean. A class is
strange when it is of a family (people, music, animals, nature, fire, traffic, household, blasts, noise: stretches of
AudioSet's list, in `accord/config/ast_dir.py`) of which the text names nothing; so relatives of what is named, such as
`Animal` beside `Dog`, never are. What the text asks away ("no speech") always is. `stray` = (p - `strong`) /
(1 - `strong`) of the strongest strange class, no less than 0.
Value: present - `penalty` · stray, in [-1, 1]. Silence gets the floor, -0.5. A text that names no event of AudioSet has
no score (`unverifiable`): there is nothing to hold the sound against, and any number would train on it.

Sound is mixed to mono at 16 kHz and cut into evenly spaced windows of the checkpoint's length (10.2 s); a class is as
probable as in the window where it is most probable, so an event need be heard once. What is missing in a shorter sound
is filled up behind the spectrogram, as the model was trained.

Limits: says whether, not when or how often; rare classes stay far below 1 even when they are heard, so compare within a
prompt; words are matched by their letters, so "a glass falls silent" names glass. Known hacks: one loud, plain specimen
of each named sound on top of anything of the same families; keep CLAP and `sound` beside it.

Files: a transformers directory of `ASTForAudioClassification`, as MIT/ast-finetuned-audioset-10-10-0.4593; 0.35 GB.
Each window is one forward of one shape on one thread, so a score has the same bits in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ASTFeatureExtractor, ASTForAudioClassification
from typing_extensions import override

from accord.backbones.components import refuse_partial
from accord.config.ast_dir import FILES, RATE, inspect_ast
from accord.config.rewards.sound import AudioEventsReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import SILENCE_PEAK, RewardModel, Score
from reward_servers.models.event_names import EventNames, Named
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest

FRAME, HOP = 400, 160
"""Samples of a frame of the spectrogram, and between two."""


class AudioEventsModel(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when the directory is missing, incomplete or no AST of AudioSet.
    """

    def __init__(self, spec: AudioEventsReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        self._strong, self._penalty = spec.strong, spec.penalty
        files = inspect_ast(str(spec.weights))
        self.names = EventNames(files.labels)
        self._families = np.array(files.families)
        try:
            self._extractor = ASTFeatureExtractor.from_pretrained(files.root, local_files_only=True)
            loaded: Any = ASTForAudioClassification.from_pretrained(
                files.root, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"{files.root} is not an AST that transformers can load: {error}") from error
        model, report = loaded
        refuse_partial(files.root, report)
        self._model = model.eval().to(self._device)
        self._length = FRAME + (int(self._extractor.max_length) - 1) * HOP
        self.weights_digest = digest([files.root / name for name in FILES])

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Probability of what is named, less what is strange."""
        named = self.names.of(prompt.prompt_a)
        if not named.wanted:
            return Score.invalid("unverifiable")
        if float(np.abs(clip.audio_CS).max()) < SILENCE_PEAK:
            return self.empty("silent_audio")
        windows = cut(resampled(mono(clip.audio_CS), clip.sample_rate, RATE), self._length)
        heard_L = np.max([self.tag(window) for window in windows], axis=0)
        events = [float(heard_L[sorted(event)].max()) for event in named.wanted]
        strange = heard_L[strangers(named, self._families)]
        stray = max(0.0, (float(strange.max(initial=0.0)) - self._strong) / (1.0 - self._strong))
        present = float(np.mean(events))
        parts = {"present": present, "weakest": min(events), "stray": stray, "events": float(len(events))}
        return Score(present - self._penalty * stray, parts | {"windows": float(len(windows))})

    @torch.no_grad()
    def tag(self, window_S: Float) -> Float:
        """Probability of each class [L] in one window of sound at 16 kHz."""
        made = self._extractor(window_S, sampling_rate=RATE, return_tensors="pt")
        logits = self._model(made["input_values"].float().to(self._device)).logits[0]
        probable: Float = torch.sigmoid(logits.double()).cpu().numpy()
        return probable


def cut(sound_S: Float, length: int) -> list[Float]:
    """Evenly spaced windows of a length that cover all of a sound; a shorter sound is one window."""
    count = max(1, -(-len(sound_S) // length))
    starts = np.linspace(0, max(0, len(sound_S) - length), count).round().astype(int)
    return [sound_S[start : start + length] for start in starts]


def strangers(named: Named, families_L: Sequence[str] | NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which classes count against a sound [L]: those of families that the text does not name, and unwanted ones."""
    families = np.asarray(families_L)
    known = {str(families[place]) for event in named.wanted for place in event} | {""}
    strange: NDArray[np.bool_] = ~np.isin(families, sorted(known))
    strange[sorted(named.unwanted)] = True
    return strange
