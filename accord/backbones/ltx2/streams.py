"""The two streams of a transformer block and the bridges between them, by the names of its parts.

Light: names alone, for who reads headers and for who walks modules.
"""

from __future__ import annotations

import re

from accord.types import Modality

BLOCKS = "transformer_blocks"
AUDIO_TO_VIDEO, VIDEO_TO_AUDIO = "audio_to_video_attn", "video_to_audio_attn"
"""The cross-attention by which one stream writes into the other."""
PARTS = ("attn1", "attn2", "audio_attn1", "audio_attn2", AUDIO_TO_VIDEO, VIDEO_TO_AUDIO, "ff", "audio_ff")
"""What of a block may carry an adapter."""
GATES = "to_gate_logits"
"""Per-head gates stay frozen: an adapter goes on query, key, value, output and feed-forward layers."""
_PART = re.compile(r"[^.]+\.(\d+)\.([^.]+)\.")
_BRIDGE = re.compile(r"(?:audio|video)_to_(audio|video)_")


def branch_of(key: str) -> tuple[Modality, int] | None:
    """Stream and block that an adapter tensor belongs to, from its key; None for one outside of the blocks.

    `transformer_blocks.3.audio_ff.net.2.lora_A.weight` is audio's, block 3. A cross-attention belongs to the stream
    that it writes: `audio_to_video_attn` to video.
    """
    match = _PART.match(key)
    if match is None:
        return None
    part, bridge = match[2], _BRIDGE.match(match[2])
    writes = bridge[1] if bridge else "audio" if part.startswith("audio_") else "video"
    return ("audio" if writes == "audio" else "video"), int(match[1])
