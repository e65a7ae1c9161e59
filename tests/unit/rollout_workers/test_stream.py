"""The stream's promises with fake workers: exact lag, order, re-issue, deadlines, parallel scoring, timing."""

import asyncio
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.config.job import JobSpec
from accord.errors import DeadlineExceeded, NonFiniteError, RolloutError
from accord.events import ProcessLost, Progress
from accord.requests import evaluation_requests, sampling_version, step_requests
from accord.types import PolicyState, Prompt, RewardScores, SampleGroup
from rollout_workers.dispatcher import WorkerLost
from rollout_workers.stream import RolloutStream

PROMPTS = [Prompt(f"p{i}", f"prompt {i}", f"video {i}", f"audio {i}") for i in range(5)]


def make_job(lag: int = 0, steps: int = 4, per_step: int = 3, workers: int = 2) -> JobSpec:
    return JobSpec.model_validate(
        {
            "steps": steps,
            "backbone": {"name": "ltx2"},
            "prompts": {"train": "t", "held_out": "h", "per_step": per_step, "group_size": 2},
            "rewards": ({"name": "sync", "deadline_s": 0.5}, {"name": "clap", "deadline_s": 0.5}),
            "algorithm": {"name": "omninft"},
            "cluster": {"policy_lag": lag, "rollout_workers": workers, "learner_ranks": 1},
        }
    )


class FakeWorker:
    """Samples by writing down what it held; `plan` may say "die", "hang", "fail" or a delay for each call."""

    def __init__(self, name: str, plan=None, revivable: bool = True) -> None:
        self.name, self.revivable = name, revivable
        self.plan = iter(plan or ())
        self.revived = 0
        self.calls: list = []

    async def sample(self, request, weights):
        self.calls.append(request)
        action = next(self.plan, 0.0)
        if action == "die":
            raise WorkerLost("killed")
        if action == "hang":
            await asyncio.sleep(3600)
        if action == "fail":
            raise ValueError("a bug")
        if action == "nan":
            raise NonFiniteError("video")
        await asyncio.sleep(action)
        held = weights.handle.version if weights.handle is not None else 0
        assert held == request.policy_version
        return SampleGroup(request, held, data=request.seeds, clips=[weights.serial] * len(request.seeds))

    async def revive(self, hung):
        if not self.revivable:
            raise DeadlineExceeded("gone for good")
        self.revived += 1


class TogetherScorer:
    """Scores a group by its number of clips, and a step by what came together."""

    def __init__(self) -> None:
        self.together = []

    async def score(self, reward, prompt, clips, count):
        return RewardScores(reward, "1", (1.0,) * count, ("ok",) * count)

    async def score_step(self, reward, prompts, clips, counts):
        self.together.append((reward, [prompt.id for prompt in prompts], [len(part) for part in clips], list(counts)))
        return [RewardScores(reward, "1", (float(place),) * n, ("ok",) * n) for place, n in enumerate(counts)]


class FakeScorer:
    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.calls = delay, []

    async def score(self, reward, prompt, clips, count):
        self.calls.append((reward, prompt.id, time.monotonic()))
        await asyncio.sleep(self.delay)
        return RewardScores(reward, "1", (1.0,) * count, ("ok",) * count)


class Events(list):
    emit = list.append


def state(version: int) -> PolicyState:
    return PolicyState(version, {})


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def settled():
    """Many more turns of the event loop than fake workers without a delay need for all that they were given."""
    for _ in range(2000):
        await asyncio.sleep(0)


async def started(job, workers, scorer=None, **options):
    stream = RolloutStream(job, PROMPTS, workers, scorer or FakeScorer(), **options)
    stream.start()
    return stream


@settings(max_examples=25, deadline=None)
@given(lag=st.sampled_from([0, 1, 3]), seed=st.integers(0, 10_000), workers=st.integers(1, 4))
def test_every_step_sees_exactly_its_version_in_order(lag, seed, workers):
    job = make_job(lag, steps=6, workers=workers)
    rng = random.Random(seed)

    def plan():
        while True:
            yield rng.choice([0.0, 0.0005, 0.002, "die"]) if rng.random() < 0.9 else "die"

    async def train():
        fakes = [FakeWorker(f"w{i}", plan()) for i in range(workers)]
        stream = await started(job, fakes, tries=1000)
        await stream.publish(0, state(0))
        for step in range(1, job.steps + 1):
            groups = (await stream.take(step)).groups
            wanted = step_requests(job, PROMPTS, step)
            assert [group.group.request for group in groups] == wanted
            assert {group.group.policy_version for group in groups} == {max(0, step - 1 - lag)}
            assert all(list(group.scores) == ["sync", "clap"] for group in groups)
            await stream.publish(step, state(step))
        await stream.close()

    run(train())


def test_a_reward_of_the_step_sees_all_its_groups_at_once():
    tree = make_job(steps=1).model_dump(mode="json")
    tree["rewards"] = [{"name": "audio_frechet", "exemplars": "e", "route": "audio"}, {"name": "sync"}]
    job = JobSpec.parse(json.dumps(tree))

    async def check():
        scorer = TogetherScorer()
        stream = await started(job, [FakeWorker("a", [0.01, 0.0]), FakeWorker("b")], scorer)
        await stream.publish(0, state(0))
        groups = (await stream.take(1)).groups
        asked = [group.group.request.prompt.id for group in groups]
        assert scorer.together == [("audio_frechet", asked, [2, 2, 2], [2, 2, 2])]
        assert [group.scores["audio_frechet"].values[0] for group in groups] == [0.0, 1.0, 2.0]
        assert {group.scores["sync"].values for group in groups} == {(1.0, 1.0)}
        await stream.close()

    run(check())


def test_a_group_that_is_lost_takes_the_scores_of_its_step_with_it():
    tree = make_job(steps=1).model_dump(mode="json")
    tree["rewards"] = [{"name": "audio_frechet", "exemplars": "e", "route": "audio"}, {"name": "sync"}]
    job = JobSpec.parse(json.dumps(tree))

    async def check():
        scorer = TogetherScorer()
        stream = await started(job, [FakeWorker("a", ["fail"] * 9)], scorer)
        await stream.publish(0, state(0))
        with pytest.raises((RolloutError, ValueError)):
            await stream.take(1)
        assert scorer.together == []
        await stream.close()

    run(check())


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_no_more_is_under_way_than_the_lag_allows(lag):
    job = make_job(lag, steps=20)

    async def check():
        worker = FakeWorker("w")
        stream = await started(job, [worker])
        await stream.publish(0, state(0))
        await settled()
        assert len(worker.calls) == (lag + 1) * job.prompts.per_step
        assert {call.step for call in worker.calls} == set(range(1, lag + 2))
        await stream.close()

    run(check())


def test_lag_overlaps_sampling_with_learning():
    async def check():
        stream = await started(make_job(1), [FakeWorker("w")])
        await stream.publish(0, state(0))
        await stream.take(1)
        await asyncio.wait_for(stream.take(2), 1)  # before version 1 exists
        await stream.close()

    run(check())


def test_resuming_in_the_middle_samples_only_what_is_left():
    async def check():
        worker = FakeWorker("w")
        stream = await started(make_job(1, steps=9), [worker])
        await stream.publish(4, state(4))
        await stream.publish(5, state(5))
        for step in (6, 7):
            assert {g.group.policy_version for g in (await stream.take(step)).groups} == {step - 2}
        assert {call.step for call in worker.calls} == {6, 7}
        await stream.close()

    run(check())


def test_going_back_to_a_checkpoint_samples_again_with_the_new_weights():
    async def check():
        stream = await started(make_job(0, steps=9), [FakeWorker("w")])
        for version in range(4):
            await stream.publish(version, state(version))
            first = (await stream.take(version + 1)).groups
        for version in (1, 2, 3):  # step 4 was sampled from the first publication of version 3 and is still held
            await stream.publish(version, state(version))
            again = (await stream.take(version + 1)).groups
            assert {g.group.policy_version for g in again} == {version}
        assert [g.group.request for g in again] == [g.group.request for g in first]
        assert again[0].group.clips != first[0].group.clips  # another publication
        await stream.close()

    run(check())


def test_steps_beyond_the_last_are_not_sampled():
    async def check():
        worker = FakeWorker("w")
        job = make_job(3, steps=2)
        stream = await started(job, [worker])
        await stream.publish(0, state(0))
        await stream.take(2)
        assert {call.step for call in worker.calls} == {1, 2}
        await stream.close()

    run(check())


def test_a_lost_workers_group_is_issued_again_and_the_loss_is_told():
    async def check():
        events = Events()
        workers = [FakeWorker("first", ["die"]), FakeWorker("second", [0.01] * 9)]
        stream = await started(make_job(), workers, events=events)
        await stream.publish(0, state(0))
        groups = (await stream.take(1)).groups
        assert [g.group.request for g in groups] == step_requests(make_job(), PROMPTS, 1)
        losses = [event for event in events if isinstance(event, ProcessLost)]
        assert len(losses) == 1 and losses[0].process == "first" and losses[0].recovery_seconds >= 0
        assert workers[0].revived == 1
        await stream.close()

    run(check())


def test_a_hung_worker_is_noticed_at_the_group_deadline():
    async def check():
        events = Events()
        stream = await started(make_job(), [FakeWorker("w", ["hang"])], events=events, group_deadline_s=0.05)
        await stream.publish(0, state(0))
        assert len((await stream.take(1)).groups) == 3
        assert "hung" in next(event for event in events if isinstance(event, ProcessLost)).outcome
        await stream.close()

    run(check())


def test_tries_are_bounded():
    async def check():
        stream = await started(make_job(per_step=1), [FakeWorker("w", ["die"] * 9)], tries=3)
        await stream.publish(0, state(0))
        with pytest.raises(RolloutError, match="lost 3 times, last on w: killed"):
            await stream.take(1)
        await stream.close()

    run(check())


def test_the_last_worker_gone_fails_everything_that_waits():
    async def check():
        stream = await started(make_job(), [FakeWorker("w", ["die"], revivable=False)])
        await stream.publish(0, state(0))
        with pytest.raises(RolloutError, match="no rollout worker is left"):
            await stream.take(1)
        with pytest.raises(RolloutError, match="no rollout worker is left"):
            await stream.take(2)
        await stream.close()

    run(check())


def test_one_worker_gone_leaves_the_rest_at_work():
    async def check():
        workers = [FakeWorker("a", ["die"], revivable=False), FakeWorker("b", [0.005] * 9)]
        stream = await started(make_job(), workers)
        await stream.publish(0, state(0))
        assert len((await stream.take(1)).groups) == 3
        await stream.close()

    run(check())


@pytest.mark.parametrize(("action", "error"), [("fail", RolloutError), ("nan", NonFiniteError)])
def test_an_error_of_the_model_is_not_retried(action, error):
    async def check():
        worker = FakeWorker("w", [action])
        stream = await started(make_job(per_step=1), [worker])
        await stream.publish(0, state(0))
        with pytest.raises(error):
            await stream.take(1)
        assert len(worker.calls) == 1
        await stream.close()

    run(check())


def test_a_version_that_is_never_published_ends_at_the_deadline():
    async def check():
        stream = await started(make_job(), [FakeWorker("w")], step_deadline_s=0.05)
        await stream.publish(0, state(0))
        with pytest.raises(DeadlineExceeded, match=r"step 3 \(version 2\).*latest published version: 0"):
            await stream.take(3)
        await stream.close()

    run(check())


def test_groups_already_trained_are_refused_at_once():
    async def check():
        stream = await started(make_job(), [FakeWorker("w")])
        await stream.publish(0, state(0))
        await stream.publish(1, state(1))
        with pytest.raises(RolloutError, match="step 1 are gone"):
            await stream.take(1)
        await stream.close()

    run(check())


def test_two_ranks_take_the_same_groups():
    async def check():
        stream = await started(make_job(), [FakeWorker("w")])
        waiting = asyncio.gather(stream.take(1), stream.take(1))
        await asyncio.sleep(0)
        await stream.publish(0, state(0))
        first, second = (taken.groups for taken in await waiting)
        assert [id(g) for g in first] == [id(g) for g in second]
        await stream.close()

    run(check())


def test_scoring_starts_with_the_first_group_and_runs_all_rewards_at_once():
    async def check():
        scorer = FakeScorer(delay=0.03)
        stream = await started(make_job(workers=1), [FakeWorker("w", [0.0, 0.1, 0.1])], scorer)
        await stream.publish(0, state(0))
        began = time.monotonic()
        taken = await stream.take(1)
        assert time.monotonic() - began < 0.3
        first = [at for _, prompt, at in scorer.calls if prompt == scorer.calls[0][1]]
        assert max(first) - min(first) < 0.02 and first[0] - began < 0.05
        assert 0.19 < taken.sampling_s < 0.3 and 0.025 < taken.scoring_s < 0.1
        await stream.close()

    run(check())


def test_evaluation_goes_ahead_and_the_base_needs_no_publication():
    job = make_job(1)

    async def check():
        worker = FakeWorker("w", [0.01] * 99)
        events = Events()
        stream = await started(job, [worker], events=events)
        base = await stream.evaluate(evaluation_requests(job, PROMPTS[:2], 0), ["sync"])
        assert [g.group.request.plan.role for g in base] == ["policy", "policy"]
        assert [list(g.scores) for g in base] == [["sync"], ["sync"]]
        await stream.publish(0, state(0))
        await stream.publish(1, state(1))
        await asyncio.sleep(0)
        later = await stream.evaluate(evaluation_requests(job, PROMPTS[:2], 1), ["sync"])
        assert {g.group.policy_version for g in later} == {1}
        assert [call.step for call in worker.calls[2:6]].count(0) == 2  # ahead of the steps that were waiting
        assert any(isinstance(e, Progress) and e.phase == "evaluate" and e.done == e.total for e in events)
        with pytest.raises(RolloutError, match="version 7 is not held"):
            await stream.evaluate(evaluation_requests(job, PROMPTS[:1], 7), [])
        await stream.close()

    run(check())


def test_progress_counts_samples_and_scored_groups():
    async def check():
        events = Events()
        stream = await started(make_job(), [FakeWorker("w")], events=events)
        await stream.publish(0, state(0))
        await stream.take(1)
        seen = [(e.phase, e.done, e.total) for e in events if isinstance(e, Progress) and e.step == 1]
        assert [entry for entry in seen if entry[0] == "rollout"] == [("rollout", n, 6) for n in (2, 4, 6)]
        assert [entry for entry in seen if entry[0] == "reward"] == [("reward", n, 3) for n in (1, 2, 3)]
        await stream.close()

    run(check())


def test_states_are_let_go_once_no_step_needs_them():
    async def check():
        stream = await started(make_job(1, steps=30), [FakeWorker("w")])
        for version in range(6):
            await stream.publish(version, state(version))
            await stream.take(version + 1)
        assert sorted(stream._weights) == [4, 5]
        assert sampling_version(7, 1) == 5
        await stream.close()

    run(check())
