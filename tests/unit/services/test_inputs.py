"""A job's files are pinned by its first attempt."""

import json

import pytest

from accord.config.job import JobSpec
from accord.errors import SpecError, UserError
from services.runner.inputs import pin_inputs


@pytest.fixture
def job(tmp_path) -> JobSpec:
    for name in ("train", "held_out", "lora"):
        (tmp_path / name).write_text(name)
    tree = {
        "steps": 1,
        "backbone": {"name": "ltx2", "init_lora": str(tmp_path / "lora")},
        "prompts": {"train": str(tmp_path / "train"), "held_out": str(tmp_path / "held_out")},
        "rewards": [{"name": "sync"}],
        "algorithm": {"name": "omninft"},
    }
    return JobSpec.parse(json.dumps(tree))


def test_a_later_attempt_finds_the_same_files(job, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    pin_inputs(job, run)
    pin_inputs(job, run)
    assert [path.name for path in run.iterdir()] == ["inputs.json"]


def test_every_changed_file_is_named(job, tmp_path):
    pin_inputs(job, tmp_path)
    (tmp_path / "train").write_text("other")
    (tmp_path / "lora").write_text("other")
    with pytest.raises(SpecError) as caught:
        pin_inputs(job, tmp_path)
    assert [pointer for pointer, _ in caught.value.problems] == ["/backbone/init_lora", "/prompts/train"]
    assert "changed since the job began; put the old file back" in str(caught.value)
    assert isinstance(caught.value, UserError)  # no further attempt is made
    (tmp_path / "train").write_text("train")
    (tmp_path / "lora").write_text("lora")
    pin_inputs(job, tmp_path)


def test_no_adapter_to_begin_with_is_nothing_to_pin(job, tmp_path):
    plain = job.model_copy(update={"backbone": job.backbone.model_copy(update={"init_lora": ""})})
    pin_inputs(plain, tmp_path)
    assert sorted(json.loads((tmp_path / "inputs.json").read_text())) == ["/prompts/held_out", "/prompts/train"]
