"""Clips to MP4 files that people can watch and hear, and back.

H.264 (yuv420p, BT.709) and AAC in one file whose index comes first, so that a browser plays it while it loads. Both
streams start at time 0: the priming samples of AAC are taken off by the file's edit list, there are no B-frames to
reorder. Shapes: F frames, H height, W width, C audio channels, S audio samples.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.errors import MediaError
from accord.run_folder import RunFolder
from accord.types import Clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

AAC_RATES = (44_100, 48_000)
"""Sample rates that are kept; any other is resampled to 48 kHz, where an AAC frame is only 21 ms long."""
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""What a clip's file may end in, and how it is read: never by its content, as a playlist would lead to other files."""


def write_mp4(clip: Clip, folder: RunFolder, name: str, *, min_side: int = 256) -> None:
    """Write a clip as MP4, whole or not at all.

    A picture whose shorter side is below `min_side` pixels is enlarged by a whole factor, each pixel becoming a
    square; an odd side grows by one repeated row or column. A clip without audio samples becomes a silent file.

    Raises:
        MediaError: the arrays do not make a clip, or FFmpeg or the file system refuses.
    """
    import av

    _check(clip)
    video = even_sides(enlarge(clip.video_FHWC, min_side))
    try:
        with folder.writing(name) as draft:
            _encode(clip, video, draft)
    except (OSError, av.FFmpegError) as error:
        raise MediaError(
            f"cannot write the clip {folder.root / name}: {error}; check the folder and its free space"
        ) from error


def read_mp4(path: Path) -> Clip:
    """Read a file back as people see and hear it: uint8 video [F, H, W, 3], float32 audio [C, S], both from time 0.

    Sizes and rates are those of the file, so a small clip comes back enlarged. Frames that do not come evenly are taken
    at the file's mean rate: at each of its ticks the one that is seen then. A file without sound gives [1, 0]. One that
    ends in none of `CONTAINERS` is read as MP4.

    Raises:
        MediaError: the file is missing, has no picture, or is torn.
    """
    import av

    try:
        with av.open(str(path), format=CONTAINERS.get(path.suffix.lower(), "mp4")) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream; a clip has a picture, with or without sound")
            video, fps = _decode_video(container)
            container.seek(0)
            audio, rate = (
                _decode_audio(container) if container.streams.audio else (np.zeros((1, 0), np.float32), 48_000)
            )
    except (OSError, av.FFmpegError) as error:
        raise MediaError(
            f"cannot read the clip {path}: {error}; it is missing or torn, or its content is not what its name ends in "
            f"({', '.join(CONTAINERS)})"
        ) from error
    if not len(video) or fps <= 0:
        raise MediaError(f"{path} holds no video frames; the file is torn")
    return Clip(video, fps, audio, rate)


def enlarge(video: NDArray[np.uint8], min_side: int) -> NDArray[np.uint8]:
    """Repeat pixels [F, H, W, 3] by the smallest whole factor that brings the shorter side to `min_side` or more."""
    factor = max(1, -(-min_side // min(video.shape[1:3])))
    return video if factor == 1 else video.repeat(factor, axis=1).repeat(factor, axis=2)


def even_sides(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row or column [F, H, W, 3] where a side is odd: yuv420p halves both."""
    _, height, width, _ = video.shape
    return np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _check(clip: Clip) -> None:
    """Refuse arrays that are no clip, before FFmpeg says it in its own words."""
    video, audio = clip.video_FHWC, clip.audio_CS
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise MediaError(f"video_FHWC is {video.dtype} {list(video.shape)}; a clip has uint8 [F, H, W, 3], none empty")
    if audio.ndim != 2 or audio.shape[0] not in (1, 2):
        raise MediaError(f"audio_CS has shape {list(audio.shape)}; a clip has [1, S] (mono) or [2, S] (stereo)")
    if not np.isfinite(audio).all():
        raise MediaError("audio_CS holds NaN or infinity; the model or vocoder that made it is broken")
    if not clip.fps > 0 or (audio.shape[1] and not clip.sample_rate > 0):
        raise MediaError(f"fps {clip.fps} and sample_rate {clip.sample_rate} must both be greater than 0")


def _encode(clip: Clip, video: NDArray[np.uint8], path: Path) -> None:
    """Encode and mux into `path`."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        picture = _video_stream(container, video, clip.fps)
        sound = _audio_stream(container, clip) if clip.audio_CS.shape[1] else None
        for index, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", src_colorspace="ITU709", dst_colorspace="ITU709")
            frame.pts = index
            frame.time_base = 1 / picture.codec_context.framerate
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if sound is not None:
            container.mux(sound.encode(_audio_frame(clip)))  # in the encoder's own rate, format and frame size
            container.mux(sound.encode(None))


def _video_stream(container: Any, video: NDArray[np.uint8], fps: float) -> Any:
    """Add the H.264 stream; one thread, so that the same clip gives the same bytes anywhere."""
    options = {"crf": "18", "preset": "medium", "bf": "0"}
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, as the conversion above
    context.color_range = 1  # limited
    return stream


def _audio_stream(container: Any, clip: Clip) -> Any:
    """Add the AAC stream."""
    channels = clip.audio_CS.shape[0]
    rate = clip.sample_rate if clip.sample_rate in AAC_RATES else 48_000
    stream = container.add_stream("aac", rate=rate, layout="mono" if channels == 1 else "stereo")
    stream.bit_rate = 96_000 * channels
    return stream


def _audio_frame(clip: Clip) -> Any:
    """The clip's audio as one frame."""
    import av

    samples = np.ascontiguousarray(np.clip(clip.audio_CS, -1.0, 1.0), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono" if len(samples) == 1 else "stereo")
    frame.sample_rate = clip.sample_rate
    frame.pts = 0
    frame.time_base = Fraction(1, clip.sample_rate)
    return frame


def _decode_video(container: Any) -> tuple[NDArray[np.uint8], float]:
    """Decode the picture [F, H, W, 3] and its rate; frames more than half a frame off an even pace are paced anew."""
    frames, times = [], []
    for frame in container.decode(video=0):
        frames.append(frame.to_ndarray(format="rgb24"))
        times.append(frame.time)
    fps = float(container.streams.video[0].average_rate or 0)
    if len(frames) < 2 or None in times or times[-1] <= times[0]:
        return np.asarray(frames, np.uint8), fps
    times_F, number_F = np.asarray(times) - times[0], np.arange(len(frames))
    if fps > 0 and np.abs(times_F * fps - number_F).max() <= 0.5:
        return np.stack(frames), fps
    fps = (len(frames) - 1) / float(times_F[-1])
    shown_F = np.searchsorted(times_F, number_F / fps + 1e-6, side="right") - 1
    return np.stack([frames[index] for index in shown_F]), fps


def _decode_audio(container: Any) -> tuple[NDArray[np.float32], int]:
    """Decode the sound [C, S] and its rate; what lies before time 0 is cut, a late start is filled with silence."""
    import av

    stream = container.streams.audio[0]
    rate = int(stream.codec_context.sample_rate)
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
    blocks: list[NDArray[np.float32]] = []
    start: float | None = None
    for frame in container.decode(audio=0):
        start = float(frame.time or 0.0) if start is None else start
        blocks.extend(np.asarray(block.to_ndarray(), np.float32) for block in resampler.resample(frame))
    blocks.extend(np.asarray(block.to_ndarray(), np.float32) for block in resampler.resample(None))
    if not blocks:
        return np.zeros((stream.codec_context.channels, 0), np.float32), rate
    audio = np.concatenate(blocks, axis=1)
    lead = round((start or 0.0) * rate)
    return (np.pad(audio, ((0, 0), (lead, 0))) if lead > 0 else audio[:, -lead:]), rate
