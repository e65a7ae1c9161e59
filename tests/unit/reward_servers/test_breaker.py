"""When a reward is left alone, and when it is tried again. The clock is the test's."""

from __future__ import annotations

from reward_servers.breaker import LONGEST_PAUSE_S, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_so_many_failures_in_a_row_and_says_so_once():
    breaker = Breaker(3, Clock())
    assert [breaker.failed() for _ in range(2)] == [False, False]
    breaker.answered()
    assert [breaker.failed() for _ in range(4)] == [False, False, True, False]
    assert breaker.open


def test_one_probe_in_each_pause_and_pauses_double():
    clock = Clock()
    breaker = Breaker(1, clock)
    breaker.failed()
    pauses = []
    for _ in range(6):
        began = clock.now
        assert not breaker.take_probe()
        while not breaker.take_probe():
            clock.now += 1.0
        assert not breaker.take_probe(), "one is under way"
        pauses.append(clock.now - began)
        breaker.probe_failed()
    assert pauses == [5.0, 10.0, 20.0, 40.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_an_answer_closes_it_and_pauses_begin_anew():
    clock = Clock()
    breaker = Breaker(1, clock)
    breaker.failed()
    breaker.probe_failed()
    breaker.answered()
    breaker.probe_failed()  # the end of a probe that brought the answer
    assert not breaker.open
    breaker.failed()
    clock.now += 5.0
    assert breaker.take_probe()
