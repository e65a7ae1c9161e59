"""Clips become files that play in sync, and bad clips are refused before anything is written."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from accord.errors import MediaError
from accord.media import CONTAINERS, read_mp4, write_mp4
from accord.run_folder import RunFolder
from accord.types import Clip

FPS, FRAMES, EVENT = 12.0, 25, 10


def flash_and_click(rate: int = 16_000, channels: int = 1, height: int = 32, width: int = 32) -> Clip:
    """Grey and silence but for one white frame and, at the same time, one click of 2 ms."""
    video = np.full((FRAMES, height, width, 3), 60, np.uint8)
    video[EVENT] = 255
    audio = np.zeros((channels, int(FRAMES / FPS * rate)), np.float32)
    start = round(EVENT / FPS * rate)
    audio[:, start : start + rate // 500] = 0.9
    return Clip(video, FPS, audio, rate)


@pytest.mark.parametrize(
    ("rate", "channels", "height", "width"),
    [(16_000, 1, 32, 32), (48_000, 2, 33, 47), (44_100, 1, 90, 61), (24_000, 2, 32, 32)],
)
def test_a_click_and_a_flash_stay_together(tmp_path: Path, rate: int, channels: int, height: int, width: int) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(flash_and_click(rate, channels, height, width), RunFolder(tmp_path), path.name, min_side=64)
    clip = read_mp4(path)
    flash = int(clip.video_FHWC.mean(axis=(1, 2, 3)).argmax()) / clip.fps
    assert flash == pytest.approx(EVENT / FPS, abs=1e-6)
    for channel in clip.audio_CS:
        click = int(np.argmax(np.abs(channel) > 0.3)) / clip.sample_rate
        assert click - flash == pytest.approx(0.0, abs=0.002)  # AAC's priming alone would be 0.021
    assert clip.audio_CS.shape[0] == channels
    assert clip.audio_CS.shape[1] / clip.sample_rate == pytest.approx(FRAMES / FPS, abs=0.03)
    assert clip.sample_rate == (44_100 if rate == 44_100 else 48_000)


def test_small_pictures_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(40, 216, (3, 8, 10, 1), np.uint8).repeat(3, axis=3)
    write_mp4(Clip(small, 5.0, np.zeros((1, 9600), np.float32), 16_000), RunFolder(tmp_path), "clip.mp4", min_side=60)
    shown = read_mp4(tmp_path / "clip.mp4")
    assert shown.video_FHWC.shape == (3, 64, 80, 3)
    middles = shown.video_FHWC[:, 4::8, 4::8].astype(int)
    assert np.abs(middles - small).max() <= 6


def test_a_large_picture_keeps_its_size_but_for_the_odd_side(tmp_path: Path) -> None:
    write_mp4(flash_and_click(height=65, width=70), RunFolder(tmp_path), "clip.mp4", min_side=64)
    assert read_mp4(tmp_path / "clip.mp4").video_FHWC.shape == (FRAMES, 66, 70, 3)


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([[235, 36, 31], [31, 204, 51], [36, 66, 240], [240, 219, 26]], np.uint8)
    video = np.broadcast_to(colours[:, None, None], (4, 16, 16, 3)).copy()
    write_mp4(Clip(video, 4.0, np.zeros((1, 16_000), np.float32), 16_000), RunFolder(tmp_path), "clip.mp4", min_side=64)
    seen = read_mp4(tmp_path / "clip.mp4").video_FHWC.mean(axis=(1, 2))
    assert np.abs(seen - colours).max() < 8


def test_the_index_comes_first_and_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(flash_and_click(), RunFolder(tmp_path), name, min_side=64)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert content == (tmp_path / "b.mp4").read_bytes()


def test_a_clip_without_sound_is_a_file_without_sound(tmp_path: Path) -> None:
    clip = Clip(flash_and_click().video_FHWC, FPS, np.zeros((1, 0), np.float32), 16_000)
    write_mp4(clip, RunFolder(tmp_path), "clip.mp4", min_side=64)
    assert read_mp4(tmp_path / "clip.mp4").audio_CS.shape == (1, 0)


def bad_clips() -> dict[str, Clip]:
    good = flash_and_click()
    video, audio = good.video_FHWC, good.audio_CS
    return {
        "float32": Clip(video.astype(np.float32), FPS, audio, 16_000),
        "[0, 32, 32, 3]": Clip(video[:0], FPS, audio, 16_000),
        "[25, 32, 32]": Clip(video[..., 0], FPS, audio, 16_000),
        "[3, 33333]": Clip(video, FPS, np.zeros((3, 33_333), np.float32), 16_000),
        "NaN": Clip(video, FPS, np.full_like(audio, np.nan), 16_000),
        "fps 0": Clip(video, 0.0, audio, 16_000),
        "sample_rate 0": Clip(video, FPS, audio, 0),
    }


@pytest.mark.parametrize("wrong", list(bad_clips()))
def test_what_is_no_clip_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an earlier file")
    with pytest.raises(MediaError) as caught:
        write_mp4(bad_clips()[wrong], RunFolder(tmp_path), path.name)
    assert wrong in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"an earlier file"


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an earlier file")

    def full(clip: Clip, video: np.ndarray, target: Path) -> None:
        target.write_bytes(b"half a f")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accord.media._encode", full)
    with pytest.raises(MediaError, match="No space left on device"):
        write_mp4(flash_and_click(), RunFolder(tmp_path), path.name)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an earlier file"]


def test_files_that_are_no_clip_are_refused(tmp_path: Path) -> None:
    write_mp4(flash_and_click(), RunFolder(tmp_path), "whole.mp4", min_side=64)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:600])
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "playlist.mkv").write_text("#EXTM3U\nwhole.mp4\n")
    (tmp_path / "whole.mkv").write_bytes((tmp_path / "whole.mp4").read_bytes())
    for name in ("torn.mp4", "text.mp4", "missing.mp4", "playlist.mkv", "whole.mkv"):
        with pytest.raises(MediaError, match=name):
            read_mp4(tmp_path / name)


def picture_file(path: Path, ticks: list[int], *, encoder: str = "libx264", sound: bool = False) -> None:
    """A picture that is as bright as ten times the number of its frame, shown from these twelfths of a second on."""
    with av.open(str(path), "w", format=CONTAINERS[path.suffix.lower()]) as container:
        picture = container.add_stream(encoder, rate=12)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("libopus" if encoder != "libx264" else "aac", rate=48_000) if sound else None
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * (index + 1), np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 12)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if voice is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 48_000), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux(voice.encode(frame))
            container.mux(voice.encode(None))


@pytest.mark.parametrize("name", ["clip.MP4", "clip.m4v", "clip.mov", "clip.mkv", "clip.webm"])
def test_each_container_that_is_named_is_read(name: str, tmp_path: Path) -> None:
    encoder = "libvpx-vp9" if name.endswith("webm") else "libx264"
    picture_file(tmp_path / name, list(range(12)), encoder=encoder, sound=True)
    clip = read_mp4(tmp_path / name)
    assert clip.video_FHWC.shape == (12, 48, 64, 3) and clip.fps == pytest.approx(12.0, rel=1e-3)
    assert clip.audio_CS.shape[0] == 2 and abs(clip.audio_CS.shape[1] - 48_000) < 4096 and clip.sample_rate == 48_000


def test_uneven_frames_are_seen_at_their_times(tmp_path: Path) -> None:
    """Of 12 frames the first four are shown for half a second each, the others for a twelfth."""
    picture_file(tmp_path / "uneven.mp4", [0, 6, 12, 18, *range(24, 32)])
    clip = read_mp4(tmp_path / "uneven.mp4")
    assert clip.fps == pytest.approx(12 * 11 / 31, rel=1e-3) and len(clip.video_FHWC) == 12
    shown = np.rint(clip.video_FHWC.mean(axis=(1, 2, 3)) / 10)
    assert shown.tolist() == [1, 1, 1, 2, 2, 3, 3, 4, 4, 6, 9, 12]


def test_a_file_of_sound_alone_is_told(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w", format="mp4") as container:
        voice = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4800), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    with pytest.raises(MediaError, match=r"song\.mp4 has no video stream; a clip has a picture"):
        read_mp4(tmp_path / "song.mp4")
