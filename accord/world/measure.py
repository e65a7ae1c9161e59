"""Measurements on clips, without any learnt weights: what reward servers and the acceptance gates compute.

Pure functions from arrays to numbers. Video is uint8 [F, H, W, 3]; audio is mono float [S] in [-1, 1]. Times are
seconds from the start of the clip. Functions that find nothing return empty arrays or `nan`; `nan` means *not
measurable* and must be treated as an invalid score, never as zero.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from accord.world.scene import BACKGROUND, COLOURS, FPS, SAMPLE_RATE, SOUNDS

Floats = NDArray[np.float64]

SYNC_TOLERANCE_S = 0.080
VOCODER_LATENCY_S = 0.0035
"""Constant lead (negative) or delay (positive) in seconds of onsets after the audio codec and the vocoder, as measured
over clean clips. Subtract it when one number for the offset is wanted; soft scores may ignore it."""

HOP_S = 0.005
BAND_HALF_WIDTH_OCTAVES = 0.6

# ---------------------------------------------------------------- what is seen


def saturation(video: NDArray[np.uint8]) -> Floats:
    """Saturation of each pixel, max minus min over RGB, in [0, 1]: [F, H, W]. White, grey and black give 0."""
    pixels = video.astype(np.float64) / 255.0
    return np.asarray(pixels.max(-1) - pixels.min(-1))


def _object_weights(video: NDArray[np.uint8]) -> Floats:
    """Weights [F, H, W] of the one saturated object: saturation above 0.2."""
    return np.clip(saturation(video) - 0.2, 0.0, None)


def object_presence(video: NDArray[np.uint8]) -> float:
    """Share of frames with a clearly saturated object, in [0, 1]; higher is better. A faint object counts as none."""
    mass = _object_weights(video).sum((1, 2))
    return float(np.mean(mass > 6.0))


def object_track(video: NDArray[np.uint8]) -> Floats:
    """Saturation-weighted centre (x, y) in pixels in each frame, [F, 2]; `nan` where no object is seen."""
    weights = _object_weights(video)
    mass = weights.sum((1, 2))
    rows = np.arange(video.shape[1]) + 0.5
    columns = np.arange(video.shape[2]) + 0.5
    safe = np.maximum(mass, 1e-9)
    x = np.einsum("fhw,w->f", weights, columns) / safe
    y = np.einsum("fhw,h->f", weights, rows) / safe
    track = np.stack([x, y], axis=1)
    track[mass < 3.0] = np.nan
    return np.asarray(track)


def _kinks(track: Floats) -> Floats:
    """Sudden changes of velocity in pixels per frame, [F]: the second difference minus its median (gravity)."""
    bend = np.full(track.shape, np.nan)
    bend[1:-1] = track[2:] - 2.0 * track[1:-1] + track[:-2]
    if np.isnan(bend).all():
        return np.zeros(len(track))
    bend = np.nan_to_num(bend - np.nanmedian(bend, axis=0))
    return np.asarray(np.hypot(bend[:, 0], bend[:, 1]))


def _flashes(video: NDArray[np.uint8]) -> Floats:
    """Sudden growth of the white area in pixels, [F]; frame 0 counts all the white it shows. White is what lies clearly
    above both the pixel's own median and the grey of the room, so a ball that moves away uncovers nothing white."""
    white = video.astype(np.float64).min(-1) / 255.0
    usual = np.maximum(np.median(white, axis=0), BACKGROUND)
    area = np.clip((white - usual - 0.12) / 0.4, 0.0, 1.0).sum((1, 2))
    return np.clip(np.diff(area, prepend=0.0), 0.0, None)


def contact_evidence(video: NDArray[np.uint8]) -> Floats:
    """How much each frame looks like a contact, [F] in [0, 1.5]: a sudden white flash counts up to 1, a kink of the
    object's path up to 0.5. The flash carries more because it survives blurred frames; a kink alone is not enough."""
    flash = np.clip(_flashes(video) / 12.0, 0.0, 1.0)
    kink = np.clip(_kinks(object_track(video)) / 6.0, 0.0, 1.0)
    return np.asarray(flash + 0.5 * kink)


def visual_contacts(video: NDArray[np.uint8], fps: float = FPS, threshold: float = 0.55) -> Floats:
    """Times (s) at which the object visibly hits something, rising.

    A contact is a local peak of `contact_evidence`; its time is the centroid of the evidence over the peak and its two
    neighbours. On the world's own clips the error is a few ms. Limits: contacts closer than three frames merge, and a
    contact without a flash is not counted.
    """
    evidence = contact_evidence(video)
    frames: list[int] = []
    for frame in np.argsort(-evidence, kind="stable").tolist():
        if evidence[frame] < threshold:
            break
        if all(abs(frame - other) >= 3 for other in frames):
            frames.append(frame)
    times: list[float] = []
    for frame in sorted(frames):
        low, high = max(0, frame - 1), min(len(evidence), frame + 2)
        around = evidence[low:high] ** 2
        times.append(float((np.arange(low, high) * around).sum() / around.sum()) / fps)
    return np.asarray(times, dtype=np.float64)


def colour_probabilities(video: NDArray[np.uint8]) -> Floats:
    """Probabilities of the world's colours for the saturated object, [4] in the order of `COLOURS`; they sum to 1.

    The weighted mean colour is compared by the angle of its chroma. Without an object all are 0.25. Limit: two objects
    of different colours are averaged.
    """
    weights = _object_weights(video)
    if weights.sum() < 3.0 * len(video) * 0.2:
        return np.full(len(COLOURS), 1.0 / len(COLOURS))
    mean = np.einsum("fhw,fhwc->c", weights, video.astype(np.float64)) / weights.sum()
    chroma = mean - mean.mean()
    chroma /= max(float(np.linalg.norm(chroma)), 1e-9)
    references = np.asarray(list(COLOURS.values()))
    references = references - references.mean(1, keepdims=True)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    scores = np.exp((references @ chroma) / 0.12 - 1.0 / 0.12)
    return np.asarray(scores / scores.sum())


def motion_probabilities(video: NDArray[np.uint8]) -> Floats:
    """Probabilities of (bouncing, sliding), [2]: the shares of vertical and horizontal path variance.

    0.5 each if no object is tracked in at least half of the frames. Limit: it looks at directions only, not at the form
    of the path.
    """
    track = object_track(video)
    if np.isnan(track[:, 0]).mean() > 0.5:
        return np.full(2, 0.5)
    across, down = np.nanvar(track, axis=0) + 0.05
    return np.asarray([down, across]) / (across + down)


def flicker(video: NDArray[np.uint8]) -> float:
    """Unrest of the overall brightness: mean absolute change of each frame's median grey, over 255. Range [0, 1],
    lower is better; a clean clip is below 0.002. The median ignores the ball and the spark."""
    level = np.median(video.astype(np.float64).mean(-1), axis=(1, 2)) / 255.0
    return float(np.abs(np.diff(level)).mean())


def sharpness(video: NDArray[np.uint8]) -> float:
    """How crisp the object's edge is: the mean of the eight steepest saturation steps between neighbours of each frame.

    Range [0, 1], higher is better; the clean world reads about 0.68. An empty clip reads near 0.
    """
    colour = saturation(video)
    down = np.abs(np.diff(colour, axis=1)).reshape(len(colour), -1)
    across = np.abs(np.diff(colour, axis=2)).reshape(len(colour), -1)
    steepest = np.sort(np.concatenate([down, across], axis=1), axis=1)[:, -8:]
    return float(steepest.mean())


# ---------------------------------------------------------------- what is heard


def _spectrum(audio: Floats, rate: int, window_s: float, hop_s: float) -> tuple[Floats, Floats]:
    """Hann-windowed amplitude spectrum [T, K] (a full-scale sine reads 1) and its frequencies [K] in Hz."""
    size = max(16, round(window_s * rate))
    hop = max(1, round(hop_s * rate))
    padded = np.pad(np.asarray(audio, dtype=np.float64), (size // 2, size // 2 + hop))
    count = 1 + (len(audio) - 1) // hop
    index = np.arange(size)[None] + hop * np.arange(count)[:, None]
    window = np.hanning(size)
    spectrum = np.abs(np.fft.rfft(padded[index] * window, axis=1)) * 2.0 / window.sum()
    return np.asarray(spectrum), np.asarray(np.fft.rfftfreq(size, 1.0 / rate), dtype=np.float64)


def _band_envelopes(audio: Floats, rate: int) -> Floats:
    """Amplitude over time in octave bands from 80 Hz up, [T, bands], hop 5 ms, each minus its median floor."""
    spectrum, frequencies = _spectrum(audio, rate, 0.020, HOP_S)
    edges = 80.0 * 2.0 ** np.arange(0, 8)
    bands = []
    for low, high in pairwise(edges):
        inside = (frequencies >= low) & (frequencies < high)
        if inside.any():
            bands.append(np.sqrt(np.square(spectrum[:, inside]).sum(1)))
    envelopes = np.stack(bands, axis=1)
    floor = np.median(envelopes, axis=0, keepdims=True)
    spread = np.median(np.abs(envelopes - floor), axis=0, keepdims=True)
    return np.clip(envelopes - floor - 4.0 * spread, 0.0, None)


def audio_onsets(audio: NDArray[np.floating], rate: int = SAMPLE_RATE) -> Floats:
    """Times (s) at which sounds begin, rising. Works on any mono signal at any rate of at least 1 kHz.

    Octave-band envelopes (20 ms window, 5 ms hop) minus their floor are added up; an onset is a rise by more than 30 %
    of the loudest moment within 30 ms, timed where half of that rise is reached. On the world's own clips the error is
    a few ms. Limits: steady noise alone gives no onsets; events closer than 0.15 s merge.
    """
    envelope = _band_envelopes(np.asarray(audio, dtype=np.float64), rate).sum(1)
    peak = float(envelope.max(initial=0.0))
    if peak < 0.01:
        return np.zeros(0)
    reach = 6
    before = np.concatenate([np.zeros(reach), envelope])
    lowest = np.min(np.stack([before[k : k + len(envelope)] for k in range(reach)]), axis=0)
    rise = envelope - lowest
    times: list[float] = []
    index = 0
    while index < len(rise):
        if rise[index] > 0.3 * peak:
            top = index + int(np.argmax(envelope[index : index + reach]))
            base = lowest[index]
            half = base + 0.5 * (envelope[top] - base)
            start = top
            while start > 0 and envelope[start - 1] > half:
                start -= 1
            step = envelope[start] - (envelope[start - 1] if start > 0 else 0.0)
            fraction = (envelope[start] - half) / step if step > 0 and start > 0 else 0.0
            times.append(max(0.0, (start - fraction) * HOP_S))
            index = top + int(0.15 / HOP_S)
        else:
            index += 1
    return np.asarray(times, dtype=np.float64)


def sound_shares(audio: NDArray[np.floating], rate: int = SAMPLE_RATE) -> Floats:
    """Share of the energy in the band of each of the world's sounds, [4] in the order of `SOUNDS`, each in [0, 1].

    Bands reach 0.6 octaves to both sides of the pitch; energy outside all of them belongs to no sound, so the shares
    add up to at most 1. Silence gives zeros. Limit: only pitch is judged, not timbre.
    """
    spectrum, frequencies = _spectrum(np.asarray(audio, dtype=np.float64), rate, 0.040, 0.010)
    power = np.square(spectrum).sum(0)
    total = float(power[frequencies > 40.0].sum())
    if total < 1e-9:
        return np.zeros(len(SOUNDS))
    reach = 2.0**BAND_HALF_WIDTH_OCTAVES
    shares = [power[(frequencies >= pitch / reach) & (frequencies <= pitch * reach)].sum() for pitch in SOUNDS.values()]
    return np.asarray(shares) / total


def audio_snr_db(audio: NDArray[np.floating], rate: int = SAMPLE_RATE) -> float:
    """Loudness of the events over the noise floor in dB: 95th against 10th percentile of the 20 ms RMS level.

    Range [0, 60] (capped), higher is cleaner; near 0 for steady noise. `nan` for silence. Limit: it assumes pauses.
    """
    frame = int(0.020 * rate)
    usable = len(audio) // frame * frame
    level = np.sqrt(np.square(np.asarray(audio[:usable], dtype=np.float64)).reshape(-1, frame).mean(1))
    loud, quiet = np.percentile(level, [95.0, 10.0])
    if loud < 1e-3:
        return float("nan")
    return float(np.clip(20.0 * np.log10(loud / max(quiet, loud * 1e-3)), 0.0, 60.0))


# ---------------------------------------------------------------- seen and heard together


def soft_f1(first: Floats, second: Floats, tolerance_s: float = SYNC_TOLERANCE_S) -> float:
    """Agreement of two lists of times: twice the best one-to-one sum of `exp(-distance / tolerance)` over the number of
    events. Range [0, 1], 1 if all agree; 0 if either list is empty. Pairs keep their order."""
    if len(first) == 0 or len(second) == 0:
        return 0.0
    gain = np.exp(-np.abs(np.subtract.outer(first, second)) / tolerance_s)
    best = np.zeros((len(first) + 1, len(second) + 1))
    for row in range(len(first)):
        for column in range(len(second)):
            best[row + 1, column + 1] = max(
                best[row, column] + gain[row, column], best[row, column + 1], best[row + 1, column]
            )
    return float(2.0 * best[-1, -1] / (len(first) + len(second)))


def chance_f1(first: Floats, second: Floats, duration_s: float, shifts: int = 16) -> float:
    """The agreement to be expected without any relation: mean `soft_f1` over circular shifts of the second list.

    Always report it beside `soft_f1`, because more events also agree more often by chance. Limit: for periodic events
    some shifts fit again by themselves, so this is a strict control.
    """
    offsets = duration_s * np.arange(1, shifts) / shifts
    return float(np.mean([soft_f1(first, np.sort((second + offset) % duration_s)) for offset in offsets]))


def median_offset_s(first: Floats, second: Floats) -> float:
    """Median over the first list of the distance to the nearest event of the second, in seconds; lower is better.
    `nan` if either list is empty."""
    if len(first) == 0 or len(second) == 0:
        return float("nan")
    return float(np.median(np.abs(np.subtract.outer(first, second)).min(1)))
