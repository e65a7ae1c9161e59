"""Courses of events: when something happens in the picture, and when something begins to sound.

Both are measured on one grid, `GRID_HZ`, and smoothed alike, so that they can be compared at any lag. Nothing in here
knows what makes a sound: an event is a change of motion or of local brightness, and a rise of level in any band.

Seen. Grey frames of `SIDE` pixels on the short side; dense flow (DIS, medium: Kroeger et al. 2016) minus a robust
affine fit, which is the camera (pan, zoom, roll). Four courses: *motion* is the change of the mean flow of the
fastest 3 % of pixels plus the flux of the histogram of flow directions (motion ends in one direction *and* begins in
another; after the directogram of Davis and Agrawala 2018); *brighter* and *darker* are changes of local brightness
beyond the frame's median change (flashes, fire, mouths, things that appear); *any* is the sum. Across a cut nothing
is seen: an editor made it, not the scene. Light from nowhere that leaves no trace within `BRIEF` frames is easily made
beside any click, and counts for little (`flashes`). A picture of fewer than `LEAST_SIDE` pixels holds no flow: its one
course is how much each frame looks like a contact of its most colourful thing (a white flash, a kink of its path).

Heard. Log-mel level above each band's own floor, and power-law loudness; the positive change over 10 and 20 ms, over
all bands. A bed of music or of noise is in the floors.

Limits: what is smaller than about a hundredth of the frame, or slower than half a second, makes no event; what moves
with the camera's own affine motion is the camera. Times are good to about a third of a frame.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, maximum_filter, maximum_filter1d

from accord.types import Clip
from accord.world.measure import contact_evidence
from reward_servers.signals import mono

Float = NDArray[np.float64]
Pixels = NDArray[np.uint8]

GRID_HZ = 100
SIDE = 96
SMOOTH_S = 0.06
DRIFT_S = 0.6
"""What changes more slowly than this is no event: the mean over such a Gaussian is taken away."""
LEAST_SIDE = 64
"""Pixels on the short side below which there is no flow to speak of."""
LEAST_CONTACT = 0.3
"""Contact evidence that counts as an event even where nothing else happens."""
FAST_SHARE = 0.03
DIRECTIONS = 16
THINNED = 7
"""The camera is fitted to every seventh pixel."""
BLOCK = 6
MEMORY = 3
LEAST_CHANGE = {"turns": 0.3, "directions": 0.003, "light": 3.0}
"""Strong changes below these count for what they are, not as events: pixels per frame, and levels of 255."""
BRIEF = 4
"""Frames that a flash lasts which counts for little."""
NEAR = 5
"""Blocks across the surroundings in which what is bright may have been before: it moved, and is no flash."""
STILL = 0.5
"""Pixels per frame near a flash before and after it, at which it counts half as one: what moves may light up."""
TRACE = 4.0
"""How much a level that stays changed takes from a flash."""
FLASH_LEVELS = 5.0
"""Height of a flash at which what is seen counts half."""
SAME_SCENE = 0.6
"""Two frames whose blocks correlate less than this are of two scenes, if most blocks
changed by more than the levels beside it."""
CHANGED_LEVELS = 6.0
HOP_S = 0.005
BANDS = 48
BAND_RANGE_HZ = (60.0, 12_000.0)
FLOOR_DB = -45.0
PROMINENCE = (2.6, 3.4)
"""Where a sound begins to have events and where it has them surely: loudest moments of the change of level over its
median. Noise of any colour stays below 2, steady rain at 2.1; struck
sounds lie above 6, and from 3 under hiss."""


def grey(video_FHWC: Pixels, side: int = SIDE) -> Pixels:
    """Frames with `side` pixels on the short side: uint8 [F, h, w]."""
    height, width = video_FHWC.shape[1:3]
    scale = side / min(height, width)
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = [cv2.cvtColor(cv2.resize(frame, size, interpolation=way), cv2.COLOR_RGB2GRAY) for frame in video_FHWC]
    return np.stack(small).astype(np.uint8)


def local_flow(grey_FHW: Pixels) -> Float:
    """Motion between neighbouring frames without the camera's: pixels per frame, [F - 1, h, w, 2]."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    rows, columns = grey_FHW.shape[1:]
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    plane = np.stack([np.ones(rows * columns), x.ravel(), y.ravel()], axis=1)
    found = []
    for before, after in pairwise(grey_FHW):
        empty = np.zeros((rows, columns, 2), np.float32)
        flow = np.asarray(search.calc(before, after, empty), dtype=np.float64).reshape(-1, 2)
        found.append(_without_camera(flow, plane).reshape(rows, columns, 2))
    return np.stack(found)


def _without_camera(flow_N2: Float, plane_N3: Float) -> Float:
    """Residual of an affine fit by iterated weights (Tukey-like), starting from the median."""
    few, where = flow_N2[::THINNED], plane_N3[::THINNED]
    rest = few - np.median(few, axis=0)
    for _ in range(3):
        size = np.hypot(rest[:, 0], rest[:, 1])
        weighted = where / ((1.0 + (size / (2.0 * np.median(size) + 0.1)) ** 2) ** 2)[:, None]
        normal, moved = np.einsum("ni,nj->ij", weighted, where), np.einsum("ni,nj->ij", weighted, few)
        camera = np.linalg.solve(normal, moved)
        rest = few - np.einsum("ni,ij->nj", where, camera)
    return flow_N2 - np.einsum("ni,ij->nj", plane_N3, camera)


def _turns(flow_FHW2: Float) -> Float:
    """How much the mean motion of the fastest pixels changes from one flow to the next, [F - 2]."""
    flat = flow_FHW2.reshape(len(flow_FHW2), -1, 2)
    size = np.hypot(flat[..., 0], flat[..., 1])
    count = max(8, int(FAST_SHARE * size.shape[1]))
    fastest = np.argpartition(size, -count, axis=1)[:, -count:]
    mean = np.take_along_axis(flat, fastest[..., None], axis=1).mean(axis=1)
    return np.asarray(np.hypot(*np.diff(mean, axis=0).T))


def _redirections(flow_FHW2: Float) -> Float:
    """Motion that ends in some directions while other begins, [F - 2], in pixels per frame over the whole frame."""
    size = np.hypot(flow_FHW2[..., 0], flow_FHW2[..., 1]).reshape(len(flow_FHW2), -1)
    angle = np.arctan2(flow_FHW2[..., 1], flow_FHW2[..., 0]).reshape(size.shape)
    bins = ((angle + np.pi) / (2 * np.pi) * DIRECTIONS).astype(int) % DIRECTIONS
    weight = np.where(size > 0.2, size, 0.0) / size.shape[1]
    turned = np.stack(
        [np.bincount(place, weights=row, minlength=DIRECTIONS) for place, row in zip(bins, weight, strict=True)]
    )
    turned = (turned + 0.5 * np.roll(turned, 1, axis=1) + 0.5 * np.roll(turned, -1, axis=1)) / 2.0
    change = np.diff(turned, axis=0)
    return np.minimum(np.clip(change, 0.0, None).sum(axis=1), np.clip(-change, 0.0, None).sum(axis=1))


def _blocks(grey_FHW: Pixels) -> Float:
    """Mean brightness of blocks, in levels: [F, rows, columns]."""
    rows, columns = grey_FHW.shape[1:]
    size = (max(8, columns // BLOCK), max(8, rows // BLOCK))
    blocks = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in grey_FHW.astype(np.float32)]
    return np.stack(blocks).astype(np.float64)


def _beyond_common(blocks_FRC: Float) -> Float:
    """The same without the median block's changes, which are those of the whole frame."""
    common = np.cumsum(np.median(np.diff(blocks_FRC, axis=0), axis=(1, 2)))
    return blocks_FRC - np.concatenate([[0.0], common])[:, None, None]


def flashes(local_FRC: Float, moving_FRC: Float) -> Float:
    """How far each frame is lit from nowhere, in levels, [F]; from levels and speeds of blocks, [F, rows, columns].

    A block's is its brightness over `b` frames, least of them, above all that is `NEAR` in the frames before and after,
    minus `TRACE` times how much those two differ in it, less where something moves near it before or after; the frame's
    is the mean of its highest hundredth, for the b up to `BRIEF` that gives most. What moves was near before, and what
    happens leaves something changed; a lamp that flickers, or a patch pasted over one frame, does neither.
    """
    frames = len(local_FRC)
    around = maximum_filter(local_FRC, size=(1, NEAR, NEAR))
    still = 1.0 / (1.0 + (maximum_filter(moving_FRC, size=(1, NEAR, NEAR)) / STILL) ** 2)
    found = np.zeros(frames)
    for brief in range(1, BRIEF + 1):
        last = frames - brief - 1
        if last < 1:
            break
        lit = sliding_window_view(local_FRC[1:-1], brief, axis=0).min(axis=3)
        left = np.abs(local_FRC[brief + 1 :] - local_FRC[:last])
        height = lit - np.maximum(around[:last], around[brief + 1 :]) - TRACE * left
        height = height * still[:last] * still[brief + 1 :]
        highest = np.sort(height.reshape(last, -1), axis=1)
        height_F = highest[:, -max(2, highest.shape[1] // 100) :].mean(axis=1)
        for offset in range(1, brief + 1):
            part = found[offset : offset + last]
            np.maximum(part, height_F, out=part)
    return found


def _speed(flow_FHW2: Float, size: tuple[int, ...]) -> Float:
    """Mean speed of blocks at each frame, the lesser of those to it and from it: pixels per frame [F, rows, columns].

    A flash is taken for motion by the flow that meets it; the one on its other side is not.
    """
    blocks = [
        cv2.resize(np.hypot(*np.moveaxis(flow, 2, 0)), size[::-1], interpolation=cv2.INTER_AREA) for flow in flow_FHW2
    ]
    padded = np.pad(np.stack(blocks), ((1, 1), (0, 0), (0, 0)), mode="edge")
    return np.minimum(padded[1:], padded[:-1])


def _light(local_FB: Float) -> tuple[Float, Float]:
    """Growth of brightness, and loss below all of the last `MEMORY` frames: in levels, [F - 1] each.

    A flash that ends falls back to where it came from, and darkens nothing.
    """
    past = sliding_window_view(np.pad(local_FB[:-1], ((MEMORY - 1, 0), (0, 0)), mode="edge"), MEMORY, axis=0).min(
        axis=2
    )
    count = 1 + int(FAST_SHARE * local_FB.shape[1])
    grown = np.sort(np.diff(local_FB, axis=0), axis=1)[:, -count:].mean(axis=1)
    lost = np.sort(past - local_FB[1:], axis=1)[:, -count:].mean(axis=1)
    return np.clip(grown, 0.0, None), np.clip(lost, 0.0, None)


def _same_scene(blocks_FB: Float) -> NDArray[np.bool_]:
    """Whether neighbouring frames show one scene, however lit: [F - 1]. At a cut most blocks change, each its way."""
    centred = blocks_FB - blocks_FB.mean(axis=1, keepdims=True)
    size = np.sqrt(np.einsum("fb,fb->f", centred, centred)) + 1e-9
    alike = np.einsum("fb,fb->f", centred[1:], centred[:-1]) / (size[1:] * size[:-1])
    changed = (np.abs(np.diff(centred, axis=0)) > CHANGED_LEVELS).mean(axis=1)
    return (alike > SAME_SCENE) | (changed < 0.5)


def seen(clip: Clip) -> dict[str, Float]:
    """Courses of what is seen on the grid [T], each 0 to 1 (`any`: 0 to 4), not yet smoothed. See the module."""
    if min(clip.video_FHWC.shape[1:3]) < LEAST_SIDE:
        contacts = _contacts(clip)
        return {"contacts": contacts, "any": contacts}
    pictures = grey(clip.video_FHWC)
    flow = local_flow(pictures)
    blocks = _blocks(pictures)
    local = _beyond_common(blocks)
    frames = len(pictures)
    grown, lost = _light(local.reshape(frames, -1))
    steady = _same_scene(blocks.reshape(frames, -1)).astype(np.float64)
    kept = 1.0 / (1.0 + (flashes(local, _speed(flow, local.shape[1:])) / FLASH_LEVELS) ** 2)
    of_light = steady * np.minimum(kept[1:], kept[:-1])
    of_motion = np.minimum(of_light[1:], of_light[:-1])
    at_frame, between = np.arange(1, frames - 1) / clip.fps, (np.arange(1, frames) - 0.35) / clip.fps
    times = np.arange(round(frames / clip.fps * GRID_HZ)) / GRID_HZ

    def course(at: NDArray[np.floating], values: Float, counts: Float, least: float) -> Float:
        return np.interp(times, at, events(values * counts, least), left=0.0, right=0.0)

    motion = course(at_frame, _turns(flow), of_motion, LEAST_CHANGE["turns"])
    motion += course(at_frame, _redirections(flow), of_motion, LEAST_CHANGE["directions"])
    brighter = course(between, grown, of_light, LEAST_CHANGE["light"])
    darker = course(between, lost, of_light, LEAST_CHANGE["light"])
    return {"motion": motion, "brighter": brighter, "darker": darker, "any": motion + brighter + darker}


def _contacts(clip: Clip) -> Float:
    """The course of a picture too small for flow: how much each frame looks like a contact, at its frame."""
    evidence = contact_evidence(clip.video_FHWC)
    course = np.zeros(round(len(evidence) / clip.fps * GRID_HZ))
    places = np.minimum(np.round(np.arange(len(evidence)) / clip.fps * GRID_HZ).astype(int), len(course) - 1)
    np.add.at(course, places, evidence)
    return np.clip(course / max(float(np.percentile(evidence, 95)), LEAST_CONTACT), 0.0, 1.0)


def heard(audio_CS: NDArray[np.float32], sample_rate: int, duration_s: float) -> tuple[Float, float]:
    """Course of what is heard on the grid [T], and how surely the sound has events at all, 0 to 1."""
    power, hop_s = _mel(mono(audio_CS), sample_rate)
    loudest = max(float(power.max()), 1e-20)
    floor = np.maximum(np.percentile(power, 30, axis=0), loudest * 10 ** (FLOOR_DB / 10))
    level = np.log1p(power / floor / 3.0)
    above = _rise(level, maximum_filter1d(level, 3, axis=1), 2)
    loudness = (power / loudest) ** 0.3
    louder = _rise(loudness, loudness, 4)
    times = np.arange(round(duration_s * GRID_HZ)) / GRID_HZ
    at = np.arange(len(above)) * hop_s
    first = smoothed(events(np.interp(times, at, above, right=0.0), 1e-3))
    second = smoothed(events(np.interp(times, at - hop_s, louder, right=0.0), 1e-3))
    strong = float(np.percentile(gaussian_filter1d(above, 0.01 / hop_s), 99))
    prominence = strong / max(float(np.median(above)), 0.01)
    low, high = PROMINENCE
    return first + second, float(np.clip((prominence - low) / (high - low), 0.0, 1.0))


def _rise(values_TB: Float, before_TB: Float, steps: int) -> Float:
    """Mean over bands of the growth since `steps` hops ago, [T]."""
    grown = np.zeros_like(values_TB)
    grown[steps:] = np.clip(values_TB[steps:] - before_TB[:-steps], 0.0, None)
    return np.asarray(grown.mean(axis=1))


def _mel(sound_S: Float, sample_rate: int) -> tuple[Float, float]:
    """Power in mel bands [T, bands] and the hop in seconds; Hann window of about 25 ms."""
    hop = max(1, round(sample_rate * HOP_S))
    size = int(2 ** np.round(np.log2(sample_rate * 0.025)))
    padded = np.pad(sound_S - sound_S.mean(), (size // 2, size), mode="reflect")
    framed = sliding_window_view(padded, size)[: len(sound_S) : hop]
    power = np.abs(np.fft.rfft(framed * np.hanning(size), axis=1)) ** 2
    frequencies = np.fft.rfftfreq(size, 1.0 / sample_rate)
    low, high = BAND_RANGE_HZ[0], min(sample_rate / 2.0, BAND_RANGE_HZ[1])
    ends = 2595.0 * np.log10(1.0 + np.array([low, high]) / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(ends[0], ends[1], BANDS + 2) / 2595.0) - 1.0)
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    bank = np.clip(np.minimum(rising, falling), 0.0, None)
    bank = bank[:, bank.sum(axis=0) > 0]
    return np.einsum("tf,fb->tb", power, bank), hop / sample_rate


def events(values_T: Float, least: float) -> Float:
    """What stands above the usual, 0 to 1: minus the median, over the 98th percentile but no less than `least`."""
    above = np.clip(values_T - np.median(values_T), 0.0, None)
    return np.clip(above / max(float(np.percentile(above, 98)), least), 0.0, 1.0)


def smoothed(values_T: Float) -> Float:
    """A course to correlate: smoothed, without drift and mean, of length 1 (0 if it is flat)."""
    smooth = gaussian_filter1d(values_T, SMOOTH_S * GRID_HZ)
    smooth = smooth - gaussian_filter1d(smooth, DRIFT_S * GRID_HZ)
    smooth = smooth - smooth.mean()
    length = float(np.sqrt(np.einsum("t,t->", smooth, smooth)))
    return smooth / length if length > 1e-6 else np.zeros_like(smooth)


def how_many(course_T: Float) -> float:
    """How many events of one height a smoothed course amounts to: its participation ratio over a pulse's width."""
    above = np.clip(course_T, 0.0, None)
    energy = float(np.einsum("t,t->", above, above))
    if energy <= 0:
        return 0.0
    return float(above.sum()) ** 2 / energy / (2.0 * np.sqrt(np.pi) * SMOOTH_S * GRID_HZ)
