"""What a spec says a reward needs is what it needs: the shortest clip that is accepted gets a score."""

import numpy as np
import pytest

from accord.plugins import load_impl, names, spec_class
from accord.types import Clip, Prompt

RATE = 16000
TOKENS_PER_SECOND = 25.0
PROMPT = Prompt("short", "a red ball bounces with a beep", "a red ball", "a beep")


@pytest.mark.parametrize("name", names("rewards"))
def test_the_shortest_clip_that_is_accepted_is_scored(name):
    spec = spec_class("rewards", name)()
    tokens = next(n for n in range(1, 100) if n / TOKENS_PER_SECOND >= spec.min_seconds)
    samples = (4 * tokens - 3) * RATE // 100  # a causal decoder leaves the first token's last frames out
    rng = np.random.default_rng(3)
    clip = Clip(
        video_FHWC=rng.integers(0, 255, (spec.min_frames, 32, 32, 3), dtype=np.uint8), fps=12.0,
        audio_CS=(0.1 * rng.standard_normal((1, samples))).astype(np.float32), sample_rate=RATE,
    )  # fmt: skip
    score = load_impl(spec)(spec).score_clip(PROMPT, clip)
    assert np.isfinite(score.value)
