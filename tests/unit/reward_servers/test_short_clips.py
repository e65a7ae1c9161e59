"""The shortest clip that is accepted gets a score from every reward."""

import numpy as np
import pytest

from accord.plugins import load_impl, names
from accord.types import Clip, Prompt
from tests.tiny_checkpoints import spec_with_weights

RATE = 16000
PROMPT = Prompt("short", "a red ball bounces with a beep", "a red ball", 'a beep, and a voice says "red ball"')


@pytest.mark.parametrize("name", names("rewards"))
def test_the_shortest_clip_that_is_accepted_is_scored(name, tmp_path):
    spec = spec_with_weights(name, tmp_path)
    fps = min(12.0, spec.min_frames / max(spec.min_audio_s, 0.01))
    samples = round(spec.min_audio_s * RATE)
    rng = np.random.default_rng(3)
    clip = Clip(
        video_FHWC=rng.integers(0, 255, (spec.min_frames, 32, 32, 3), dtype=np.uint8), fps=fps,
        audio_CS=(0.1 * rng.standard_normal((2, samples))).astype(np.float32), sample_rate=RATE,
    )  # fmt: skip
    company = [clip] if spec.scope == "clip" else [clip] * 3
    (scores,) = load_impl(spec)(spec).score([PROMPT], [company])
    assert all(score.valid and np.isfinite(score.value) for score in scores)
