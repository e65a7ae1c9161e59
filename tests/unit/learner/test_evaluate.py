"""Held-out evaluation: summaries, the shuffled control, what is written, and that it is reproducible."""

import json
import math

import numpy as np
import pytest

from accord.backbones.base import Conditions
from accord.config.job import JobSpec
from accord.run_folder import RunFolder
from accord.seeds import derive_seed
from accord.types import Clip, GroupData, Prompt, RewardScores, SampleGroup, ScoredGroup
from accord.world import latent_distance
from learner.evaluate import Evaluator, partner
from learner.uncertainty import bootstrapped, clustered, compared, differences

PROMPTS = [Prompt(f"p/{i}", f"av{i}", "v", "a") for i in range(4)]
SAMPLES = 3


def job(path: str = "/nowhere") -> JobSpec:
    tree = {
        "steps": 4,
        "backbone": {"name": "ltx2", "path": path},
        "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 2},
        "rewards": [{"name": "sync"}, {"name": "text_video"}],
        "algorithm": {"name": "omninft"},
        "evaluate": {"samples_per_prompt": SAMPLES, "clips": 5},
        "cluster": {"learner_ranks": 1},
    }
    return JobSpec.model_validate_json(json.dumps(tree))


class Source:
    """Sync is 1 when sound and picture carry the same number, else 0.25; sample 0 of prompt 0 is invalid."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset, self.rescored = offset, 0

    def evaluate(self, requests, rewards):
        return [self._group(request) for request in requests]

    def _group(self, request):
        clips = []
        for g in range(SAMPLES):
            number = request.prompt_index * SAMPLES + g
            clips.append(
                Clip(np.full((5, 32, 32, 3), number, np.uint8), 12.0, np.full((1, 400), number, np.float32), 16000)
            )
        latents = {
            m: np.stack([np.random.default_rng(seed).standard_normal((4, 8), np.float32) for seed in request.seeds])
            for m in ("video", "audio")
        }
        scores = {
            "sync": self._sync(clips, request.prompt_index == 0),
            "text_video": RewardScores(
                "text_video", "1", tuple(self.offset + g for g in range(SAMPLES)), ("ok",) * SAMPLES
            ),
        }
        return ScoredGroup(
            SampleGroup(request, request.policy_version, GroupData(latents, Conditions({})), clips), scores
        )

    def _sync(self, clips, first: bool):
        values = [1.0 if clip.video_FHWC.flat[0] == clip.audio_CS.flat[0] else 0.25 for clip in clips]
        valid = [not (first and g == 0) for g in range(SAMPLES)]
        return RewardScores(
            "sync", "1", tuple(v if ok else math.nan for v, ok in zip(values, valid, strict=True)),
            tuple("ok" if ok else "timeout" for ok in valid), components={"offset_s": (-0.02, math.nan, 0.04)},
        )  # fmt: skip

    def rescore(self, prompt, clips, rewards):
        self.rescored += len(clips)
        return {"sync": self._sync(clips, False)}

    def fetch(self, handle):
        return handle


def evaluator(directory, source=None, spec=None):
    return Evaluator(spec or job(), RunFolder(directory), source or Source(), PROMPTS, lambda event: None)


def test_summaries_and_shuffled_control(tmp_path):
    source = Source()
    event = evaluator(tmp_path, source).evaluate(0)
    assert event.rewards["sync"].mean == 1.0
    assert event.rewards["sync"].n == 11
    assert event.rewards["text_video"].mean == 1.0
    assert source.rescored == 12
    assert event.held_out["sync_shuffled"].mean == 0.25
    assert event.held_out["sync_gap"].mean == 0.75
    assert event.held_out["sync_gap"].n == 11  # only where both sides are valid
    assert event.held_out["sync_gap"].sem == 0.0
    assert event.held_out["sync_offset_ms_median"].mean == pytest.approx(30.0)


def test_file_holds_every_sample_and_the_paired_change(tmp_path):
    evaluator(tmp_path).evaluate(0)
    evaluator(tmp_path, Source(offset=0.5)).evaluate(4)
    body = json.loads((tmp_path / "evaluation" / "step-000004.json").read_text())
    assert len(body["samples"]) == 12
    assert body["samples"][0]["scores"] == {"sync": None, "text_video": 0.5, "sync_shuffled": 0.25, "sync_gap": None}
    assert body["samples"][0]["reasons"]["sync"] == "timeout"
    assert body["change"]["text_video"] == {"mean": 0.5, "sem": 0.0, "n": 12, "low": 0.5, "high": 0.5}
    assert body["change"]["sync_gap"]["n"] == 11


def test_clips_of_base_and_tuned_have_the_same_prompts_and_seeds(tmp_path):
    for step in (0, 2, 4):
        evaluator(tmp_path).evaluate(step)
    names = sorted(path.name for path in (tmp_path / "clips").glob("*.mp4"))
    assert len(names) == 10
    seeds = [derive_seed(0, "evaluate", p, g) for p, g in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0))]
    assert {name.split("-")[2] for name in names} == {str(seed) for seed in seeds}
    assert all((name.replace("-base", "-tuned")) in names for name in names)
    assert names[0].startswith("prompt-00000-")


def test_same_job_same_numbers_and_a_cut_drops_what_is_later(tmp_path):
    one, two = evaluator(tmp_path / "a"), evaluator(tmp_path / "b")
    assert one.evaluate(2).model_dump(exclude={"at"}) == two.evaluate(2).model_dump(exclude={"at"})
    assert one.done(2)
    one.folder.cut(2)
    assert one.done(2)
    one.folder.cut(1)
    assert not one.done(2)


def test_distance_and_diversity_for_the_builtin_world(tmp_path, monkeypatch):
    import torch

    clean = {m: latent_distance.fit_statistics(torch.randn(64, 4, 8)) for m in ("video", "audio")}
    monkeypatch.setattr(latent_distance, "load_clean_world", lambda: clean)
    event = evaluator(tmp_path, spec=job("builtin:tiny-ltx2")).evaluate(1)
    for name in ("video_distance", "audio_distance", "video_diversity", "audio_diversity"):
        assert event.held_out[name].mean > 0
        assert event.held_out[name].sem > 0
    assert not {"video_distance"} & set(evaluator(tmp_path / "other").evaluate(1).held_out)


def test_partner_never_keeps_a_clip_its_own_sound_and_uses_every_sound_once():
    for prompts, samples in ((5, 3), (2, 2), (1, 4)):
        pairs = {(p, g): partner(7, p, g, prompts, samples) for p in range(prompts) for g in range(samples)}
        assert sorted(pairs.values()) == sorted(pairs)
        assert all(mine != other for mine, other in pairs.items())
        assert prompts == 1 or all(mine[0] != other[0] for mine, other in pairs.items())


def test_clustered_standard_error():
    rng = np.random.default_rng(0)
    means = []
    for _ in range(400):
        prompts = rng.normal(0, 1, 12)
        means.append(clustered([[float(p + e) for e in rng.normal(0, 0.1, 8)] for p in prompts]))
    spread = np.std([summary.mean for summary in means])
    assert np.mean([summary.sem for summary in means]) == pytest.approx(spread, rel=0.1)
    assert clustered([[1.0, 3.0]]).sem == pytest.approx(1.0)  # one prompt: std / sqrt(n)
    assert clustered([[None, None], []]).model_dump() == {"mean": None, "sem": None, "n": 0}
    assert clustered([[2.0]]).sem is None


def test_bootstrap_agrees_with_the_closed_form_and_repeats():
    rng = np.random.default_rng(1)
    rows = [[float(v) for v in rng.normal(0, 1, 4)] for _ in range(40)]
    found = bootstrapped(lambda indices: float(np.mean([rows[i] for i in indices])), len(rows), 3, "x")
    assert found.sem == pytest.approx(clustered(rows).sem, rel=0.2)
    assert found == bootstrapped(lambda indices: float(np.mean([rows[i] for i in indices])), len(rows), 3, "x")
    assert bootstrapped(lambda indices: None, 5, 0).mean is None


def test_differences_need_both_sides():
    assert differences([[1.0, None], [2.0, 5.0]], [[0.5, 1.0], [None, 1.0]]) == [[0.5, None], [None, 4.0]]


class TestIntervals:
    """By enumeration: of P prompts, of which one differs by 1 and the others by 0, a draw's mean is k / P with k
    binomial (P, 1 / P)."""

    def test_two_prompts(self):
        # k = 0, 1, 2 with 1/4, 1/2, 1/4: the outer 2.5 % lie at 0 and at 1.
        found = compared([[1.0], [3.0]], [[1.0], [2.0]], 0)
        assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)

    def test_four_prompts(self):
        # P(k >= 3) = 13/256 = 5.1 %, P(k = 4) = 0.4 %: the upper end is 3/4; P(k = 0) = 32 %: the lower is 0.
        found = compared([[0.0], [0.0], [0.0], [1.0]], [[0.0]] * 4, 0)
        assert (found.mean, found.low, found.high) == (0.25, 0.0, 0.75)

    def test_a_prompt_comes_with_all_its_samples(self):
        # Draws of (2 samples of 3, 1 of 0): mean 0, 2 or 3. Samples drawn alone would reach 1 as well.
        found = compared([[3.0, 3.0], [0.0, None]], [[0.0, 0.0], [0.0, 5.0]], 0)
        assert (found.mean, found.n, found.low, found.high) == (2.0, 3, 0.0, 3.0)

    def test_pairing_takes_out_what_both_sides_share(self):
        before = [[float(10 * prompt)] for prompt in range(20)]
        found = compared([[value + 0.5] for (value,) in before], before, 0)
        assert (found.low, found.high) == (0.5, 0.5)

    def test_many_prompts_are_near_the_normal_interval(self):
        values = np.random.default_rng(3).normal(0.2, 1.0, 400)
        found = compared([[value] for value in values], [[0.0]] * 400, 0)
        half = 1.96 * values.std(ddof=1) / math.sqrt(400)
        assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)

    def test_one_prompt_has_none_and_the_same_job_the_same(self):
        alone = compared([[1.0, 2.0]], [[0.0, 0.0]], 0)
        assert (alone.mean, alone.low, alone.high) == (1.5, None, None)
        rows = np.random.default_rng(1).normal(size=(7, 3)).tolist()
        zero = [[0.0] * 3] * 7
        assert compared(rows, zero, 1, "sync") == compared(rows, zero, 1, "sync") != compared(rows, zero, 2, "sync")
