"""Two rollout processes on the tiny model: the same bits as one process alone, also when one is killed at work."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

ray = pytest.importorskip("ray")

from accord.backbones.adapters import ADAPTER_ROLES, adapter_state  # noqa: E402
from accord.config.job import JobSpec  # noqa: E402
from accord.config.prompts import load_prompts  # noqa: E402
from accord.events import ProcessLost  # noqa: E402
from accord.requests import evaluation_requests, step_requests  # noqa: E402
from accord.types import Clip, PolicyState, RewardScores  # noqa: E402
from rollout_workers.actor import start_stream  # noqa: E402
from rollout_workers.worker import RolloutWorker  # noqa: E402

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "examples" / "prompts" / "world_train.jsonl"


class CountingScorer:
    """Stands in for the reward servers: the score is the mean brightness of the clip behind the handle."""

    async def score(self, reward, prompt, clips, count):
        fetched = await clips if isinstance(clips, ray.ObjectRef) else clips
        values = tuple(float(clip.video_FHWC.mean()) for clip in fetched)
        assert len(values) == count
        return RewardScores(reward, "1", values, ("ok",) * count)


class Traced(dict):
    """Adapters that write down which process takes them out of the object store."""

    def __init__(self, adapters, file):
        super().__init__(adapters)
        self.file = file

    def __reduce__(self):
        return opened, (str(self.file), dict(self))


def opened(file, adapters):
    with Path(file).open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    return adapters


@ray.remote(num_cpus=0)
class Events:
    def __init__(self):
        self.all = []

    def add(self, event):
        self.all.append(event)

    def get(self):
        return self.all


class RemoteSink:
    def __init__(self, actor):
        self.actor = actor

    def emit(self, event):
        self.actor.add.remote(event)


@pytest.fixture(scope="module")
def job() -> JobSpec:
    return JobSpec.model_validate(
        {
            "steps": 4,
            "seed": 3,
            "backbone": {"name": "ltx2", "lora": {"rank": 4, "alpha": 8.0}},
            "sampling": {"num_steps": 4},
            "prompts": {"train": str(PROMPTS), "held_out": str(PROMPTS), "per_step": 3, "group_size": 4},
            "guards": {"allow_prompt_blind": True},
            "rewards": ({"name": "sync"},),
            "algorithm": {"name": "omninft"},
            "cluster": {"rollout_workers": 2, "rollout_cpus": 0.5, "learner_ranks": 1},
            "evaluate": {"samples_per_prompt": 2},
        }
    )


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(job) -> RolloutWorker:
    return RolloutWorker(job.backbone, job.sampling, seed=job.seed)


def weights(worker: RolloutWorker, version: int) -> PolicyState:
    """Something a learner could have published: deterministic, different in every version and role."""
    model = worker.backbone.velocity_model
    adapters = {}
    for offset, role in enumerate(ADAPTER_ROLES):
        rng = np.random.default_rng(10 * version + offset)
        adapters[role] = {
            key: (0.05 * rng.standard_normal(value.shape)).astype(np.float32)
            for key, value in adapter_state(model, role).items()
        }
    return PolicyState(version, adapters)


def assert_same(client, scored, worker: RolloutWorker) -> None:
    expected = worker.sample(scored.group.request)
    data = client.fetch(scored.group.data)
    assert data.conditions.tensors.keys() == expected.data.conditions.tensors.keys()
    for name, tensor in expected.data.conditions.tensors.items():
        assert tensor.dtype == data.conditions[name].dtype and torch.equal(tensor, data.conditions[name])
    for modality, latents in expected.data.latents.items():
        assert np.array_equal(latents, data.latents[modality]), modality
    if expected.data.token_weights_GT is None:
        assert data.token_weights_GT is None
    else:
        assert np.array_equal(expected.data.token_weights_GT, data.token_weights_GT)
    clips: list[Clip] = client.fetch(scored.group.clips)
    for ours, theirs in zip(expected.clips, clips, strict=True):
        assert np.array_equal(ours.video_FHWC, theirs.video_FHWC) and np.array_equal(ours.audio_CS, theirs.audio_CS)
    assert scored.scores["sync"].values == tuple(float(clip.video_FHWC.mean()) for clip in clips)


def test_two_workers_one_killed_same_bits(job, cluster, alone, tmp_path):
    prompts = load_prompts(PROMPTS)
    events = Events.remote()
    client = start_stream(job, prompts, CountingScorer(), RemoteSink(events))
    try:
        base = client.evaluate(evaluation_requests(job, prompts[:2], 0), ["sync"])
        client.publish(weights(alone, 0))
        first = client.take(1).groups
        client.publish(weights(alone, 1))
        threading.Thread(target=kill_one_rollout_worker, daemon=True).start()
        taken = client.take(2)
        second = taken.groups
        deadline = time.monotonic() + 60
        while not (lost := [e for e in ray.get(events.get.remote(), timeout=10) if isinstance(e, ProcessLost)]):
            assert time.monotonic() < deadline, "the loss was never told"
            time.sleep(0.2)
        assert "restarted" in lost[0].outcome and 0 < lost[0].recovery_seconds < 60
        newest, told = weights(alone, 2), tmp_path / "opened"
        client.publish(PolicyState(newest.version, Traced(newest.adapters, told)))
        third = client.take(3).groups
        stream = ray.get(client.actor.__ray_call__.remote(lambda _actor: os.getpid()), timeout=10)
        fetched = [int(line) for line in told.read_text().split()]
        assert 1 <= len(fetched) == len(set(fetched)) <= 2 and stream not in fetched, "each worker once, no stream"

        alone.load(None)
        for scored in base:
            assert_same(client, scored, alone)
        for version, groups in enumerate((first, second, third)):
            assert [g.group.request for g in groups] == step_requests(job, prompts, version + 1)
            assert {g.group.policy_version for g in groups} == {version}
            alone.load(weights(alone, version))
            for scored in groups:
                assert_same(client, scored, alone)
        assert client.fetch(first[0].group.data).token_weights_GT is not None
        assert taken.sampling_s > 0 and taken.scoring_s > 0
        scores = client.rescore(prompts[0], client.fetch(first[0].group.clips), ["sync"])
        assert scores["sync"].values == first[0].scores["sync"].values
    finally:
        client.stop()


def kill_one_rollout_worker() -> None:
    """SIGKILL the first rollout process that a listing of processes shows as busy."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for entry in Path("/proc").iterdir():
            try:
                title = (entry / "cmdline").read_bytes()
                mine = entry.name.isdigit() and title.startswith(b"ray::RolloutActor.sample") and is_ours(entry)
            except OSError:
                continue
            if mine:
                os.kill(int(entry.name), signal.SIGKILL)
                return
        time.sleep(0.005)


def is_ours(entry: Path) -> bool:
    """Whether the process belongs to the cluster that this test started."""
    session = ray._private.worker._global_node.get_session_dir_path()
    return session.encode() in (entry / "environ").read_bytes() or child_of_raylet(entry, session)


def child_of_raylet(entry: Path, session: str) -> bool:
    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
    return session.encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
