"""`accord rewards score | check | contract`: files in, tables and JSON out, wrong input told in a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from accord.canary import canaries
from accord.config.contract import Component, RewardSpec
from accord.config.paths import InputPath
from accord.media import read_mp4, write_mp4
from accord.plugins import names, registered
from accord.run_folder import RunFolder
from accord.types import Modality, Route
from reward_servers.base import Curve, RewardModel, Score
from services.cli.commands import app
from tests.unit.reward_servers.loud import LoudReward, loud_server


class GlowReward(RewardSpec):
    """Mean brightness, times a factor."""

    impl: ClassVar[str] = f"{__name__}:Glow"
    about: ClassVar[str] = "the picture is bright"
    version: ClassVar[str] = "3"
    range: ClassVar[tuple[float, float]] = (0.0, 1000.0)
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    components: ClassVar[Mapping[str, Component]] = {"mean": Component("mean level", "/255", 0.0, 255.0)}
    name: Literal["glow"] = "glow"
    route: Route = "video"
    factor: float = 1.0


class WeightedReward(GlowReward):
    """The same from a file."""

    impl: ClassVar[str] = f"{__name__}:Weighted"
    licence: ClassVar[str] = "CC-BY-NC-4.0"
    noncommercial: ClassVar[bool] = True
    name: Literal["weighted"] = "weighted"
    path: Annotated[str, InputPath("file")]


class Glow(RewardModel):
    """Brightness over time is its curve."""

    def score_clip(self, prompt, clip):
        level = float(clip.video_FHWC.mean(dtype=np.float64))
        return Score(level * self.spec.factor + len(prompt.prompt_v) * 0, {"mean": level})

    def curves(self, prompt, clip):
        times = np.arange(len(clip.video_FHWC)) / clip.fps
        return [Curve("brightness", times, clip.video_FHWC.mean(axis=(1, 2, 3)), "/255")]


class Weighted(Glow):
    """Reads its factor, and holds 64 MiB."""

    weights_digest = "ab" * 32

    def __init__(self, spec):
        super().__init__(spec)
        self.held = np.ones(8 * 2**20)
        with open(spec.path) as file:  # noqa: PTH123
            self.factor = float(file.read())


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(registered("rewards"), "glow", GlowReward)
    monkeypatch.setitem(registered("rewards"), "weighted", WeightedReward)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips, and a file that is none."""
    place = tmp_path_factory.mktemp("clips")
    for canary in canaries(GlowReward())[:2]:
        write_mp4(canary.clip, RunFolder(place), f"{canary.name}.mp4", min_side=64)
    (place / "notes.txt").write_text("no clip")
    (place / "later.mp4").mkdir()
    return place


def run(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["rewards", *map(str, words)])
    assert result.exit_code == status, result.output
    return result.output


def test_files_and_folders_are_scored_and_the_rest_of_a_folder_is_left(folder):
    rows = json.loads(run("score", folder, folder / "late.mp4", "--reward", "glow", "--reward", "sync", "--json"))
    assert [row["file"].rsplit("/")[-1] for row in rows] == ["in_step.mp4", "late.mp4", "late.mp4"]
    first = read_mp4(folder / "in_step.mp4")
    glow, sync = rows[0]["scores"]
    assert glow["value"] == pytest.approx(np.average(first.video_FHWC), rel=1e-12)
    assert (glow["reward"], glow["version"], glow["reason"], sync["reward"]) == ("glow", "3", "ok", "sync")
    assert rows[0]["frames"] == list(first.video_FHWC.shape[:3]) and rows[0]["samples"] == list(first.audio_CS.shape)


def test_a_score_is_shown_with_its_components_and_units(folder):
    shown = run("score", folder / "late.mp4", "--reward", "glow", "--set", "glow.factor=2")
    level = np.average(read_mp4(folder / "late.mp4").video_FHWC)
    assert f"{2 * level:.4f}" in shown and f"mean {level:.4g} /255" in shown and "48 frames of 64x96" in shown


def test_what_is_tried_by_default_needs_no_weights(folder):
    rows = json.loads(run("score", folder / "late.mp4", "--prompt", "a red ball", "--json"))
    asked = {row["reward"] for row in rows[0]["scores"]}
    assert {"glow", "sync"} <= asked and not {"weighted", "clap", "hpsv3"} & asked and asked <= set(names("rewards"))


def test_a_prompt_may_differ_for_eye_and_ear(folder):
    alike = run("score", folder / "late.mp4", "--reward", "text_video", "--prompt", "a red ball", "--json")
    apart = run("score", folder / "late.mp4", "--reward", "text_video", "--prompt", "a red ball",
                "--prompt-video", "nothing known", "--json")  # fmt: skip
    assert json.loads(alike)[0]["scores"][0]["valid"] and not json.loads(apart)[0]["scores"][0]["valid"]


def test_the_curves_are_drawn_one_picture_a_clip(folder, tmp_path):
    run("score", folder / "late.mp4", "--reward", "glow", "--plot", tmp_path / "late.png")
    run("score", folder, "--reward", "glow", "--plot", tmp_path / "all")
    pictures = [tmp_path / "late.png", tmp_path / "all" / "in_step.png", tmp_path / "all" / "late.png"]
    assert all(np.asarray(Image.open(picture).convert("L")).std() > 5 for picture in pictures)


def test_a_reward_behind_a_url_is_tried_like_any_other(folder):
    """What its card says is told where the job's is another."""
    card = 'remote:loud.card={version="%s", weights_digest="%s", needs=["video", "audio"], prompt_anchored=true}'
    with loud_server(LoudReward()) as server:
        where = [f"remote:loud.url={server.url}", "remote:loud.reward=loud", "remote:loud.route=both"]
        words = [word for fields in [*where, card % ("7", "ab" * 32)] for word in ("--set", fields)]
        (row,) = json.loads(run("score", folder / "late.mp4", "--reward", "remote:loud", *words, "--json"))[0]["scores"]
        assert (row["reward"], row["version"], row["valid"]) == ("remote:loud", "7", True)
        words = [word.removeprefix("remote:loud.") for word in words]
        found = json.loads(run("check", "remote:loud", *words, "--json"))
        assert found["weights_digest"] == "ab" * 32 and len(found["canaries"]) == 8
        assert "remote:loud, version 7" in run("check", "remote:loud", *words)
        told = run("check", "remote:loud", *words[:-2], "--set", "card={version='6', needs=['video']}", status=2)
        assert f"says version '7', and the job's card '6'; weights_digest '{'ab' * 32}'," in " ".join(told.split())
        assert "/name: String should match" in run("check", "remote", *words, status=2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["score", "{}/late.mp4", "--reward", "nosuch"], "unknown reward 'nosuch'; known: "),
        (["score", "{}/none.mp4", "--reward", "glow"], "none.mp4: [Errno 2]"),
        (["score", "{}/notes.txt", "--reward", "glow"], "notes.txt"),
        (["score", "{}/later.mp4", "--reward", "glow"], "later.mp4 holds no clip"),
        (["score", "{}/..", "--reward", "glow"], "holds no clip; one ends in .mp4, .m4v"),
        (["score", "{}/late.mp4", "--reward", "glow", "--set", "factor=2"], "begin with one of the rewards"),
        (["score", "{}/late.mp4", "--reward", "glow", "--set", "glow.factor=much"], "/factor: "),
        (["score", "{}/late.mp4", "--reward", "glow", "--plot", "{}/x.nokind"], "name a file that can be written"),
        (["score", "{}/late.mp4", "--reward", "clap", "--plot", "{}/x.png"], "there is no curve"),
        (["score", "{}", "--reward", "glow", "--plot", "{}/x.png"], "name a folder for a picture of each"),
        (["check", "glow", "--weights", "{}/notes.txt"], "glow has no weights"),
        (["check", "weighted"], "/path: "),
        (["contract", "nosuch"], "unknown reward 'nosuch'"),
    ],
)
def test_wrong_input_is_told_with_its_remedy(words, told, folder):
    assert told in run(*(word.format(folder) for word in words), status=2).replace("\n", " ")


def test_a_check_tells_weights_terms_memory_time_and_the_canaries(tmp_path):
    (tmp_path / "weights").write_text("0.5")
    found = json.loads(run("check", "weighted", "--weights", tmp_path / "weights", "--json"))
    assert (found["weights_digest"], found["licence"], found["noncommercial"]) == ("ab" * 32, "CC-BY-NC-4.0", True)
    assert 60 < found["weights_mib"] <= found["peak_mib"] + 1 and 0 < found["seconds_per_clip"] < 60
    levels = [float(canary.clip.video_FHWC.mean(dtype=np.float64)) for canary in canaries(WeightedReward(path="x"))]
    assert [row["value"] for row in found["canaries"]] == levels
    shown = run("check", "weighted", "--weights", tmp_path / "weights")
    assert "sha256:" + "ab" * 32 in shown and "CC-BY-NC-4.0, non-commercial" in shown


def test_a_check_is_held_against_an_earlier_one(tmp_path):
    first = tmp_path / "first.json"
    run("check", "glow", "--out", first)
    assert "glow is what it was" in run("check", "glow", "--against", first)
    shown = run("check", "glow", "--set", "factor=1.2", "--against", first, status=1)
    assert "glow has drifted" in shown and "distance" in shown
    found = json.loads(run("check", "glow", "--set", "factor=1.2", "--against", first, "--json", status=1))
    first_of, values = [row["first"] for row in found["canaries"]], [row["value"] for row in found["canaries"]]
    spread = max(float(np.std(first_of)), GlowReward.smallest_effect)
    assert values == pytest.approx([1.2 * value for value in first_of])
    expected = [0.2 * value / spread for value in first_of]
    assert [row["distance"] for row in found["canaries"]] == pytest.approx(expected)
    run("check", "glow", "--set", "factor=1.2", "--against", first, "--tolerance", str(max(expected) * 1.01))


def test_a_reward_without_scores_is_not_what_it_was(tmp_path):
    run("check", "glow", "--out", tmp_path / "first.json")
    shown = run("check", "glow", "--set", "factor=1e9", "--against", tmp_path / "first.json", status=2)
    assert "no canary has a score both there and now (now: out_of_range)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory; name canaries.json of a run folder"),
        ("[]", "it holds no canary scores (1 problems); name canaries.json"),
        ("{}", "it has no scores of glow; it has nothing"),
        (
            '{"glow": {"version": "1", "clips": "ab", "values": {}, "reasons": {}}}',
            "its canaries are other clips than those of this release; write it anew",
        ),
    ],
)
def test_a_file_that_a_check_cannot_be_held_against_is_told(content, told, tmp_path):
    if content is not None:
        (tmp_path / "first.json").write_text(content)
    shown = run("check", "glow", "--against", tmp_path / "first.json", status=2)
    assert told in " ".join(shown.split())


def test_the_contract_is_kept_or_broken_by_exit_status():
    assert "glow keeps all" in run("contract", "glow")
    shown = run("contract", "glow", "--set", "factor=20", status=1)
    assert "BROKEN" in shown and "glow breaks" in shown and "out_of_range" in shown
