"""The report is one page that shows everything, asks for nothing, and survives what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from accord.config.job import JobSpec
from accord.errors import UserError
from accord.run_folder import SUMMARY, RunFolder
from accord.types import Clip
from services.results import report
from services.results.report import duration, number, signed, write_report
from services.results.report_charts import COLOURS
from services.results.report_clips import strip_image
from services.results.summary import build_summary

LOADING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}
VOID = {"meta", "img", "link", "br", "hr", "input", "source"}


class Page(HTMLParser):
    """Collects tags and sources, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action", "data"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def conclude(run_dir: Path, **changes: object) -> str:
    job = JobSpec.parse((run_dir / "spec.json").read_bytes())
    values = {"job_id": run_dir.name, "state": "succeeded", "wall_seconds": 331.4} | changes
    folder = RunFolder(run_dir)
    folder.write_whole(SUMMARY, build_summary(folder, job, **values))  # type: ignore[arg-type]
    return written(run_dir)


def written(run_dir: Path) -> str:
    write_report(RunFolder(run_dir))
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(finished_run: Path) -> str:
    return conclude(finished_run)


def test_nothing_is_loaded_and_nothing_runs(text: str) -> None:
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.sources
    assert all(source.startswith(("data:video/mp4;base64,", "data:image/webp;base64,", "#")) for source in page.sources)
    assert "default-src 'none'" in text and "url(http" not in text and "@import" not in text


def test_all_parts_are_there_and_small(text: str) -> None:
    page = Page(text)
    assert page.tags.count("video") == page.tags.count("img") == 6
    assert len(text) < 600_000  # about 90 kB a pair
    for name in (
        "sound",
        "sync_gap",
        "a red ball bouncing with a drum sound",
        "Gradient norm",
        "Time per step",
    ):
        assert name in text
    assert "4 of 4 trained rewards rose" in text
    assert "Worse: audio_diversity (−4.5 standard errors, not trained on)." in text
    assert re.search(r"<b>1 / 12</b><span>of all metrics worse</span>", text)
    assert "0.480" in text and "0.800" in text and "+8.0" in text
    assert "off (scale 1, conditional passes only); the same in training and in both evaluations" in text
    assert "LoRA of rank 16, alpha 32" in text and "2 learner rank(s), deepspeed ZeRO 2, policy lag 0" in text
    assert "omninft, preset accord, routed credit, gradient surgery on, region weights on" in text


def test_charts_are_well_formed_and_take_their_colours_from_the_page(text: str) -> None:
    charts = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(charts) == 5 + 5
    for chart in charts:
        svg = chart[chart.index("<svg") : chart.index("</svg>") + 6]
        ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert not any(placeholder in svg for placeholder in COLOURS.values())
        assert "var(--soft)" in svg and "<style" not in svg
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_what_users_wrote_is_text(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=1, pairs=1)
    evil = "<script>alert(1)</script>"
    held_out = run_dir.with_name("held_out.jsonl")
    held_out.write_text(held_out.read_text().replace("a red ball bouncing with a drum sound", evil))
    text = conclude(run_dir, state="failed", reason=evil)
    assert evil not in text
    assert text.count("&lt;script&gt;alert(1)") >= 2


def test_a_failed_job_says_so(new_run: Callable[..., Path]) -> None:
    text = conclude(new_run(steps=4, pairs=1, after=False), state="failed", reason="rollout: group 3 gave up")
    assert "This job did not come to its end" in text
    assert "rollout: group 3 gave up" in text
    assert "no clip was kept" in text
    assert "not compared" in text
    Page(text)


def test_a_folder_without_summary_is_shown_as_unfinished(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=0, pairs=0, after=False)
    for path in ("metrics.jsonl", "evaluation/step-000000.json", "adapter/pytorch_lora_weights.safetensors"):
        (run_dir / path).unlink()
    text = written(run_dir)
    assert "unfinished" in text and "No step was completed." in text and "No clips were kept." in text
    assert "No adapter was written." in text


def test_one_step_has_curves(new_run: Callable[..., Path]) -> None:
    Page(conclude(new_run(steps=1, pairs=0)))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, new_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(RunFolder(tmp_path))
    run_dir = new_run(steps=1, pairs=0)
    (run_dir / "summary.json").write_text('{"job_id": 3}')
    with pytest.raises(UserError, match=r"summary\.json is not a summary: /job_id"):
        write_report(RunFolder(run_dir))


def test_clips_that_cannot_be_shown_leave_a_word(new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = new_run(steps=1, pairs=3)
    next((run_dir / "clips").glob("red-bouncing-*-base.mp4")).write_bytes(b"torn")
    conclude(run_dir)
    document = json.loads((run_dir / "summary.json").read_text())
    document["clips"][2]["base"] = "../../outside.mp4"
    (run_dir / "summary.json").write_text(json.dumps(document))
    text = written(run_dir)
    assert "base.mp4 is missing, torn or no MP4" in text and "lies outside the run folder" in text
    assert text.count("<video") == 4
    monkeypatch.setattr(report, "EMBED_LIMIT_BYTES", 40_000)
    text = written(run_dir)
    assert text.count("<video") == 1 and "left out to keep this page small" in text


def test_the_strip_puts_sound_below_what_is_seen() -> None:
    from io import BytesIO

    from PIL import Image

    video = np.full((25, 32, 32, 3), 60, np.uint8)
    video[10] = 255
    audio = np.zeros((1, 33_333), np.float32)
    start = round(10 / 12 * 16_000)
    audio[:, start : start + 800] = np.sin(np.arange(800) * 0.4)
    picture = np.asarray(Image.open(BytesIO(strip_image(Clip(video, 12.0, audio, 16_000)))).convert("RGB")).astype(int)
    assert picture.shape[1] == 800
    film, wave = picture[:30], picture[70:100]
    seen = np.flatnonzero(film.min(axis=(0, 2)) > 200)
    heard = np.flatnonzero((wave[..., 0] > 180).sum(axis=0) > 10)
    assert seen[0] == pytest.approx(320, abs=4) and heard[0] == pytest.approx(320, abs=4)
    assert len(strip_image(Clip(video, 12.0, np.zeros((1, 0), np.float32), 16_000))) > 100


def test_numbers_read_well() -> None:
    assert [number(value) for value in (None, float("nan"), 0.0, 0.4123, -2.5, 118.04, 12345.6, 0.00004)] == [
        "–", "–", "0.000", "0.412", "−2.500", "118.0", "12\u202f346", "4e−05",
    ]  # fmt: skip
    assert [signed(value, 1) for value in (2.0, -1.0, float("inf"), None)] == ["+2.0", "−1.0", "+∞", "–"]
    assert [duration(value) for value in (4.25, 331.4, 7260.0)] == ["4.2 s", "5 min 31 s", "2 h 01 min"]


def test_departures_and_the_surgery_that_was_measured_are_told(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=2, pairs=0)
    tree = json.loads((run_dir / "spec.json").read_text())
    runs = [{"start": 0.0, "stop": 0.25, "keep": 0.0}, {"start": 0.25, "stop": 0.5, "keep": 0.1}]
    tree["algorithm"] |= {"preset": "published", "surgery": {"schedule": runs}}
    (run_dir / "spec.json").write_text(json.dumps(tree))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for block, norm in enumerate((0.0, 0.3, 4.0, 0.0)):
        lines[0]["metrics"][f"gradient/audio_from_video/{block:02d}"] = norm
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = conclude(run_dir)
    # Unscaled, the edges would have brought (?, 3, 4, 0), a norm of 5; sqrt(0.3^2 + 4^2) = 4.011 came.
    assert "block 0 keeps 0 %, block 1 keeps 10 %, blocks 2-3 keep 100 % of what video sends into the sound" in text
    assert "in step 1 80.2 % of its norm came through at the blocks that keep any" in text
    assert "/sampling/num_steps: 8, and preset &#39;published&#39; has 20" in text


def test_a_reward_that_drifted_is_told_with_its_steps(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=4, pairs=0)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line, degraded, distance in zip(lines, (0.0, 1.0, 1.0, 0.0), (0.0, 0.25, 1.5, 0.0), strict=True):
        line["metrics"] |= {"canary/sync/degraded": degraded, "canary/sync/distance": distance}
        line["metrics"] |= {"canary/clap/degraded": 0.0, "canary/clap/distance": 0.01}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = conclude(run_dir)
    assert "Reward sync drifted: in 2 steps from step 2 to 3 it judged a canary up to 1.5 standard deviations" in text
    assert "clap drifted" not in text
