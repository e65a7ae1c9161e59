"""The paper's five rewards on LTX-2: the example of a real job, checked, planned and run on tiny published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accord.config.job import JobSpec
from accord.plugins import spec_class
from reward_servers.base import build
from services.cli.commands import app
from services.cli.job_file import read_job
from services.cli.plan import reward_notes
from tests.integration.omninft_models import write_models
from tests.integration.service import running_service

FIVE = {"videoalign": 1.0, "hpsv3": 1.5, "audiobox": 0.5, "clap": 1.0, "desync": 1.0}
BRANCHES = {"video": ("videoalign", "hpsv3", "desync"), "audio": ("audiobox", "clap", "desync")}
ON_TWO_CORES = (
    "steps=2", "backbone.dtype=float32", "backbone.gradient_checkpointing=false", "backbone.offload=false",
    "backbone.text_cache=", "sampling.height=32", "sampling.width=32", "sampling.num_steps=3",
    "prompts.per_step=2", "prompts.group_size=3", "algorithm.sigmas.per_sample=1", "optimizer.micro_batch=6",
    "checkpoint.every=1", "evaluate.every=0", "evaluate.clips=1",
    "cluster.rollout_workers=1", "cluster.rollout_gpus=0.0", "cluster.rollout_cpus=0.5",
    "cluster.learner_ranks=1", "cluster.learner_gpus=0.0", "cluster.learner_cpus=0.5", "cluster.zero_stage=2",
    "rewards.0.num_cpus=0.05", "rewards.1.num_gpus=0.0", "rewards.2.num_gpus=0.0", "rewards.3.num_gpus=0.0",
)  # fmt: skip
"""The example without a GPU: sizes and processes, and nothing of the rewards but where they run."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example where all that it names is there."""
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_example_is_valid_where_its_files_are(job: Path) -> None:
    found = CliRunner().invoke(app, ["validate", str(job)])
    assert found.exit_code == 0, found.stderr
    tree = json.loads(found.stdout)
    weights = {reward["name"]: reward["weight"] for reward in tree["rewards"]}
    assert {name: weight for name, weight in weights.items() if weight} == FIVE
    for modality, names in BRANCHES.items():
        driving = {reward["name"] for reward in tree["rewards"] if reward["route"] in (modality, "both")}
        assert {name for name in driving if weights[name]} == {*names}
    bundle = str(job.parent / "OmniNFT-Reward-Series")
    assert {reward["path"] for reward in tree["rewards"] if reward["name"] in FIVE} == {bundle}
    assert (tree["sampling"]["num_steps"], tree["sampling"]["audio_guidance"]) == (20, 3.0)
    assert found.stderr.count("Departs") == 1 and "/algorithm/loss/normaliser" in found.stderr


def test_a_file_that_is_missing_is_named_with_its_reward(job: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["validate", str(job), "--set", f"rewards.0.models={tmp_path}"])
    assert found.exit_code == 2
    lines = [" ".join(line.split()) for line in found.stderr.splitlines()]
    for index, name in enumerate(FIVE):
        told = [line for line in lines if line.startswith(f"error: /rewards/{index}/path: {name}: {tmp_path}")]
        assert len(told) == 1, (name, lines)


def test_the_example_can_be_planned(job: Path) -> None:
    found = CliRunner().invoke(app, ["plan", str(job), "--json"])
    assert found.exit_code == 0, found.stderr
    plan = json.loads(found.stdout)
    assert plan["gpus"] == {"rollout_workers": 4.0, "learner_ranks": 2.0, "rewards": 2.0}
    bundle = job.parent / "OmniNFT-Reward-Series"
    assert plan["rewards"]["desync"]["files"] == (bundle / "synchformer/synchformer_state_dict.pth").stat().st_size
    assert plan["rewards"]["clap"]["files"] == sum(file.stat().st_size for file in (bundle / "CLAP").iterdir())
    assert not [note for note in plan["notes"] if "num_gpus" in note]
    spec = JobSpec.parse(json.dumps(read_job(job, ["rewards.3.num_gpus=0.0"])))
    assert [*reward_notes(spec.rewards)] == ["without num_gpus these rewards run on a CPU, slowly: desync"]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_steps_with_all_of_them_served(job: Path, tmp_path: Path) -> None:
    tree = read_job(job, ON_TWO_CORES)
    tree["rewards"] = tree["rewards"][:4]  # the preset and what is laid over it
    with running_service(tmp_path, ACCORD_INPUT_ROOTS=str(job.parent)) as service:
        job_id = service.submit(tree)
        service.finish(job_id, 420)
        folder = service.run_dir(job_id)
    steps = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    for metrics in steps:
        for name in FIVE:
            low, high = spec_class("rewards", name).range
            assert metrics[f"reward/{name}/valid_ratio"] == 1.0, name
            assert low <= metrics[f"reward/{name}/mean"] <= high and metrics[f"reward/{name}/std"] > 0, name
        for name in ("videoalign", "hpsv3", "clap"):
            assert abs(metrics[f"control/{name}/prompt_gap"]) > 1e-4, name
        for modality in BRANCHES:
            assert metrics[f"advantage/{modality}/std"] > 0 and metrics[f"gradient/{modality}/00"] > 0
    specs = JobSpec.parse((folder / "spec.json").read_text()).rewards
    roster = json.loads((folder / "roster.json").read_text())
    assert {name: (one["version"], one["weights_digest"]) for name, one in roster.items()} == {
        spec.name: (spec.version, build(spec).weights_digest) for spec in specs
    }
    assert len({one["weights_digest"] for one in roster.values()}) == len(FIVE)
    assert (folder / "checkpoints" / "step-000002" / "policy-000002.safetensors").is_file()
    evaluated = json.loads((folder / "evaluation" / "step-000002.json").read_text())
    assert [sample["reasons"] for sample in evaluated["samples"]] == [dict.fromkeys(FIVE, "ok")] * 4
