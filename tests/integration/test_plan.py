"""`accord plan`: one job counted by hand, and the command without any service."""

import io
import json
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from accord.backbones.sizes import Activations, ModelSizes
from accord.config.job import JobSpec
from services.cli.commands import app
from services.cli.plan import _rank, _roles, _rollout, _step, show

JOB = """
steps = 2
[backbone]
name = "ltx2"
lora = { rank = 4, alpha = 8.0 }
gradient_checkpointing = true
text_cache = "texts"
[sampling]
num_steps = 6
[prompts]
train = "t"
held_out = "h"
per_step = 4
group_size = 3
[guards]
allow_prompt_blind = true
[[rewards]]
name = "sync"
[algorithm]
name = "omninft"
[optimizer]
micro_batch = 5
[cluster]
rollout_workers = 3
learner_ranks = 2
zero_stage = 3
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path: Path = tmp_path_factory.mktemp("plan") / "job.toml"
    path.write_text(JOB)
    result = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    return path, json.loads(result.stdout)


def test_forwards_of_a_step(command):
    _, found = command
    assert found["step"] == {
        "clips": 12,
        "rollout_batch": 3,
        "rollout_passes": 1,
        "rollout_forwards": 2 * 6,  # the busiest of 3 workers has 2 of the 4 groups
        "micro_batch": 5,
        "micro_batches": 3,  # 2 groups x 3 samples x 2 noise levels
        "learner_forwards": 3 * (2 + 1 + 1),  # old and ref, the policy, the policy again
        "learner_backwards": 3,
    }


def test_bytes_by_role(command):
    _, found = command
    adapter = found["model"]["adapter_parameters"]
    assert adapter == 479_232 // 4  # rank 4 instead of the default 16
    transformer = 4 * found["model"]["parameters"]["transformer"]
    worker, ranks = found["rollout_worker"], found["learner_rank"]
    assert worker["transformer"] == ranks["zero_2"]["transformer"] == 2 * ranks["zero_3"]["transformer"] == transformer
    assert worker["adapters"] == ranks["zero_0"]["adapters"] == 8 * adapter
    clip = 25 * 32 * 32 * 3 + 4 * round(25 / 12 * 16_000)
    assert worker["clips"] == 8 * clip  # of a prompt that is held out; a step makes 3
    assert not {"vae", "vocoder", "text_encoder", "connectors"} & ranks["zero_0"].keys()
    assert found["engine"] == "zero_3"
    rank = ranks["zero_3"]
    parts = set(rank) - {"total", "activations"}  # the job checkpoints
    assert rank["total"] == sum(rank[part] for part in parts)
    assert 0 < rank["activations_checkpointed"] < rank["activations"]


def test_a_reference_that_follows_is_a_third_adapter_of_ranks():
    sizes = ModelSizes({"net": 10}, {"net": 40}, "net", 1000, 2, {"video": 4}, 0, Activations(0, 0, 0, 0))
    trees = [tomllib.loads(text) for text in (JOB, f"{JOB}\n[guards.reference_reset]\nevery = 2\n")]
    jobs = [JobSpec.parse(json.dumps(tree)) for tree in trees]
    assert [_roles(job) for job in jobs] == [("policy", "old"), ("policy", "old", "ref")]
    assert [_rank(job, sizes, 2)["adapters"] for job in jobs] == [8000, 12000]
    assert [_rollout(job, sizes)["adapters"] for job in jobs] == [8000, 8000]


def test_the_table_says_the_same(command):
    _, found = command
    console = Console(file=io.StringIO(), width=200)
    show(found, console)
    text = console.file.getvalue()
    assert "the text cache lacks" in text and "decode, when" not in text
    assert "rank, zero-3 *" in text and "rank, zero-2 *" not in text
    assert "119,808 parameters for each of policy, old" in text and "28 video, 52 audio, 16 text" in text
    total = next(line for line in text.splitlines() if line.strip().startswith("total"))
    assert f"{found['learner_rank']['zero_3']['total'] / 2**30:.3g}" in total


def test_stochastic_steps_count_as_draws():
    tree = {
        "steps": 2,
        "backbone": {"name": "ltx2"},
        "sampling": {"num_steps": 6},
        "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 4},
        "guards": {"allow_prompt_blind": True},
        "rewards": ({"name": "sync"},),
        "algorithm": {"name": "flow_grpo", "preset": "fast_grpo"},
        "cluster": {"learner_ranks": 1},
        "optimizer": {"micro_batch": 4},
    }
    step = _step(JobSpec.model_validate(tree))
    assert step["micro_batches"] == 2 * 4 * 2 // 4 and step["learner_forwards"] == step["micro_batches"]


def test_an_evaluation_has_no_learner(tmp_path):
    path = tmp_path / "eval.toml"
    path.write_text("""
kind = "evaluate"
subject = { adapter = "a.safetensors" }
backbone = { name = "ltx2" }
prompts = { held_out = "h", per_step = 4 }
evaluate = { samples_per_prompt = 5 }
rewards = [{ name = "sync" }]
""")
    result = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["learner_rank"] == {} and found["model"]["adapter_roles"] == []
    assert {name.partition("_")[0] for name in found["step"]} == {"clips", "rollout"}
    assert (found["step"]["clips"], found["step"]["rollout_batch"]) == (4 * 5, 5)
    assert found["rollout_worker"]["clips"] == 5 * (25 * 32 * 32 * 3 + 4 * round(25 / 12 * 16_000))
    console = Console(file=io.StringIO(), width=200)
    show(found, console)
    text = console.file.getvalue()
    assert "a batch of prompts: 20 clips" in text and "rollout worker" in text
    assert not any(word in text for word in ("backwards", "gradients", "optimizer", "old", "rank", "the job's own"))


def test_clips_that_are_judged_have_nothing_to_plan(tmp_path):
    path = tmp_path / "clips.toml"
    path.write_text("""
kind = "evaluate"
subject = { clips = "c" }
prompts = { held_out = "h" }
rewards = [{ name = "sync" }]
""")
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 2 and "clips loads no model" in result.stderr and "accord validate" in result.stderr


def test_what_is_wrong_is_one_line(command):
    path, _ = command
    result = CliRunner().invoke(app, ["plan", str(path), "--set", "backbone.path=/nowhere"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "/nowhere" in result.stderr
