"""What a step's line says of where its time went."""

import pytest

from learner import phase_clock
from learner.phase_clock import PhaseClock


class Time:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    clock = Time()
    monkeypatch.setattr(phase_clock, "time", clock)
    return clock


def test_what_has_no_step_of_its_own_counts_once_with_the_next(time):
    clock = PhaseClock()
    clock.carry("startup", 7.00004)
    clock.next_step(waited_s=5.0, scoring_s=2.0)
    with clock.timed("learn"):
        time.now += 1.5
    with clock.timed("learn"):
        time.now += 0.25
    assert clock.seconds == {"rollout": 3.0, "reward": 2.0, "startup": 7.0, "learn": 1.75}
    written = clock.seconds
    clock.carry("checkpoint", 0.5)
    assert "checkpoint" not in written  # that step's line may still be read
    clock.next_step(waited_s=1.0, scoring_s=4.0)  # scored while the step before was learning
    assert clock.seconds == {"rollout": 0.0, "reward": 1.0, "checkpoint": 0.5}
    assert written["learn"] == 1.75


def test_progress_is_told_at_the_end_and_now_and_then(time):
    clock = PhaseClock()
    told = []
    for done in range(1, 11):
        time.now += 0.2
        told += [done] if clock.due(done, 10) else []
    assert told == [1, 4, 7, 10]
    time.now += 0.1
    assert clock.due(10, 10)
