"""The model of the reward, imported only in its server."""

from __future__ import annotations

import numpy as np

from accord.types import Clip, Prompt
from palette.spec import PaletteReward, colour_of
from reward_servers.base import RewardModel, Score


class Palette(RewardModel):
    """1 at the wanted colour, 0 at the farthest corner of the cube."""

    def __init__(self, spec: PaletteReward) -> None:
        super().__init__(spec)
        self.wanted = np.array(colour_of(spec.colour))

    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Score one clip."""
        mean = clip.video_FHWC.reshape(-1, 3).mean(0)
        away = float(np.linalg.norm(mean - self.wanted)) / (255 * 3**0.5)
        return Score(1.0 - away, {"away": away})
