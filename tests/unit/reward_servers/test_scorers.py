"""ServeScorer against handles that misbehave, LocalScorer against none. No cluster here."""

from __future__ import annotations

import asyncio
import copy
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray import serve
from ray.exceptions import ActorDiedError, OwnerDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from accord.canary import canaries
from accord.config.rewards.panel import DynamicDegreeReward, SyncReward, TemporalFlickerReward
from accord.errors import RewardError, RolloutError, UserError
from accord.types import Prompt, RewardIdentity, RewardScores
from reward_servers import breaker, serve_handles
from reward_servers import scorer as scorers
from reward_servers.base import RewardModel, Score
from reward_servers.scorer import LocalScorer
from reward_servers.serve_handles import ServeScorer

PROMPT = Prompt("p", "av", "v", "a")
GOOD = RewardScores("sync", "1", (0.5, 0.25), ("ok", "ok"))


class Handle:
    """A deployment handle that plays a script: an exception, an answer, or seconds to wait."""

    def __init__(self, script, waits=()):
        self.script, self.asked, self.cancelled = list(script), 0, 0
        self.waits, self.waited = list(waits), 0
        self.rewards = []
        self.score = self
        self.ready = SimpleNamespace(remote=self._ready)
        self.identify = SimpleNamespace(remote=lambda reward: Response(self, RewardIdentity("0", "ab")))

    def remote(self, prompt, clips, rewards):
        self.asked += 1
        self.rewards.append(rewards)
        return Response(self, self.script.pop(0) if len(self.script) > 1 else self.script[0])

    def _ready(self):
        self.waited += 1
        return Response(self, self.waits.pop(0) if self.waits else GOOD)


class Response:
    def __init__(self, handle, act):
        self.handle, self.act = handle, act

    def __await__(self):
        return self._run().__await__()

    async def _run(self):
        if isinstance(self.act, Exception):
            raise self.act
        if isinstance(self.act, int | float):
            await asyncio.sleep(self.act)
            return {"sync": GOOD}
        return {"sync": self.act} if isinstance(self.act, RewardScores) else self.act

    def cancel(self):
        self.handle.cancelled += 1


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(scorers, "FIRST_PAUSE_S", 0.01)

    monkeypatch.setattr(serve_handles, "_POLL_S", 0.01)

    def start(*script, waits=(), **fields):
        handle = Handle(script, waits)
        monkeypatch.setattr(serve, "get_app_handle", lambda name: handle)
        return handle, ServeScorer([SyncReward(**{"deadline_s": 5.0, **fields})])

    return start


def score(scorer, count=2) -> RewardScores:
    return asyncio.run(scorer.score("sync", PROMPT, object(), count))


def test_a_dead_replica_is_asked_again(served):
    handle, scorer = served(ActorDiedError(), RayServeException("no replica"), GOOD)
    assert score(scorer).values == GOOD.values
    assert handle.asked == 3


def test_a_reward_that_loses_every_call_is_asked_three_times_and_gives_no_number(served):
    handle, scorer = served(ActorDiedError())
    scores = score(scorer)
    assert scores.valid == (False, False) and scores.reasons == ("unreachable",) * 2
    assert all(math.isnan(value) for value in scores.values)
    assert handle.asked == 3


def test_waiting_until_there_is_a_replica_is_no_retry(served):
    gone = [ActorDiedError(), RayServeException("no replica"), BackPressureError(1, 1)] * 4
    handle, scorer = served(ActorDiedError(), GOOD, waits=gone)
    assert score(scorer).values == GOOD.values
    assert (handle.asked, handle.waited) == (2, 13)


def test_a_server_that_does_not_come_back_keeps_the_first_reason(served):
    handle, scorer = served(ActorDiedError(), waits=[30.0], deadline_s=0.3)
    assert score(scorer).reasons == ("unreachable",) * 2
    assert handle.asked == 1


def test_a_job_waits_for_room_of_itself(served):
    """With room for two, the third call is not made until one of them has come back."""
    handle, scorer = served(0.2, max_queued=2)

    async def three():
        calls = [asyncio.create_task(scorer.score("sync", PROMPT, object(), 2)) for _ in range(3)]
        await asyncio.sleep(0.05)
        under_way = handle.asked
        return under_way, await asyncio.gather(*calls)

    under_way, found = asyncio.run(three())
    assert under_way == 2 and handle.asked == 3
    assert all(all(scores.valid) for scores in found)


def test_a_reward_that_fails_in_a_row_is_left_alone_until_a_probe_succeeds(served, monkeypatch):
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.1)
    bug = RayTaskError("score", "trace", ValueError("bug"))
    handle, scorer = served(bug, bug, bug, bug, GOOD, break_after=3)

    async def ask():
        return (await scorer.score("sync", PROMPT, object(), 2)).reasons[0]

    async def play():
        told = [await ask() for _ in range(5)]
        assert (told, handle.asked) == (["model_error"] * 3 + ["circuit_open"] * 2, 3)
        await asyncio.sleep(0.15)
        assert [await ask() for _ in range(3)] == ["circuit_open"] * 3, "the step does not wait for the probe"
        await asyncio.sleep(0.05)
        assert handle.asked == 4, "one probe, which failed"
        await asyncio.sleep(0.25)
        assert await ask() == "circuit_open"
        await asyncio.sleep(0.05)
        assert handle.asked == 5, "the second probe"
        assert await ask() == "ok"

    asyncio.run(play())


def test_canaries_that_are_refused_leave_a_reward_in(served):
    """Its server may be right to want none as small as they are."""
    small = RewardScores.failed("sync", 2, "refused")
    handle, scorer = served(*[small] * 8, GOOD, break_after=3)

    async def asked():
        for canary in canaries(SyncReward()):
            assert (await scorer.score("sync", canary.prompt, object(), 2)).reasons == ("refused",) * 2
        return await scorer.score("sync", PROMPT, object(), 2)

    assert asyncio.run(asked()).valid == (True, True) and handle.asked == 9


def test_one_answer_between_failures_keeps_a_reward_in(served):
    bug = RayTaskError("score", "trace", ValueError("bug"))
    _, scorer = served(bug, bug, GOOD, bug, bug, GOOD, break_after=3)
    assert [score(scorer).reasons[0] for _ in range(6)] == ["model_error", "model_error", "ok"] * 2


@pytest.mark.parametrize(
    ("reasons", "counts"),
    [
        (("unreachable", "unreachable"), True), (("timeout", "timeout"), True), (("refused", "refused"), True),
        (("bad_answer", "bad_answer"), True), (("wrong_version", "wrong_version"), True),
        (("too_short", "unreachable"), True), (("too_short", "too_short"), False), (("ok", "timeout"), False),
        (("model_error", "model_error"), False),
    ],
)  # fmt: skip
def test_a_model_whose_own_server_is_down_is_left_alone_as_well(served, monkeypatch, reasons, counts):
    """Its replica answers each time; what it says is that nobody answers it."""
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.05)
    values = tuple(0.5 if reason == "ok" else math.nan for reason in reasons)
    down = RewardScores("sync", "1", values, reasons)
    handle, scorer = served(down, down, down, down, GOOD, break_after=3)

    async def play():
        told = [(await scorer.score("sync", PROMPT, object(), 2)).reasons for _ in range(4)]
        assert told == [reasons] * 3 + ([("circuit_open",) * 2] if counts else [reasons])
        if counts:
            for asked in (4, 5):  # the first probe finds it down, the second up again
                await asyncio.sleep(0.15)
                assert (await scorer.score("sync", PROMPT, object(), 2)).reasons == ("circuit_open",) * 2
                await asyncio.sleep(0.02)
                assert handle.asked == asked
            assert (await scorer.score("sync", PROMPT, object(), 2)).valid == (True, True)

    asyncio.run(play())


def test_no_server_at_all_is_unreachable(monkeypatch):
    def absent(name):
        raise RayServeException(f"no application {name}")

    monkeypatch.setattr(serve, "get_app_handle", absent)
    scores = score(ServeScorer([SyncReward(deadline_s=0.2)]))
    assert scores.reasons == ("unreachable",) * 2


def test_a_call_that_hangs_is_cancelled_and_timed_out(served):
    handle, scorer = served(30.0, deadline_s=0.2)
    scores = score(scorer)
    assert scores.reasons == ("timeout",) * 2
    assert handle.cancelled == 1


def test_back_pressure_is_waited_out(served):
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    assert score(served(full, full, GOOD)[1]).valid == (True, True)
    assert score(served(full, deadline_s=0.2)[1]).reasons == ("backpressure",) * 2


def test_a_bug_in_the_server_is_not_asked_twice(served):
    handle, scorer = served(RayTaskError("score", "trace", ValueError("bug")), GOOD)
    assert score(scorer).reasons == ("model_error",) * 2
    assert handle.asked == 1


def test_lost_clips_are_the_samplers_affair(served):
    lost = OwnerDiedError("00" * 28, None, "")
    for error in (lost, RayTaskError("score", "trace", lost)):
        with pytest.raises(RolloutError, match="prompt p"):
            score(served(error)[1])


def test_an_answer_of_the_wrong_length_is_no_answer(served):
    assert score(served(GOOD)[1], count=3).reasons == ("model_error",) * 3


def test_cancelling_the_caller_cancels_the_call(served):
    handle, scorer = served(30.0)

    async def leave():
        task = asyncio.create_task(scorer.score("sync", PROMPT, object(), 2))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert handle.cancelled == 1


def test_pauses_grow_and_repeat_themselves():
    pauses = [scorers._pause("sync", PROMPT, attempt) for attempt in range(1, 12)]
    assert pauses == [scorers._pause("sync", PROMPT, attempt) for attempt in range(1, 12)]
    assert pauses[0] < 0.31 and max(pauses) <= 1.5 * scorers.LONGEST_PAUSE_S


def test_a_model_that_does_not_answer_in_time_gives_invalid_scores(world):
    local = LocalScorer([TemporalFlickerReward(deadline_s=0.1)])
    prompt, clip = world["clean"][0]

    class Slow:
        def score(self, prompts, groups):
            time.sleep(0.4)

    local._reached["temporal_flicker"] = Slow()
    scores = asyncio.run(local.score("temporal_flicker", prompt, [clip, clip], 2))
    assert scores.valid == (False, False) and scores.reasons == ("timeout", "timeout")


def test_a_model_of_this_process_is_asked_by_one_thread_at_a_time_and_holds_up_no_other():
    local = LocalScorer([TemporalFlickerReward(), SyncReward(deadline_s=10.0)])
    inside, both, hung = threading.Lock(), [], threading.Event()

    class Careful:
        def score(self, prompts, groups):
            both.append(not inside.acquire(blocking=False))
            time.sleep(0.05)
            if not both[-1]:
                inside.release()
            return [[Score(0.5)]]

        spec = TemporalFlickerReward()

    class Hung:
        def score(self, prompts, groups):
            hung.wait(10)

    local._reached = {"temporal_flicker": Careful(), "sync": Hung()}
    with ThreadPoolExecutor(3) as pool:
        stuck = pool.submit(lambda: asyncio.run(local.score("sync", PROMPT, [None], 1)))
        asked = [pool.submit(lambda: asyncio.run(local.score("temporal_flicker", PROMPT, [None], 1))) for _ in range(2)]
        assert [one.result(5).values for one in asked] == [(0.5,), (0.5,)]
        assert both == [False, False] and not stuck.done()
        hung.set()


def test_the_scorer_of_one_process_is_imported_without_ray():
    code = "import sys, reward_servers.scorer; assert not {'ray', 'torch', 'starlette'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_scorers_travel_without_what_they_hold(served, world):
    _, scorer = served(GOOD)
    score(scorer)
    assert scorer._reached and not copy.deepcopy(scorer)._reached
    local = LocalScorer([TemporalFlickerReward()])
    prompt, clip = world["clean"][0]
    first = asyncio.run(local.score("temporal_flicker", prompt, [clip], 1))
    again = asyncio.run(copy.deepcopy(local).score("temporal_flicker", prompt, [clip], 1))
    assert first.values == again.values and first.valid == (True,)


def test_an_unknown_reward_is_an_error_that_names_the_known():
    for scorer in (ServeScorer([SyncReward()]), LocalScorer([SyncReward()])):
        with pytest.raises(RewardError, match="sync"):
            asyncio.run(scorer.score("clap", PROMPT, [], 0))


class WeightyReward(SyncReward):
    """A reward with weights."""

    impl = "tests.unit.reward_servers.test_scorers:Weighty"
    version = "7"


class Weighty(RewardModel):
    weights_digest = "ab" * 32

    def score_clip(self, prompt, clip):
        return Score(0.5)


class Pack(Handle):
    """Answers for whoever is asked for, after a moment."""

    def remote(self, prompt, clips, rewards):
        self.asked += 1
        self.rewards.append(rewards)
        return PackResponse(self, 0.05)


class PackResponse(Response):
    async def _run(self):
        await asyncio.sleep(self.act)
        return {name: replace(GOOD, reward=name) for name in self.handle.rewards[-1]}


PACKED = [SyncReward(pack="p", deadline_s=5.0), TemporalFlickerReward(pack="p"), DynamicDegreeReward(pack="")]


def test_a_pack_is_asked_once_for_all_its_rewards(monkeypatch):
    handles = {}
    monkeypatch.setattr(serve, "get_app_handle", lambda name: handles.setdefault(name, Pack([])))
    scorer = ServeScorer(PACKED)

    async def two_groups():
        groups = [[object()], [object()]]
        calls = [scorer.score(spec.name, PROMPT, clips, 2) for clips in groups for spec in PACKED]
        return await asyncio.gather(*calls)

    for _ in range(2):
        found = asyncio.run(two_groups())
        assert [scores.reward for scores in found] == ["sync", "temporal_flicker", "dynamic_degree"] * 2
    pack, alone = sorted(handles, key=len, reverse=True)
    assert pack.startswith("pack-p-") and alone == "dynamic_degree"
    assert [sorted(names) for names in handles[pack].rewards] == [["sync", "temporal_flicker"]] * 4
    assert handles[alone].rewards == [("dynamic_degree",)] * 4


def test_a_call_of_a_pack_ends_when_nobody_waits_for_it(monkeypatch):
    handle = Pack([])
    monkeypatch.setattr(serve, "get_app_handle", lambda name: handle)
    scorer = ServeScorer(PACKED[:2])

    async def leave():
        clips = [object()]
        one, other = (asyncio.create_task(scorer.score(spec.name, PROMPT, clips, 2)) for spec in PACKED[:2])
        await asyncio.sleep(0.02)
        one.cancel()
        assert all((await other).valid) and handle.cancelled == 0
        one, other = (asyncio.create_task(scorer.score(spec.name, PROMPT, clips, 2)) for spec in PACKED[:2])
        await asyncio.sleep(0.02)
        one.cancel()
        other.cancel()
        await asyncio.sleep(0.01)
        assert handle.cancelled == 1

    asyncio.run(leave())


def test_a_roster_says_version_and_weights():
    assert asyncio.run(LocalScorer([SyncReward()]).roster()) == {"sync": RewardIdentity(SyncReward.version, "")}
    assert asyncio.run(LocalScorer([WeightyReward()]).roster()) == {"sync": RewardIdentity("7", "ab" * 32)}


def test_a_server_of_another_release_is_refused(served):
    with pytest.raises(RewardError, match=r"'sync' runs version '0', this release has '\d+'"):
        asyncio.run(served(GOOD)[1].roster())


def test_what_a_model_finds_at_the_roster_travels_as_it_is(served):
    handle, scorer = served(GOOD)
    lie = RayTaskError("identify", "trace", UserError("it says version '8'"))
    handle.identify = SimpleNamespace(remote=lambda reward: Response(handle, lie))
    with pytest.raises(UserError, match="it says version '8'"):
        asyncio.run(scorer.roster())


def test_a_server_that_does_not_say_what_it_is_is_refused(monkeypatch):
    def absent(name):
        raise RayServeException(f"no application {name}")

    monkeypatch.setattr(serve, "get_app_handle", absent)
    with pytest.raises(RewardError, match=r"'sync' did not say what it is within 0\.2 s"):
        asyncio.run(ServeScorer([SyncReward(deadline_s=0.2)]).roster())
