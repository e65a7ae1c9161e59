"""Bands, the alarm and the controls, on numbers made by hand."""

import math

import numpy as np
import pytest

from accord.clip_features import features
from accord.config.guards import FEATURES
from accord.config.job import JobSpec
from accord.errors import SpecError
from accord.events import StepCompleted
from accord.types import Clip, Prompt, RewardScores, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.guards import Controls, Watch, feature_metrics


def job(guards=None, rewards=None) -> JobSpec:
    return JobSpec.model_validate(
        {
            "steps": 4, "backbone": {"name": "ltx2"}, "prompts": {"train": "t", "held_out": "h"},
            "rewards": rewards or ({"name": "sync", "weight": 2.0}, {"name": "dynamic_degree", "weight": 0.0}),
            "algorithm": {"name": "omninft"}, "guards": guards or {},
        }
    )  # fmt: skip


def numbers(sync: float, luma: float, dynamic: float = 0.5, std: float = 0.1) -> dict[str, float]:
    means = {"reward/sync": sync, "feature/luma": luma, "reward/dynamic_degree": dynamic}
    return {f"{name}/mean": value for name, value in means.items()} | {f"{name}/std": std for name in means}


class TestTheAlarm:
    def test_both_halves_are_needed(self):
        calm, rising, drifting = Watch(job()), Watch(job()), Watch(job())
        for watch in (calm, rising, drifting):
            watch.see(numbers(0.0, 0.5))
        for _ in range(3):
            calm.see(numbers(0.0, 0.9))  # the picture goes, and no reward with it
            rising.see(numbers(0.3, 0.6))  # rewards rise, and the picture stays within three deviations
            drifting.see(numbers(0.3, 0.81))
        assert (calm.streak, rising.streak, drifting.streak) == (0, 0, 3)
        assert drifting.raised and not rising.raised and not calm.raised

    def test_numbers_are_in_standard_deviations_of_the_first_samples(self):
        watch = Watch(job())
        watch.see(numbers(0.0, 0.5))
        verdict = watch.see(numbers(0.25, 0.1))
        assert verdict.gain == pytest.approx(2.5)
        assert verdict.outside == pytest.approx({"luma": -4.0})

    def test_the_spread_between_first_steps_widens_the_band(self):
        watch = Watch(job({"divergence": {"first_steps": 2}}))
        watch.see(numbers(0.0, 0.4))
        watch.see(numbers(0.0, 0.6))
        verdict = watch.see(numbers(0.0, 0.5 - 4 * math.sqrt(0.1**2 + 0.1**2)))
        assert verdict.outside == pytest.approx({"luma": -4.0})

    def test_a_measured_reward_that_rises_is_no_alarm_and_one_that_falls_is(self):
        watch = Watch(job())
        watch.see(numbers(0.0, 0.5))
        assert watch.see(numbers(0.3, 0.5, dynamic=0.9)).outside == {}
        assert watch.see(numbers(0.3, 0.5, dynamic=0.1)).outside == pytest.approx({"dynamic_degree": -4.0})

    def test_a_measured_reward_cannot_fall_to_nothing_within_its_band(self):
        """First 0.6 with a spread of 0.4: three deviations reach below 0, three quarters of the way reach 0.15."""
        watch = Watch(job())
        watch.see(numbers(0.0, 0.5, dynamic=0.6, std=0.4))
        assert watch.see(numbers(0.9, 0.5, dynamic=0.16, std=0.4)).outside == {}
        assert watch.see(numbers(0.9, 0.5, dynamic=0.14, std=0.4)).outside == pytest.approx(
            {"dynamic_degree": (0.14 - 0.6) / (0.75 * 0.6 / 3)}
        )

    def test_a_feature_that_never_varied_needs_its_least_spread(self):
        watch = Watch(job())
        watch.see(numbers(0.0, 0.5, std=0.0))
        assert watch.see(numbers(0.3, 0.5 + 2.9 * FEATURES["luma"], std=0.0)).outside == {}
        assert set(watch.see(numbers(0.3, 0.5 + 3.1 * FEATURES["luma"], std=0.0)).outside) == {"luma"}

    def test_one_calm_step_ends_the_streak_and_patience_is_waited_for(self):
        watch = Watch(job({"divergence": {"patience": 2}}))
        seen = []
        for luma in (0.5, 0.9, 0.5, 0.9, 0.9):
            watch.see(numbers(0.3 if luma > 0.5 else 0.0, luma))
            seen.append(watch.raised)
        assert seen == [False, False, False, False, True]

    def test_ignored_names_and_the_switch(self):
        ignoring = Watch(job({"divergence": {"ignore": ("luma",)}}))
        off = Watch(job({"divergence": {"action": "off"}}))
        for watch in (ignoring, off):
            for sync, luma in ((0.0, 0.5), (0.3, 0.9), (0.3, 0.9)):
                watch.see(numbers(sync, luma))
        assert not ignoring.raised and not off.raised

    def test_who_comes_back_has_the_bands_and_the_streak_of_who_was_there_before(self):
        lines = [numbers(0.0, 0.5), numbers(0.3, 0.9), numbers(0.3, 0.95)]
        whole = Watch(job())
        for line in lines:
            whole.see(line)
        done = [
            StepCompleted(step=index, policy_version=index, metrics=line, phase_seconds={}, samples=1)
            for index, line in enumerate(lines[:2], 1)
        ]
        resumed = Watch(job(), done)
        verdict = resumed.see(lines[2])
        assert (resumed.streak, resumed.raised) == (whole.streak, whole.raised) == (2, True)
        assert "luma by +4.5" in resumed.told(3, verdict)

    def test_a_name_that_nobody_watches_is_refused(self):
        with pytest.raises(ValueError, match="/guards/divergence/ignore/0: 'hue' is watched by nobody"):
            job({"divergence": {"ignore": ("hue",)}})


class TestFeatures:
    def clip(self, grey: int, sound: np.ndarray, channels: int = 2) -> Clip:
        return Clip(
            np.full((5, 16, 24, 3), grey, np.uint8), 8.0, np.tile(sound.astype(np.float32), (channels, 1)), 8000
        )

    def test_values_by_hand(self):
        time = np.arange(8000) / 8000
        tone, quiet = np.sin(2 * np.pi * 1000 * time), np.zeros(8000)
        found = features([self.clip(51, tone), self.clip(255, quiet)])
        assert found["luma"] == pytest.approx((0.2, 1.0))
        assert all(found[name] == pytest.approx((0.0, 0.0), abs=1e-12) for name in ("contrast", "saturation", "motion"))
        assert found["loudness_db"] == pytest.approx((10 * math.log10(0.5), -80.0), abs=1e-3)
        assert found["silent_share"] == (0.0, 1.0)
        assert found["flatness"][0] < 0.01

    def test_noise_is_flat_and_change_is_motion(self):
        rng = np.random.default_rng(0)
        noise = 0.1 * rng.standard_normal(16_000)
        clip = self.clip(0, noise)
        blinking = Clip(
            np.tile(np.array([0, 255], np.uint8)[:, None, None, None], (4, 8, 8, 3)), 8.0, clip.audio_CS, 8000
        )
        assert features([clip])["flatness"][0] > 0.8
        assert features([blinking])["motion"][0] == pytest.approx(1.0)

    def test_a_stream_that_is_not_there_is_no_number_and_nothing_is_written_into(self):
        clip = Clip(np.zeros((0, 0, 0, 3), np.uint8), 8.0, np.full((1, 400), np.nan, np.float32), 8000)
        assert all(math.isnan(values[0]) for values in features([clip]).values())
        frozen = self.clip(9, np.ones(8000))
        frozen.video_FHWC.flags.writeable = frozen.audio_CS.flags.writeable = False
        assert set(features([frozen])) == set(FEATURES)


def group(index: int, sounds: float, score: float) -> ScoredGroup:
    prompt = Prompt(f"p{index}", f"both {index}", f"seen {index}", f"heard {index}")
    request = RolloutRequest(1, index, prompt, (1, 2), 0, RolloutPlan("old", 4))
    clip = Clip(np.full((2, 8, 8, 3), index, np.uint8), 8.0, np.full((1, 100), sounds, np.float32), 8000)
    scores = {name: RewardScores(name, "1", (score, score), ("ok", "ok")) for name in ("sync", "clap")}
    return ScoredGroup(SampleGroup(request, 0, None, [clip, clip], {"luma": (0.25, 0.75)}), scores)


class Source:
    """Scores a clip by whether prompt, picture and sound belong together."""

    def fetch(self, handle):
        return handle

    def rescore(self, prompt, clips, rewards):
        (clip,) = clips
        picture, sound = int(clip.video_FHWC[0, 0, 0, 0]), round(float(clip.audio_CS[0, 0]) * 10)
        value = {"clap": float(prompt.id == f"p{sound}"), "sync": float(picture == sound)}
        return {name: RewardScores(name, "1", (value[name],), ("ok",)) for name in rewards}


def test_controls_take_the_prompt_and_the_sound_of_another_group():
    both = ({"name": "sync"}, {"name": "clap", "route": "audio"})
    told: list[tuple[str, str]] = []
    controls = Controls(job(rewards=both), Source(), lambda *said: told.append(said))
    assert controls.gaps() == {}, "nothing has begun"
    controls.begin([group(index, index / 10, 1.0) for index in range(3)])
    assert controls.gaps() == {"control/clap/prompt_gap": 1.0, "control/sync/sound_gap": 1.0}
    assert told == []
    controls.begin([group(0, 0.1, 1.0)])
    assert controls.gaps() == {}, "there is no other group"


def test_controls_whose_clips_are_gone_cost_a_step_nothing_but_their_numbers():
    class Lost(Source):
        def fetch(self, handle):
            raise ConnectionError("the object is lost")  # a library's, and none of ours

    told: list[tuple[str, str]] = []
    controls = Controls(job(), Lost(), lambda *said: told.append(said))
    controls.begin([group(0, 0.0, 1.0), group(1, 0.1, 1.0)])
    assert controls.gaps() == {}
    ((code, message),) = told
    assert code == "controls" and "the object is lost" in message


def test_feature_metrics_are_over_all_samples():
    found = feature_metrics([group(0, 0.0, 1.0), group(1, 0.0, 1.0)])
    assert (found["feature/luma/mean"], found["feature/luma/std"]) == (0.5, 0.25)
    assert found["feature/motion/mean"] is None


def test_a_branch_that_no_prompt_binds_is_refused_where_a_job_is_looked_at(tmp_path):
    from accord.config.preflight import preflight

    lines = '{"id": "%s", "prompt_av": "%s", "prompt_v": "b", "prompt_a": "c"}\n'
    for name in ("t", "h"):
        (tmp_path / name).write_text(lines % (name, name))
    prompts = {"train": str(tmp_path / "t"), "held_out": str(tmp_path / "h")}
    blind = job(rewards=({"name": "sync"}, {"name": "clap"}))
    with pytest.raises(SpecError, match=r"/rewards: what trains the video \(sync\) does not depend on the prompt"):
        preflight(blind.model_copy(update={"prompts": blind.prompts.model_copy(update=prompts)}))
    said = job({"allow_prompt_blind": True}, ({"name": "sync"}, {"name": "clap"}))
    preflight(said.model_copy(update={"prompts": said.prompts.model_copy(update=prompts)}))
