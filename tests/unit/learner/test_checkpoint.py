"""A checkpoint is whole or it is not there."""

import json

import numpy as np
import pytest
import torch

from accord.config.job import JobSpec
from accord.errors import CheckpointError, Fenced
from accord.ids import file_sha256
from accord.run_folder import RunFolder
from accord.types import PolicyState
from learner.checkpoint import Checkpoints
from learner.collectives import Ranks


def job(**changes) -> JobSpec:
    tree = {
        "steps": 9,
        "backbone": {"name": "ltx2"},
        "prompts": {"train": "t", "held_out": "h"},
        "guards": {"allow_prompt_blind": True},
        "rewards": [{"name": "sync"}],
        "algorithm": {"name": "omninft"},
        "checkpoint": {"every": 1, "keep": 2},
    }
    return JobSpec.model_validate_json(json.dumps(tree | changes))


class Store(Checkpoints):
    def __init__(self, directory, spec=None, **options):
        self.warnings = []
        super().__init__(
            RunFolder(directory.parent), spec or job(), Ranks(),
            warn=lambda code, text: self.warnings.append((code, text)), **options,
        )  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "checkpoints"


def state(version: int, value: float = 0.0) -> PolicyState:
    array = np.full((2, 3), version + value, dtype=np.float32)
    return PolicyState(version, {"policy": {"a.lora_A.weight": array}, "old": {"a.lora_A.weight": array + 1}})


def optimizer(step: int) -> dict[str, torch.Tensor]:
    return {"0/step": torch.tensor(float(step)), "0/exp_avg": torch.full((6,), 0.1 * step)}


def save(store: Store, *steps: int, value: float = 0.0) -> None:
    for step in steps:
        store.save(step, [state(step - 1, value), state(step, value)], optimizer(step))


def step_dirs(directory):
    return sorted(path.name for path in directory.iterdir())


def test_comes_back_bit_for_bit_and_keeps_the_last(directory):
    assert Store(directory).latest() is None
    save(Store(directory), 1, 2, 3)
    assert step_dirs(directory) == ["step-000002", "step-000003"]
    found = Store(directory).latest()
    assert found.step == 3
    assert [part.version for part in found.states] == [2, 3]
    for part in found.states:
        for role, tensors in state(part.version).adapters.items():
            assert np.array_equal(part.adapters[role]["a.lora_A.weight"], tensors["a.lora_A.weight"])
    assert found.optimizer.keys() == optimizer(3).keys()
    assert all(torch.equal(value, found.optimizer[name]) for name, value in optimizer(3).items())


@pytest.mark.parametrize("name", ["policy-000003.safetensors", "optimizer-00000-of-00001.safetensors", "job.json"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_torn_one_is_refused_aloud_and_the_one_before_taken(directory, name, damage):
    save(Store(directory), 2, 3)
    file = directory / "step-000003" / name
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content if damage == "flipped" else content[:-1])
    store = Store(directory)
    assert store.latest().step == 2
    assert len(store.warnings) == 1
    assert store.warnings[0][0] == "checkpoint_torn"
    assert "step-000003" in store.warnings[0][1]
    assert name in store.warnings[0][1]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"files": []}'])
def test_manifest_that_is_gone_or_no_manifest(directory, text):
    save(Store(directory), 2, 3)
    manifest = directory / "step-000003" / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    store = Store(directory)
    assert store.latest().step == 2
    assert len(store.warnings) == 1


def test_only_torn_ones_means_a_fresh_start(directory):
    save(Store(directory), 1)
    (directory / "step-000001" / "manifest.json").unlink()
    store = Store(directory)
    assert store.latest() is None
    assert store.warnings


def test_a_fenced_attempt_publishes_nothing(directory):
    def guard():
        raise Fenced("attempt 2 owns the job")

    save(Store(directory), 1)
    store = Store(directory, guard=guard, epoch=1)
    with pytest.raises(Fenced):
        save(store, 2)
    assert Store(directory).latest().step == 1
    save(Store(directory, epoch=2), 2)  # its successor is not in the way of what it left
    assert step_dirs(directory) == ["step-000001", "step-000002"]


def test_two_attempts_write_under_different_names(directory):
    seen = []
    for epoch in (1, 2):
        store = Store(directory, epoch=epoch)
        store.guard = lambda: seen.append([path.name for path in directory.glob(".step*")])
        save(store, 5)
    assert seen == [[".step-000005.epoch-1.tmp"], [".step-000005.epoch-2.tmp"]]


def test_saving_a_step_again_replaces_it(directory):
    save(Store(directory), 1, 2)
    (directory / "step-000002" / "manifest.json").unlink()
    save(Store(directory, epoch=1), 2, value=0.5)
    assert Store(directory).latest().states[-1].adapters["policy"]["a.lora_A.weight"][0, 0] == 2.5
    save(Store(directory, epoch=1), 2, value=0.25)
    assert Store(directory).latest().states[-1].adapters["policy"]["a.lora_A.weight"][0, 0] == 2.25


def test_a_torn_later_one_neither_survives_nor_pushes_out_the_good(directory):
    save(Store(directory), 4, 5)
    (directory / "step-000005" / "manifest.json").write_text("{")
    (directory / "step-000005").rename(directory / "step-000008")
    save(Store(directory), 5)
    assert step_dirs(directory) == ["step-000004", "step-000005"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spec": job(seed=1)}, "/seed is 0, this job has 1"),
        (
            {"spec": job(algorithm={"name": "omninft", "loss": {"beta": 0.5}})},
            "/algorithm/loss/beta is 1.0, this .* 0.5",
        ),
        ({"layout": "zero2"}, "layout is 'torch', this job has 'zero2'"),
    ],
)
def test_a_stranger_is_refused_with_the_reason(directory, change, word):
    save(Store(directory), 1)
    with pytest.raises(CheckpointError, match=word):
        Store(directory, **change).latest()


def test_a_field_that_the_checkpoint_does_not_know_has_its_default(directory):
    """A release that adds a field goes on with what the one before it wrote."""
    save(Store(directory), 1)
    spec, manifest = directory / "step-000001" / "job.json", directory / "step-000001" / "manifest.json"
    tree, entries = json.loads(spec.read_text()), json.loads(manifest.read_text())
    del tree["optimizer"]["gradient_norms"]
    spec.write_text(json.dumps(tree))
    entries["files"]["job.json"] = {"sha256": file_sha256(spec), "bytes": spec.stat().st_size}
    manifest.write_text(json.dumps(entries))
    assert Store(directory).latest().step == 1
    with pytest.raises(CheckpointError, match="/optimizer/gradient_norms is True, this job has False"):
        Store(directory, job(optimizer={"gradient_norms": False})).latest()
    tree["optimizer"]["field_of_another_release"] = 1
    spec.write_text(json.dumps(tree))
    entries["files"]["job.json"] = {"sha256": file_sha256(spec), "bytes": spec.stat().st_size}
    manifest.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=r"step-000001: this release does not know .*field_of_another"):
        Store(directory).latest()


def test_world_size_is_checked(directory):
    save(Store(directory), 1)
    store = Store(directory)
    store.ranks.count, store.ranks.sum = 2, lambda tensor: tensor
    with pytest.raises(CheckpointError, match="world_size is 1, this job has 2"):
        store.latest()
