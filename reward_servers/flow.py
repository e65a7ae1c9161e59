"""Dense optical flow between the frames of a clip: what measures of motion start from.

Dense inverse search (Kroeger et al., ECCV 2016) in OpenCV's fast preset, on one thread: 1 ms a pair at 128 pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from reward_servers.signals import Pixels

cv2.setNumThreads(1)

Flow = NDArray[np.float32]
LONGEST = 4
"""A frame's long side, in short sides, beyond which it is squeezed."""
SMALLEST = 16
"""Fewest pixels of a side; the search's own blocks are 8."""


def resized(video_FHWC: Pixels, short_side: int) -> list[Pixels]:
    """Frames whose short side is brought to `short_side`, smaller ones enlarged: uint8 [h, w, 3] each."""
    height, width = video_FHWC.shape[1:3]
    scale = min(short_side / min(height, width), LONGEST * short_side / max(height, width))
    size = (max(SMALLEST, round(width * scale)), max(SMALLEST, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    return [np.asarray(cv2.resize(frame, size, interpolation=how), dtype=np.uint8) for frame in video_FHWC]


def grey_frames(video_FHWC: Pixels, short_side: int) -> Pixels:
    """Brightness of the resized frames: uint8 [F, h, w]."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in resized(video_FHWC, short_side)])


def dense_flow(before_FHW: Pixels, after_FHW: Pixels) -> Flow:
    """Where each pixel of `before` has gone in `after`, in pixels (x, y): float32 [F, h, w, 2]."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = np.zeros((*before_FHW.shape, 2), dtype=np.float32)
    for pair, (before, after) in enumerate(zip(before_FHW, after_FHW, strict=True)):
        if not np.array_equal(before, after):  # nothing moves between equal frames, to the bit
            flow[pair] = search.calc(before, after, flow[pair])
    return flow


def carried(frame_HW: Pixels, flow_HW2: Flow) -> NDArray[np.float32]:
    """A frame looked up where the flow leads from each pixel; beyond the edge, the edge: float32 [h, w]."""
    rows, columns = np.indices(frame_HW.shape, dtype=np.float32)
    looked_up = cv2.remap(
        frame_HW, flow_HW2[..., 0] + columns, flow_HW2[..., 1] + rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(looked_up, dtype=np.float32)


def fastest(flow_FHW2: Flow, share: float = 0.05) -> NDArray[np.float64]:
    """Mean length of the flow over the share of pixels that move most, in pixels [F]."""
    length = np.hypot(flow_FHW2[..., 0], flow_FHW2[..., 1]).reshape(len(flow_FHW2), -1)
    count = max(1, round(length.shape[1] * share))
    return np.partition(length, -count, axis=1)[:, -count:].mean(axis=1, dtype=np.float64)
