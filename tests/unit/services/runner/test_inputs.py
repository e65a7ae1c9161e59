"""A job's files are pinned by its first attempt."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from accord.backbones.ltx2.model_dir import resolve_model_path
from accord.config.job import JobSpec
from accord.errors import SpecError, UserError
from accord.run_folder import RunFolder
from services.runner.inputs import pin_inputs


@pytest.fixture
def job(tmp_path) -> JobSpec:
    for name in ("train", "held_out", "lora"):
        (tmp_path / name).write_text(name)
    tree = {
        "steps": 1,
        "backbone": {"name": "ltx2", "init_lora": str(tmp_path / "lora")},
        "prompts": {"train": str(tmp_path / "train"), "held_out": str(tmp_path / "held_out")},
        "guards": {"allow_prompt_blind": True},
        "rewards": [{"name": "sync"}],
        "algorithm": {"name": "omninft"},
    }
    return JobSpec.parse(json.dumps(tree))


def test_a_later_attempt_finds_the_same_files(job, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    pin_inputs(job, RunFolder(run))
    pin_inputs(job, RunFolder(run))
    assert [path.name for path in run.iterdir()] == ["inputs.json"]


def test_every_changed_file_is_named(job, tmp_path):
    pin_inputs(job, RunFolder(tmp_path))
    (tmp_path / "train").write_text("other")
    (tmp_path / "lora").write_text("other")
    with pytest.raises(SpecError) as caught:
        pin_inputs(job, RunFolder(tmp_path))
    assert [pointer for pointer, _ in caught.value.problems] == ["/backbone/init_lora", "/prompts/train"]
    assert "changed since the job began; put the old file back" in str(caught.value)
    assert isinstance(caught.value, UserError)  # no further attempt is made
    (tmp_path / "train").write_text("train")
    (tmp_path / "lora").write_text("lora")
    pin_inputs(job, RunFolder(tmp_path))


def test_no_adapter_to_begin_with_is_nothing_to_pin(job, tmp_path):
    plain = job.model_copy(update={"backbone": job.backbone.model_copy(update={"init_lora": ""})})
    pin_inputs(plain, RunFolder(tmp_path))
    assert sorted(json.loads((tmp_path / "inputs.json").read_text())) == ["/prompts/held_out", "/prompts/train"]


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(resolve_model_path("builtin:tiny-ltx2"), tmp_path / "model"))


@pytest.fixture
def on_model(job, model) -> JobSpec:
    return job.model_copy(update={"backbone": job.backbone.model_copy(update={"path": str(model), "init_lora": ""})})


def scaled(file: Path) -> None:
    """Other weights under the same header."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:start] + bytes(byte ^ 1 for byte in content[start:]))


CHANGES = {
    "weights scaled in place": (lambda m: scaled(m / "vae/diffusion_pytorch_model.safetensors"), "vae/diffusion"),
    "weights of the text encoder": (lambda m: scaled(m / "text_encoder/model.safetensors"), "text_encoder/model"),
    "a config": (lambda m: (m / "scheduler/scheduler_config.json").write_text("{}"), "scheduler/scheduler_config.json"),
    "the tokenizer": (lambda m: (m / "tokenizer/tokenizer.json").write_text("{}"), "tokenizer/tokenizer.json"),
    "a file more": (lambda m: (m / "vae/more.json").write_text("{}"), "vae/more.json has appeared"),
    "a file less": (lambda m: (m / "README.md").unlink(), "README.md has gone"),
}  # fmt: skip


@pytest.mark.parametrize("complete", [True, False], ids=["digests noted", "stopped before"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changed_between_attempts_is_refused(on_model, model, tmp_path, change, complete):
    pins = pin_inputs(on_model, RunFolder(tmp_path))
    if complete:
        pins.complete()
    damage, named = CHANGES[change]
    damage(model)
    with pytest.raises(SpecError, match=named) as caught:
        pin_inputs(on_model, RunFolder(tmp_path))
    assert [pointer for pointer, _ in caught.value.problems] == ["/backbone/path"]


def test_times_alone_cannot_hide_a_change(on_model, model, tmp_path):
    pin_inputs(on_model, RunFolder(tmp_path)).complete()
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    before = file.stat()
    scaled(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SpecError, match="vae/diffusion_pytorch_model"):
        pin_inputs(on_model, RunFolder(tmp_path))


def test_the_same_content_written_anew_is_the_same_file(on_model, model, tmp_path, monkeypatch):
    pin_inputs(on_model, RunFolder(tmp_path)).complete_in_background().join(30)
    noted = json.loads((tmp_path / "inputs.json").read_text())["/backbone/path"]
    assert all(entry["sha256"] for entry in noted.values()) and len(noted) > 15
    monkeypatch.setattr("services.runner.inputs.file_sha256", lambda path: pytest.fail(f"{path} read again"))
    untouched = on_model.model_copy(update={"prompts": on_model.prompts})
    pin_inputs(untouched, RunFolder(tmp_path)).complete()
    monkeypatch.undo()
    shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(model)
    (tmp_path / "copy").rename(model)
    pin_inputs(on_model, RunFolder(tmp_path))
    monkeypatch.setattr("services.runner.inputs.file_sha256", lambda path: pytest.fail(f"{path} read again"))
    pin_inputs(on_model, RunFolder(tmp_path))


def test_a_note_of_digests_alone_is_compared(job, tmp_path):
    note = {pointer: hashlib.sha256(name.encode()).hexdigest() for pointer, name in (
        ("/prompts/train", "train"), ("/prompts/held_out", "held_out"), ("/backbone/init_lora", "lora"),
    )}  # fmt: skip
    (tmp_path / "inputs.json").write_text(json.dumps(note))
    pin_inputs(job, RunFolder(tmp_path))
    (tmp_path / "inputs.json").write_text(json.dumps(note | {"/prompts/train": "0" * 64}))
    with pytest.raises(SpecError, match="/prompts/train"):
        pin_inputs(job, RunFolder(tmp_path))


def test_the_config_beside_a_lora_belongs_to_it(job, tmp_path):
    file, config = tmp_path / "lora.safetensors", tmp_path / "adapter_config.json"
    file.write_bytes(b"x")
    config.write_text('{"lora_alpha": 4}')
    named = job.model_copy(update={"backbone": job.backbone.model_copy(update={"init_lora": str(file)})})
    pin_inputs(named, RunFolder(tmp_path))
    config.write_text('{"lora_alpha": 8}')
    with pytest.raises(SpecError, match=r"/backbone/init_lora: .*adapter_config\.json changed"):
        pin_inputs(named, RunFolder(tmp_path))
