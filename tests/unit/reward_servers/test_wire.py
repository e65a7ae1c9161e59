"""The HTTP body: what goes in comes out, and what is wrong is named before anything is made of it."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save

from accord.types import Clip, Prompt
from reward_servers.wire import MAX_CLIPS, MAX_HEADER_BYTES, BadBody, read_body, write_body

PROMPT = Prompt("red", "a red ball with a bell", "a red ball", "a bell")
VIDEO = np.arange(2 * 3 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 3, 8, 8, 3)
AUDIO = np.linspace(-1, 1, 2 * 1 * 100, dtype=np.float32).reshape(2, 1, 100)
META = {"prompt": "a red ball", "fps": "12", "sample_rate": "16000"}
BOTH = ("video", "audio")
SIZES = (VIDEO.nbytes, AUDIO.nbytes)


def body(meta=META, **tensors) -> bytes:
    return save({"video": VIDEO, "audio": AUDIO, **tensors}, metadata=meta)


def raw(header: object, data: bytes = VIDEO.tobytes() + AUDIO.tobytes()) -> bytes:
    """A body with a header of any kind."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def header(video=None, audio=None, meta=META, **others) -> dict:
    """A right header with some of its entries changed."""
    return {
        "__metadata__": meta,
        "video": {"dtype": "U8", "shape": list(VIDEO.shape), "data_offsets": [0, SIZES[0]], **(video or {})},
        "audio": {"dtype": "F32", "shape": list(AUDIO.shape), "data_offsets": [SIZES[0], sum(SIZES)], **(audio or {})},
        **others,
    }


def text(old: str, new: str) -> bytes:
    """A right body whose header is changed as text."""
    right = json.dumps(header())
    assert old in right
    return raw(right.replace(old, new, 1).encode())


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


def test_clips_are_views_of_the_body():
    data = bytearray(write_body(PROMPT, [Clip(VIDEO[0], 12.0, AUDIO[0], 16_000)]))
    _, (clip,) = read_body(data, BOTH)
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(clip.video_FHWC, whole) and np.shares_memory(clip.audio_CS, whole)


def test_sound_out_of_line_with_memory_is_copied_into_it():
    """The header may have any length, so the data may lie at an odd address."""
    text = json.dumps(header()).encode()
    for padding in range(4):
        _, clips = read_body(raw(text + b" " * padding), BOTH)
        assert all(clip.audio_CS.flags.aligned for clip in clips)
        assert (clips[1].audio_CS == AUDIO[1]).all()


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in META.items() if name != key}


def prompt_of(**fields) -> bytes:
    return body({**META, "prompt": json.dumps({"prompt_av": "x", "prompt_v": "x", "prompt_a": "x", **fields})})


HUGE = 10**30
DEEP = b"[" * 200_000
BAD = {
    "empty": (b"", ""),
    "no safetensors": (b"not safetensors at all", ""),
    "header is no object": (raw(b"[]"), ""),
    "header of 2^64 bytes": (b"\xff" * 8 + b"{}", ""),
    "header beyond the limit": (raw(json.dumps(header()).encode() + b" " * MAX_HEADER_BYTES), ""),
    "header nested deeply": (raw(DEEP), ""),
    "header of objects nested deeply": (raw(b'{"a":' * 100_000), ""),
    "header in UTF-16": (raw(json.dumps(header()).encode("utf-16")), ""),
    "header with bytes that are no UTF-8": (raw(b'{"\xff": 1}'), ""),
    "a number of 5000 digits": (text('"shape": [2', f'"shape": [{"9" * 5000}'), ""),
    "NaN in the header": (text('"shape": [2', '"shape": [NaN'), ""),
    "torn": (body()[:-10], "/video"),
    "bytes behind": (body() + b"x", ""),
    "no tensor": (raw({"__metadata__": META}, b""), "/video"),
    "a tensor twice": (text('"audio": {', '"video": {"dtype": "U8"}, "audio": {'), ""),
    "an entry twice": (text('"dtype": "U8"', '"dtype": "F32", "dtype": "U8"'), ""),
    "another tensor": (body(weights=AUDIO), "/weights"),
    "another tensor with an odd name": (raw(header(**{"a/b~\ud800": {}})), "/a~1b~0\\ud800"),
    "metadata is no object": (raw(header(meta=["prompt"])), "/__metadata__"),
    "metadata is a number": (raw(header(meta={**META, "fps": 12})), "/__metadata__/fps"),
    "metadata is nested": (raw(header(meta={**META, "more": {}})), "/__metadata__/more"),
    "half of a surrogate pair": (raw(header(meta={**META, "prompt": "\ud800"})), "/__metadata__/prompt"),
    "no prompt": (body(without("prompt")), "/__metadata__/prompt"),
    "prompt without parts": (body({**META, "prompt": '{"prompt_v": "x"}'}), "/__metadata__/prompt"),
    "prompt of numbers": (prompt_of(prompt_av=1), "/__metadata__/prompt"),
    "prompt whose id is a list": (prompt_of(id=[]), "/__metadata__/prompt"),
    "prompt with half of a pair": (prompt_of(prompt_a="\ud800"), "/__metadata__/prompt"),
    "prompt that is torn": (body({**META, "prompt": "{"}), "/__metadata__/prompt"),
    "prompt nested deeply": (body({**META, "prompt": '{"a":' * 10_000}), "/__metadata__/prompt"),
    "no frame rate": (body(without("fps")), "/__metadata__/fps"),
    "frame rate in words": (body({**META, "fps": "fast"}), "/__metadata__/fps"),
    "frame rate NaN": (body({**META, "fps": "nan"}), "/__metadata__/fps"),
    "frame rate without end": (body({**META, "fps": "1e999"}), "/__metadata__/fps"),
    "sample rate below zero": (body({**META, "sample_rate": "-1"}), "/__metadata__/sample_rate"),
    "half a sample": (body({**META, "sample_rate": "44100.5"}), "/__metadata__/sample_rate"),
    "sample rate of 300 digits": (body({**META, "sample_rate": "9" * 300}), "/__metadata__/sample_rate"),
    "video of floats": (body(video=VIDEO.astype(np.float32)), "/video"),
    "video of one clip's rank": (body(video=VIDEO[0]), "/video"),
    "two colours": (body(video=VIDEO[..., :2].copy()), "/video"),
    "sound of doubles": (body(audio=AUDIO.astype(np.float64)), "/audio"),
    "fewer sounds": (body(audio=AUDIO[:1]), "/audio"),
    "no sound": (save({"video": VIDEO}, metadata=META), "/audio"),
    "no clip": (body(video=VIDEO[:0], audio=AUDIO[:0]), "/video"),
    "too many clips": (body(audio=np.zeros((MAX_CLIPS + 1, 1, 1), np.float32)), "/audio"),
    "no dtype": (raw({**header(), "video": {"shape": [], "data_offsets": [0, 0]}}), "/video"),
    "a dtype that is a list": (raw(header(video={"dtype": ["U8"]})), "/video"),
    "an entry too much": (raw(header(video={"order": "C"})), "/video"),
    "a tensor that is a text": (raw({**header(), "video": "U8"}), "/video"),
    "shape that is a number": (raw(header(video={"shape": 2})), "/video"),
    "shape with a text": (raw(header(video={"shape": ["2", 3, 8, 8, 3]})), "/video"),
    "shape with a fraction": (raw(header(video={"shape": [2.0, 3, 8, 8, 3]})), "/video"),
    "shape with a truth": (raw(header(video={"shape": [2, 3, 64, True, 3]})), "/video"),
    "shape below zero": (raw(header(video={"shape": [-2, -3, 8, 8, 3]})), "/video"),
    "shape that says more than there is": (raw(header(video={"shape": [2, 3, 8, 9, 3]})), "/video"),
    "shape that says much more": (raw(header(video={"shape": [1024, 65536, 65536, 65536, 3]})), "/video"),
    "shape that turns over 64 bits": (raw(header(video={"shape": [2**32, 2**32, 1, 1, 3]})), "/video"),
    "shape of a huge number": (raw(header(video={"shape": [HUGE, 0, 8, 8, 3]})), "/video"),
    "shape of nothing, far too wide": (
        raw(header(video={"shape": [1, 0, 2**60, 2**60, 3], "data_offsets": [0, 0]})), "/video"
    ),
    "shape nested": (raw(header(video={"shape": [[[[[[2]]]]], 3, 8, 8, 3]})), "/video"),
    "offsets of three": (raw(header(video={"data_offsets": [0, 1, 2]})), "/video"),
    "offsets the wrong way": (raw(header(video={"data_offsets": [SIZES[0], 0]})), "/video"),
    "offsets below zero": (raw(header(video={"data_offsets": [-SIZES[0], 0]})), "/video"),
    "offsets that are huge": (raw(header(video={"data_offsets": [HUGE, HUGE + SIZES[0]]})), "/video"),
    "offsets beyond the body": (
        raw(header(audio={"data_offsets": [SIZES[0] + 8, sum(SIZES) + 8]})), "/audio"
    ),
    "tensors that overlap": (
        raw(header(audio={"data_offsets": [0, SIZES[1]]}), VIDEO.tobytes()), "/video"
    ),
    "a hole": (
        raw(header(audio={"data_offsets": [SIZES[0] + 4, sum(SIZES) + 4]}), bytes(sum(SIZES) + 4)), "/audio"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "field"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_named(data, field):
    with pytest.raises(BadBody) as caught:
        read_body(data, BOTH)
    assert caught.value.field == field
    assert caught.value.detail and len(caught.value.detail) < 500 and caught.value.detail.isascii()


def test_nothing_is_made_of_a_body_that_says_too_much():
    claims = [
        raw(header(video={"shape": [1024, 65536, 65536, 65536, 3], "data_offsets": [0, 2**62]})),
        raw(header(audio={"shape": [1024, 1024, 2**28], "data_offsets": [SIZES[0], SIZES[0] + 2**50]})),
        b"\xff\xff\xff\x7f\0\0\0\0" + b"{" * 100,
    ]
    tracemalloc.start()
    try:
        for claim in claims:
            with pytest.raises(BadBody):
                read_body(claim, BOTH)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_clip_of_nothing_is_a_clip():
    """It has no valid score; the body is a right one."""
    _, (clip,) = read_body(body(video=VIDEO[:1, :0], audio=AUDIO[:1, :, :0]), BOTH)
    assert clip.video_FHWC.shape == (0, 8, 8, 3) and clip.audio_CS.shape == (1, 0)
