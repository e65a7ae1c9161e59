"""When canaries are scored, what is told of them, and the word that a step gets."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest

from accord.canary import canaries
from accord.config.rewards.panel import SyncReward
from accord.drift import FILE
from accord.errors import UserError
from accord.run_folder import CANARIES, RunFolder
from accord.types import RewardScores
from learner import drift
from learner.drift import FIRST_PAUSE_S, LONGEST_PAUSE_S, RewardWatch, Word
from tests.unit.learner.test_guards import job

STATE: Any = "the version trained so far"
SET = canaries(SyncReward())
"""Made once: both rewards of these jobs take clips of one size."""


class Source:
    """Gives each canary the length of its name, plus what the test adds."""

    def __init__(self) -> None:
        self.more: dict[str, float] = {}
        self.reason, self.fails, self.asked = "ok", False, []
        self.free = threading.Event()
        self.free.set()

    def rescore(self, prompt, clips, rewards):
        assert self.free.wait(10)
        if self.fails:
            raise ConnectionError("gone")
        self.asked.append((prompt.id, len(clips), tuple(rewards)))
        return {
            name: RewardScores(name, "1", (len(prompt.id) + self.more.get(name, 0.0),), (self.reason,))
            for name in rewards
        }


class Time:
    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Case:
    def __init__(self, folder, **guard: Any) -> None:
        self.source, self.time, self.told = Source(), Time(), []
        self.folder = RunFolder(folder)
        self.watch = RewardWatch(
            job({"drift": guard}), self.source, self.folder, lambda *said: self.told.append(said),
            clock=lambda: self.time.now, sleep=self.time.sleep,
        )  # fmt: skip

    def word(self, step: int) -> Word:
        return self.watch.word(step, STATE)

    def due(self, step: int) -> Word:
        """The word of a step before which an hour has passed and a comparison has ended."""
        self.time.now += 3600.0
        began = self.word(step)
        assert began is Word.GO, "nobody waits for a comparison that begins"
        self.watch._begun.exception(10)
        return self.word(step + 1)

    def codes(self) -> list[str]:
        return [code for code, _ in self.told]


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "canaries", lambda spec: SET)
    return lambda **guard: Case(tmp_path / "run", **guard)


def test_rewards_that_take_the_same_clips_are_asked_together_once_until_the_time_has_come(case):
    one = case()
    assert one.word(1) is Word.GO
    assert len(one.source.asked) == 8
    assert {(clips, rewards) for _, clips, rewards in one.source.asked} == {(1, ("sync", "dynamic_degree"))}
    assert one.watch.sound == STATE and one.told == []
    for step in range(2, 5):
        one.time.now += 1000.0
        assert one.word(step) is Word.GO
    assert len(one.source.asked) == 8
    one.time.now += 601.0
    one.word(5)
    one.watch._begun.exception(10)
    assert len(one.source.asked) == 16
    assert one.watch.metrics() == {
        f"canary/{name}/{what}": 0.0 for name in ("sync", "dynamic_degree") for what in ("distance", "degraded")
    }
    assert set(FILE.validate_json(one.folder.read(CANARIES))) == {"sync", "dynamic_degree"}


def test_an_ignored_reward_is_not_asked_and_a_name_that_is_none_is_refused(case):
    one = case(ignore=("sync",))
    one.word(1)
    assert {rewards for _, _, rewards in one.source.asked} == {("dynamic_degree",)}
    with pytest.raises(ValueError, match="/guards/drift/ignore/0: 'clap' is no reward of this job; there are sync"):
        job({"drift": {"ignore": ("clap",)}})


def test_a_step_does_not_wait_for_a_later_comparison(case):
    one = case(on_drift="stop")
    one.word(1)
    one.source.more, one.time.now = {"sync": 1.0}, 4000.0
    one.source.free.clear()
    assert one.word(2) is Word.GO and one.word(3) is Word.GO
    one.source.free.set()
    one.watch._begun.exception(10)
    assert one.word(4) is Word.STOP


def test_continue_marks_and_tells_once_and_tells_when_it_is_over(case):
    one = case()
    one.word(1)
    one.source.more = {"sync": 1.0}
    assert one.due(2) is Word.GO and one.due(4) is Word.GO
    assert one.codes() == ["reward_drifted"]
    assert one.told[0][1].startswith("step 3: reward 'sync' gave canary ")
    assert "guards/drift/tolerance allows 0.05" in one.told[0][1]
    numbers = one.watch.metrics()
    assert (numbers["canary/sync/degraded"], numbers["canary/dynamic_degree/degraded"]) == (1.0, 0.0)
    assert 0.05 < numbers["canary/sync/distance"] < 2.0
    one.source.more = {}
    one.due(6)
    assert one.codes() == ["reward_drifted", "reward_recovered"]
    assert one.watch.metrics()["canary/sync/degraded"] == 0.0


def test_stop_says_what_was_and_is_and_what_to_do(case):
    one = case(on_drift="stop")
    one.word(1)
    one.source.more = {"sync": 1.0}
    assert one.due(2) is Word.STOP
    said = one.watch.why()
    assert "reward 'sync' gave canary 'in_step' 14.0 when the job began and 15.0 now" in said
    assert "submit the job again" in said and "guards/drift/ignore" in said and "dynamic_degree" not in said


def test_pause_waits_longer_each_time_until_the_reward_is_back(case):
    one = case(on_drift="pause")
    one.word(1)
    one.source.more = {"sync": 1.0}
    assert one.due(2) is Word.WAIT
    assert [one.word(3) for _ in range(8)] == [Word.WAIT] * 8
    assert one.time.slept[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert one.time.slept[-1] == LONGEST_PAUSE_S
    assert not one.watch.waited
    one.source.more = {}
    assert one.word(3) is Word.GO and one.watch.waited
    assert one.word(4) is Word.GO and not one.watch.waited
    assert one.codes() == ["reward_drifted", "training_waits", "reward_recovered"]


def test_pause_ends_at_its_time_after_a_last_look(case):
    one = case(on_drift="pause", wait_s=12.0)
    one.word(1)
    one.source.more = {"sync": 1.0}
    words = [one.due(2)]
    while words[-1] is Word.WAIT:
        words.append(one.word(3))
    assert words[-1] is Word.STOP and one.time.slept == [5.0, 7.0]


def test_a_reward_without_scores_is_neither_drift_nor_back_and_is_told_once(case):
    one = case()
    one.word(1)
    one.source.more, one.source.reason = {"sync": math.nan}, "timeout"
    assert one.due(2) is Word.GO and one.due(4) is Word.GO
    assert one.codes() == ["canaries"] and "in_step (timeout)" in one.told[0][1]
    assert one.watch.metrics()["canary/sync/degraded"] == 0.0
    one.source.more, one.source.reason = {"sync": 1.0}, "ok"
    one.due(6)
    one.source.more, one.source.reason = {"sync": math.nan}, "timeout"
    one.due(8)
    assert one.watch.metrics()["canary/sync/degraded"] == 1.0, "it is not back"
    assert "15.0 now" in one.watch.why()


def test_a_reward_is_not_back_while_the_canary_that_moved_has_no_score(case):
    one = case(on_drift="pause")
    one.word(1)
    plain, shift = one.source.rescore, 1.0

    def moved(prompt, clips, rewards):
        by = shift if prompt == SET[0].prompt else 0.0
        found = plain(prompt, clips, rewards)
        return {name: replace(scores, values=(scores.values[0] + by,)) for name, scores in found.items()}

    one.source.rescore = moved
    assert one.due(2) is Word.WAIT
    shift = math.nan
    assert one.word(3) is Word.WAIT and "15.0 now" in one.watch.why()
    shift = 0.0
    assert one.word(3) is Word.GO


def test_a_reward_that_has_no_value_for_a_clip_by_its_nature_is_not_told(case):
    one = case()
    one.source.more, one.source.reason = {"sync": math.nan, "dynamic_degree": math.nan}, "unverifiable"
    one.word(1)
    assert one.told == []


def test_a_source_that_fails_is_told_and_costs_nothing_else(case):
    one = case(on_drift="stop")
    one.source.fails = True
    assert one.word(1) is Word.GO
    assert one.codes() == ["canaries"] and "ConnectionError" in one.told[0][1]
    assert one.watch.metrics() == {} and not one.folder.exists(CANARIES) and one.watch.sound is None
    one.source.fails = False
    assert one.due(2) is Word.GO and one.folder.exists(CANARIES)


def test_a_later_attempt_has_the_first_values_even_if_its_first_look_fails(case):
    case(on_drift="stop").word(1)
    again = case(on_drift="stop")
    again.source.fails = True
    assert again.word(5) is Word.GO
    again.source.fails, again.source.more = False, {"sync": 1.0}
    assert again.due(5) is Word.STOP


def test_a_source_that_judges_nothing_has_nothing_that_drifts(case):
    one = case(on_drift="stop")
    one.source.rescore = lambda prompt, clips, rewards: {}
    assert one.word(1) is Word.GO
    assert one.told == [] and one.watch.metrics() == {} and not one.folder.exists(CANARIES)


def test_a_slow_reward_is_asked_no_longer_than_its_deadline_and_costs_the_others_nothing(case):
    one = case()
    plain = one.source.rescore

    def slow(prompt, clips, rewards):
        found = plain(prompt, clips, rewards)
        one.time.now += 50.0 if "sync" in found else 0.1
        return {name: replace(scores, seconds=50.0 if name == "sync" else 0.1) for name, scores in found.items()}

    one.source.rescore = slow
    one.word(1)
    assert [rewards for _, _, rewards in one.source.asked[2:4]] == [("sync", "dynamic_degree"), ("dynamic_degree",)]
    values = FILE.validate_json(one.folder.read(CANARIES))
    assert list(values["sync"].reasons.values()) == ["ok"] * 3 + ["timeout"] * 5, "120 s are over"
    assert set(values["dynamic_degree"].reasons.values()) == {"ok"}
    assert "still (timeout)" in one.told[0][1] and len(one.told) == 1


def test_a_reward_of_which_nothing_can_be_compared_has_no_distance(case):
    one = case()
    one.source.more, one.source.reason = {"sync": math.nan}, "unreachable"
    one.word(1)
    told = one.watch.metrics()
    assert told["canary/sync/distance"] is told["canary/sync/degraded"] is None
    assert told["canary/dynamic_degree/distance"] == 0.0


def test_first_values_that_cannot_be_read_are_told_with_a_remedy(case):
    one = case()
    one.folder.write_whole(CANARIES, "{]")
    with pytest.raises(UserError, match=r"canaries\.json .* remove it"):
        one.word(1)
