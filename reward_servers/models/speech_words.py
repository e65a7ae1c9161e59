"""Whether the words that a text has somebody say are heard, by a Whisper that writes them down.

Measures: the word error rate of a transcript by Whisper (Radford et al. 2022, arXiv 2212.04356) against what stands in
quotation marks in `prompt_a` (`spoken.py` says which marks, and how words are compared). Word error rate: words to
change, leave out or add, over the words that were to be said. Value: 1 - min(rate, 1), in [0, 1]; 1 = every word and no
other. Silence gets the floor, 0. A text that has nobody say anything has no score (`unverifiable`).

Sound is mixed to mono at 16 kHz and cut into stretches of the checkpoint's length (30 s) one after the other;
transcripts are joined. Decoding is greedy: no sampling, one beam, no fallback to another temperature, no timestamps,
`max_tokens` tokens a stretch at most.

Limits: judges what is understood, not how natural it sounds; steps are coarse where few words are said, and all or
nothing in a script that parts no words (Chinese, Japanese, Thai); a number written in digits is another word than one
spelled out; words at the edge of two stretches may be lost; Whisper guesses words into noise, and corrects mumbled ones
by what is likely. Known hacks: plain, loud, slow speech over anything; keep `dnsmos` and a reward of the rest of the
text beside it.

Files: a transformers directory of `WhisperForConditionalGeneration`, as openai/whisper-base. Each stretch is decoded
alone on one thread, so a score has the same bits in any company.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from typing_extensions import override

from accord.backbones.components import refuse_partial
from accord.config.rewards.sound import SpeechWordsReward
from accord.config.whisper_dir import FILES, RATE, TIED, TOKENIZER, inspect_whisper
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import SILENCE_PEAK, RewardModel, Score
from reward_servers.models.spoken import normalised, spoken, wrong_words
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest


class SpeechWordsModel(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when the directory is missing, incomplete, no Whisper, or knows not the language.
    """

    def __init__(self, spec: SpeechWordsReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        files = inspect_whisper(str(spec.weights))
        if unfit := spec.unfit(files):
            raise ModelError(f"{files.root}: {unfit[1]}")
        try:
            self._extractor = WhisperFeatureExtractor.from_pretrained(files.root, local_files_only=True, dither=0.0)
            self._tokenizer = Tokenizer.from_file(str(files.root / TOKENIZER))
            loaded: Any = WhisperForConditionalGeneration.from_pretrained(
                files.root, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # a tokenizer's file may be wrong in ways that have no class of their own
            raise ModelError(f"{files.root} is not a Whisper that transformers can load: {error}") from error
        model, report = loaded
        refuse_partial(files.root, report, {TIED})
        self._model = model.eval().to(self._device)
        self._start, self._end, self._most = files.start_of(spec.language), files.end, spec.max_tokens
        self._never, self._not_first = list(files.tokens.never), list(files.tokens.not_first)
        self.weights_digest = digest([files.root / name for name in FILES])

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Share of the words that were to be said and were heard, less those that were not to be."""
        wanted = normalised(spoken(prompt.prompt_a))
        if not wanted:
            return Score.invalid("unverifiable")
        if float(np.abs(clip.audio_CS).max()) < SILENCE_PEAK:
            return self.empty("silent_audio")
        heard = normalised(self.transcript(resampled(mono(clip.audio_CS), clip.sample_rate, RATE)))
        rate = wrong_words(wanted, heard) / len(wanted)
        parts = {"wer": rate, "wanted": float(len(wanted)), "heard": float(len(heard))}
        return Score(1.0 - min(rate, 1.0), parts)

    def transcript(self, sound_S: Float) -> str:
        """What is said in sound at 16 kHz, stretch by stretch."""
        length = int(self._extractor.n_samples)
        starts = range(0, len(sound_S), length)
        return " ".join(self._written(sound_S[start : start + length]) for start in starts)

    def _written(self, stretch_S: Float) -> str:
        made = self._extractor(stretch_S, sampling_rate=RATE, return_tensors="pt")
        tokens = self._decode(made["input_features"].float().to(self._device))
        text: str = self._tokenizer.decode([token for token in tokens if token < self._end])
        return text

    @torch.no_grad()
    def _decode(self, features: torch.Tensor) -> list[int]:
        """The likeliest token after each, of log-mel features [1, M, T].

        The library's own `generate` would go back and forth in time by the timestamps that a model writes.
        """
        encoded = self._model.model.encoder(features)
        written: list[int] = []
        given, past = self._start, None
        while len(written) < self._most:
            ids = torch.tensor([given], device=self._device)
            out = self._model(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=past, use_cache=True)
            logits = out.logits[0, -1]
            logits[self._never if written else self._never + self._not_first] = -torch.inf
            token = int(logits.argmax())
            if token == self._end:
                break
            written.append(token)
            given, past = [token], out.past_key_values
        return written
