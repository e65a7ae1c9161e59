"""The HTTP body: what goes in comes out, and what is wrong is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from accord.types import Clip, Prompt
from reward_servers.wire import BadBody, read_body, write_body

PROMPT = Prompt("red", "a red ball with a bell", "a red ball", "a bell")
VIDEO = np.arange(2 * 3 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 3, 8, 8, 3)
AUDIO = np.linspace(-1, 1, 2 * 1 * 100, dtype=np.float32).reshape(2, 1, 100)
META = {"prompt": "a red ball", "fps": "12", "sample_rate": "16000"}
BOTH = ("video", "audio")


def body(meta=META, **tensors) -> bytes:
    return save({"video": VIDEO, "audio": AUDIO, **tensors}, metadata=meta)


def test_round_trip():
    clips = [Clip(VIDEO[index], 12.0, AUDIO[index], 16_000) for index in range(2)]
    prompt, found = read_body(write_body(PROMPT, clips), BOTH)
    assert prompt == PROMPT
    for ours, theirs in zip(found, clips, strict=True):
        assert (ours.video_FHWC == theirs.video_FHWC).all() and (ours.audio_CS == theirs.audio_CS).all()
        assert (ours.fps, ours.sample_rate) == (12.0, 16_000)


def test_a_plain_text_stands_for_all_prompts():
    prompt, _ = read_body(body(), BOTH)
    assert prompt.prompt_av == prompt.prompt_v == prompt.prompt_a == "a red ball"


def test_only_what_the_reward_looks_at_is_needed():
    _, clips = read_body(save({"audio": AUDIO}, metadata={"prompt": "x", "sample_rate": "8000"}), ("audio",))
    assert len(clips) == 2 and clips[0].sample_rate == 8000


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in META.items() if name != key}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", ""),
        (b"not safetensors at all", ""),
        (b"\x02\0\0\0\0\0\0\0[]", ""),
        (body()[:-10], ""),
        (body(without("prompt")), "/__metadata__/prompt"),
        (body({**META, "prompt": '{"prompt_v": "x"}'}), "/__metadata__/prompt"),
        (
            body({**META, "prompt": json.dumps({"prompt_av": 1, "prompt_v": "x", "prompt_a": "y"})}),
            "/__metadata__/prompt",
        ),
        (body(without("fps")), "/__metadata__/fps"),
        (body({**META, "fps": "fast"}), "/__metadata__/fps"),
        (body({**META, "fps": "nan"}), "/__metadata__/fps"),
        (body({**META, "sample_rate": "-1"}), "/__metadata__/sample_rate"),
        (body(video=VIDEO.astype(np.float32)), "/video"),
        (body(video=VIDEO[0]), "/video"),
        (body(video=VIDEO[..., :2].copy()), "/video"),
        (body(audio=AUDIO.astype(np.float64)), "/audio"),
        (body(audio=AUDIO[:1]), "/audio"),
        (save({"video": VIDEO}, metadata=META), "/audio"),
        (body(video=VIDEO[:0], audio=AUDIO[:0]), "/video"),
    ],
)
def test_what_is_wrong_is_named(data, field):
    with pytest.raises(BadBody) as caught:
        read_body(data, BOTH)
    assert caught.value.field == field
    assert caught.value.detail
