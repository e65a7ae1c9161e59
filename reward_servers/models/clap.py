"""Text-audio similarity of a CLAP checkpoint.

Measures: cosine between the audio embedding of the clip's sound and the text embedding of `prompt_a`
(Wu et al. 2023, "Large-scale contrastive language-audio pretraining").
Range [-1, 1], higher is better; unrelated pairs lie near 0. Silence gets the floor, -0.25.
Limits: says whether the named sound is there, not when, and little about how clean; weak on speech content; sound
beyond the checkpoint's bandwidth is not heard. The built-in checkpoint knows the four sounds of the procedural world.
Known hacks: a constant texture that matches the caption scores as well as events do; train a sync reward beside it.

Any transformers `ClapModel` directory works: `config.json`, `model.safetensors`, `tokenizer.json` and
`preprocessor_config.json` or `processor_config.json`. Sound is mixed to mono, resampled to the checkpoint's rate and
cut into windows of its length; the cosine is the mean over windows. A shorter sound is repeated until it fills one,
whatever the checkpoint's settings: that is how CLAP was trained. The random crop of transformers is never reached.
Texts are cut at the checkpoint's length (512 tokens). The value is the plain cosine; OmniNFT's is (cosine + 1) / 2,
which orders clips alike. Every window is one forward of the same shape on one thread, so a score has the same bits in
any company.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel
from typing_extensions import override

from accord.backbones.components import refuse_partial
from accord.config.clap_dir import DERIVED, clap_files, inspect_clap_dir
from accord.config.rewards.sound import ClapReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest

_TEXTS_KEPT = 4096


class ClapRewardModel(RewardModel):
    """Cosine of sound and `prompt_a` under the checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when the directory is missing, incomplete or not a CLAP checkpoint.
    """

    def __init__(self, spec: ClapReward) -> None:
        super().__init__(spec)
        device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        self._towers = ClapTowers(inspect_clap_dir(str(spec.weights)), device)
        self.weights_digest = self._towers.digest

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Cosine averaged over windows; the only component is the number of windows."""
        windows = self._towers.sound(clip)
        text = self._towers.text(prompt.prompt_a)
        cosines = [float((window * text).sum()) for window in windows]
        return Score(float(np.mean(cosines)), {"windows": float(len(cosines))})


class ClapTowers:
    """Sound and texts to unit vectors. Raises ModelError at construction."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        torch.set_num_threads(1)
        self._device = device
        try:
            self._extractor = ClapFeatureExtractor.from_pretrained(directory, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            self._model = load_model(directory).to(self._device)
        except (ModelError, MemoryError):
            raise
        except Exception as error:  # a tokenizer's file may be wrong in ways that have no class of their own
            raise ModelError(f"{directory} is not a CLAP checkpoint that transformers can load: {error}") from error
        self.digest = digest(clap_files(directory))
        self._length = int(self._extractor.nb_max_samples)
        self._text_limit = int(self._model.config.text_config.max_position_embeddings) - 2
        self._texts: dict[str, torch.Tensor] = {}

    def sound(self, clip: Clip) -> list[torch.Tensor]:
        """Unit embeddings [D] of evenly spaced windows of the checkpoint's length; shorter sound is one window."""
        sound_S = resampled(mono(clip.audio_CS), clip.sample_rate, self._extractor.sampling_rate)
        count = max(1, -(-len(sound_S) // self._length))
        starts = np.linspace(0, max(0, len(sound_S) - self._length), count).round().astype(int)
        return [self._window(sound_S[start : start + self._length]) for start in starts]

    @torch.no_grad()
    def _window(self, window_S: Float) -> torch.Tensor:
        rate = self._extractor.sampling_rate
        made = self._extractor(
            window_S, sampling_rate=rate, max_length=self._length, padding="repeatpad", return_tensors="pt"
        )
        features = made["input_features"].float().to(self._device)
        out = self._model.get_audio_features(
            features, is_longer=torch.zeros(1, 1, dtype=torch.bool, device=self._device)
        )
        return torch.nn.functional.normalize(out.pooler_output[0], dim=0)

    @torch.no_grad()
    def text(self, text: str) -> torch.Tensor:
        """Unit embedding [D] of a text, cut at the checkpoint's length, remembered."""
        if text not in self._texts:
            if len(self._texts) >= _TEXTS_KEPT:
                self._texts.clear()
            tokens = self._tokenizer(text, truncation=True, max_length=self._text_limit, return_tensors="pt")
            tokens = tokens.to(self._device)
            out = self._model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            self._texts[text] = torch.nn.functional.normalize(out.pooler_output[0], dim=0)
        return self._texts[text]


def load_model(directory: Path) -> Any:
    """Load the weights. Raises ModelError when some are absent, unknown or of another shape."""
    loaded: Any = ClapModel.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    refuse_partial(directory, report, DERIVED)
    return model.eval()
