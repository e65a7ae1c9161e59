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

A class is as probable as in the window where it is most probable (`audio_tags.py` cuts them), so an event need be heard
once.

Limits: says whether, not when or how often; rare classes stay far below 1 even when they are heard, so compare within a
prompt; words are matched by their letters, so "a glass falls silent" names glass. Known hacks: one loud, plain specimen
of each named sound on top of anything of the same families; keep CLAP and `sound` beside it.

Files: a transformers directory of `ASTForAudioClassification`, as MIT/ast-finetuned-audioset-10-10-0.4593; 0.35 GB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from accord.config.ast_dir import inspect_ast
from accord.config.rewards.sound import AudioEventsReward
from accord.types import Clip, Prompt
from reward_servers.base import SILENCE_PEAK, RewardModel, Score
from reward_servers.models.audio_tags import AudioTagger, apart
from reward_servers.models.event_names import EventNames, Named


class AudioEventsModel(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when the directory is missing, incomplete or no AST of AudioSet.
    """

    def __init__(self, spec: AudioEventsReward) -> None:
        super().__init__(spec)
        self._strong, self._penalty = spec.strong, spec.penalty
        files = inspect_ast(str(spec.weights))
        self.names = EventNames(files.labels)
        self._families = np.array(files.families)
        self.tagger = AudioTagger(files, torch.device("cuda" if spec.num_gpus > 0 else "cpu"))
        self.weights_digest = self.tagger.digest

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Probability of what is named, less what is strange."""
        named = self.names.of(prompt.prompt_a)
        if not named.wanted:
            return Score.invalid("unverifiable")
        if float(np.abs(clip.audio_CS).max()) < SILENCE_PEAK:
            return self.empty("silent_audio")
        probable_WL = apart(self.tagger.logits(clip))
        heard_L = probable_WL.max(axis=0)
        events = [float(heard_L[sorted(event)].max()) for event in named.wanted]
        strange = heard_L[strangers(named, self._families)]
        stray = max(0.0, (float(strange.max(initial=0.0)) - self._strong) / (1.0 - self._strong))
        present = float(np.mean(events))
        parts = {"present": present, "weakest": min(events), "stray": stray, "events": float(len(events))}
        return Score(present - self._penalty * stray, parts | {"windows": float(len(probable_WL))})


def strangers(named: Named, families_L: Sequence[str] | NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which classes count against a sound [L]: those of families that the text does not name, and unwanted ones."""
    families = np.asarray(families_L)
    known = {str(families[place]) for event in named.wanted for place in event} | {""}
    strange: NDArray[np.bool_] = ~np.isin(families, sorted(known))
    strange[sorted(named.unwanted)] = True
    return strange
