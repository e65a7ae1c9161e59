"""Clips of the procedural world as the nouns that rewards take."""

from __future__ import annotations

import pytest

from accord.types import Clip, Prompt
from accord.world.scene import FPS, SAMPLE_RATE, Imperfections, make_clips

COUNT = 16


def _pairs(imperfections: Imperfections) -> list[tuple[Prompt, Clip]]:
    pairs = []
    for clip in make_clips(COUNT, 11, imperfections):
        asked = clip.prompt
        prompt = Prompt(asked.id, asked.prompt_av, asked.prompt_v, asked.prompt_a)
        pairs.append((prompt, clip.clip))
    return pairs


@pytest.fixture(scope="session")
def world() -> dict[str, list[tuple[Prompt, Clip]]]:
    """The same clips clean, and with each imperfection by itself on all of them."""
    kinds = {
        kind: Imperfections(**{kind: 1.0}) for kind in ("offset", "hiss", "flicker", "wrong_colour", "wrong_sound")
    }
    made = {"clean": _pairs(Imperfections()), **{kind: _pairs(value) for kind, value in kinds.items()}}
    clean = made["clean"]
    made["shuffled"] = [
        (prompt, Clip(clip.video_FHWC, FPS, clean[(index + 5) % COUNT][1].audio_CS, SAMPLE_RATE))
        for index, (prompt, clip) in enumerate(clean)
    ]
    return made
