"""The command line without a service: what it refuses, what it makes of a job file, what it shows."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from accord.config.job import JobSpec
from accord.errors import SpecError, UserError
from accord.events import EvaluationDone, Failed, Progress, RewardSummary, StateChanged, StepCompleted
from accord.run_folder import RunFolder
from services.cli.commands import app
from services.cli.demo import link_latest, show_result
from services.cli.job_file import read_job, shown
from services.cli.watch import JobPicture, sparkline, watch

JOB = """
name = "from a file"
steps = 2
[backbone]
name = "ltx2"
[prompts]
train = "train.jsonl"
held_out = "/abs/held.jsonl"
[guards]
allow_prompt_blind = true
[[rewards]]
name = "sync"
[[rewards]]
name = "clap"
path = "my-clap"
[algorithm]
name = "omninft"
"""


@pytest.fixture
def accord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("REDIS_URL", "RAY_ADDRESS", "ACCORD_API_KEY", "ACCORD_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCORD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ACCORD_RUNS_DIR", str(tmp_path / "runs"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ACCORD_PORT", str(probe.getsockname()[1]))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def one_line(result: Result, status: int, *words: str) -> None:
    assert result.exit_code == status, (result.output, result.stderr)
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.mark.parametrize("command", ["api", "runner"])
def test_no_store(accord: Any, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.signals.Signals.install", lambda signals: signals)
    monkeypatch.setattr("accord.logs.configure", lambda *_, **__: None)
    one_line(accord(command), 3, "no job store", "REDIS_URL", "accord up")


def test_no_ray(accord: Any) -> None:
    one_line(accord("rewards", "list"), 3, "no Ray", "RAY_ADDRESS", "accord up")


def test_no_key(accord: Any) -> None:
    one_line(accord("jobs"), 2, "no API key", "api-key", "accord up", "ACCORD_API_KEY")


def test_no_api(accord: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_API_KEY", "k" * 16)
    for command in (["jobs"], ["cancel", "job-x"], ["watch", "job-x"]):
        one_line(accord(*command), 3, "no API at", "accord up", "ACCORD_URL")


def test_a_bad_setting_is_named(accord: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_PORT", "many")
    one_line(accord("jobs"), 2, "ACCORD_PORT")


def test_an_empty_setting_is_named_and_a_wrong_secret_is_not_shown(
    accord: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "")
    one_line(accord("jobs"), 2, "REDIS_URL", "set but empty")
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.setenv("ACCORD_API_KEY", "hush")
    answer = accord("jobs")
    one_line(answer, 2, "ACCORD_API_KEY", "4 characters", "at least 16")
    assert "hush" not in answer.stderr


def test_validate_names_the_field(accord: Any, job_file: Path, tmp_path: Path) -> None:
    one_line(accord("validate", str(job_file), "--set", "steps=0"), 2, "/steps")
    one_line(accord("validate", str(job_file), "--set", "nonsense"), 2, "--set")
    one_line(accord("validate", str(tmp_path / "none.toml")), 2, "none.toml")
    (tmp_path / "torn.toml").write_text("steps = ")
    one_line(accord("validate", str(tmp_path / "torn.toml")), 2, "not valid TOML")
    missing = accord("validate", str(job_file))
    assert missing.exit_code == 2
    assert "/prompts/train" in missing.stderr and "/prompts/held_out" in missing.stderr


def test_validate_says_what_a_job_departs_from_and_what_its_surgery_means(accord: Any) -> None:
    example = str(Path(__file__).parents[4] / "examples" / "tiny_omninft.toml")
    runs = "{start = 0, stop = 1, keep = 0.0, unit = 'block'}, {start = 0.25, stop = 0.375, keep = 0.1}"
    changes = ("algorithm.preset=published", "sampling.stg_scale=0.0", f"algorithm.surgery.schedule=[{runs}]")
    published = accord("validate", example, *(word for change in changes for word in ("--set", change)))
    assert published.exit_code == 0, published.stderr
    spec = json.loads(published.stdout)
    assert (spec["sampling"]["shift"], spec["sampling"]["num_steps"]) == (2.05, 8)
    told = " ".join(published.stderr.split())
    assert "Departs from its preset: /sampling/num_steps: 8, and preset 'published' has 20." in told
    assert "surgery on the 4 blocks of this model: block 0 keeps 0 %, block 1 keeps 55 %, blocks 2-3 keep 100 %" in told
    assert "of what video sends into the sound; 63.7 % on average." in told
    assert "Departs" not in accord("validate", example).stderr


def test_export_names_what_is_missing(accord: Any, tmp_path: Path) -> None:
    one_line(accord("export", "job-x"), 2, "no job 'job-x'", str(tmp_path / "runs"))
    assert accord("export", "job-x", "--to", "pickle").exit_code == 2


def test_help_teaches(accord: Any) -> None:
    assert "examples/tiny_omninft.toml" in accord("--help").output
    assert "--set" in accord("submit", "--help").output
    assert "--replicas" in accord("rewards", "scale", "--help").output
    assert accord("nonsense").exit_code == 2


def test_a_mark_at_the_start_of_a_job_is_no_text(job_file: Path) -> None:
    plain = read_job(job_file)
    job_file.write_bytes(b"\xef\xbb\xbf" + JOB.encode())
    assert read_job(job_file) == plain
    text = shown(plain)
    assert JobSpec.parse("\ufeff" + text) == JobSpec.parse(b"\xef\xbb\xbf" + text.encode()) == JobSpec.parse(text)


def test_paths_are_relative_to_the_file(job_file: Path, tmp_path: Path) -> None:
    tree = read_job(job_file)
    assert tree["prompts"] == {"train": str(tmp_path / "train.jsonl"), "held_out": "/abs/held.jsonl"}
    assert tree["rewards"][1]["path"] == str(tmp_path / "my-clap")
    job_file.write_text(JOB.replace('name = "ltx2"', 'name = "ltx2"\npath = "builtin:tiny-ltx2"'))
    assert read_job(job_file)["backbone"]["path"] == "builtin:tiny-ltx2"
    job_file.write_text(JOB.replace('name = "ltx2"', 'name = "ltx2"\ntext_cache = ""\ninit_lora = "a.safetensors"'))
    backbone = read_job(job_file, ["backbone.path=~/model"])["backbone"]
    assert backbone["init_lora"] == str(tmp_path / "a.safetensors")
    job_file.write_text(JOB + '[subject]\nclips = "tuned"\n')
    subject = read_job(job_file, ["subject.clips_base=base"])["subject"]
    assert subject == {"clips": str(tmp_path / "tuned"), "clips_base": str(Path.cwd() / "base")}
    assert backbone["text_cache"] == "" and backbone["path"] == str(Path.home() / "model")


def test_overrides(job_file: Path) -> None:
    changes = ["steps=5", "rewards.0.weight=2.5", "cluster.learner_ranks=1", "name=plain words", 'labels.team="a"']
    tree = read_job(job_file, changes)
    assert (tree["steps"], tree["rewards"][0]["weight"]) == (5, 2.5)
    assert tree["cluster"] == {"learner_ranks": 1} and tree["name"] == "plain words" and tree["labels"]["team"] == "a"
    for wrong in ("steps", "=3", "rewards.7.weight=1", "rewards.x.weight=1", "name.inner=1", "rewards.9=1"):
        with pytest.raises(UserError, match="--set"):
            read_job(job_file, [wrong])
    assert read_job(job_file, ["prompts.train=here.jsonl"])["prompts"]["train"] == str(Path.cwd() / "here.jsonl")
    with pytest.raises(SpecError, match="cannot read"):
        read_job(job_file.with_name("none.toml"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2026-01-01", "a date or a time"),
        ("10:00:00", "a date or a time"),
        ("9" * 5000, "not valid TOML"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ('"\xe9', "not valid TOML"),
    ],
)
def test_any_value_in_a_job_file_is_read_or_told(job_file: Path, value: str, message: str) -> None:
    job_file.write_bytes(f"{JOB}\n[labels]\nday = {value}\n".encode("latin-1"))
    with pytest.raises(SpecError, match=message):
        read_job(job_file)
    assert read_job_set(job_file, f"labels.day={value}") == value  # not TOML for a field: a plain text


def read_job_set(job_file: Path, override: str) -> object:
    job_file.write_text(JOB)
    return read_job(job_file, [override])["labels"]["day"]


def test_an_override_sets_one_field(job_file: Path) -> None:
    assert read_job(job_file, ["name=1\nsteps = 7"])["name"] == "1\nsteps = 7"


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█" and sparkline([]) == "" and sparkline([3, 3]) == "▁▁"
    assert len(sparkline(range(100), width=30)) == 30


def events() -> list[Any]:
    metrics = {"reward/sync/mean": 0.25, "loss/total": 0.1, "reward/clap/mean": None}
    rewards = {"sync": RewardSummary(mean=0.2, sem=0.01, n=8)}
    return [
        StateChanged(state="running", attempt=2),
        Progress(phase="startup", step=0, done=1, total=4, detail="connecting to Ray"),
        EvaluationDone(step=0, role="policy", rewards=rewards, held_out={}),
        Progress(phase="rollout", step=1, done=3, total=8),
        StepCompleted(step=1, policy_version=1, metrics=metrics, phase_seconds={"learn": 2.0}, samples=8),
        Failed(reason="rollout", message="a [worker] died", retryable=True),
        StateChanged(state="succeeded", attempt=2),
    ]


def test_lines_without_a_terminal() -> None:
    console = Console(record=True, width=200, force_terminal=False)
    watch(iter(events()), JobPicture("job-x", 3), console)
    text = console.export_text()
    for line in (
        "running, attempt 2", "startup: connecting to Ray", "held-out at step 0 (policy): sync 0.200",
        "step 1/3  2.0 s  sync 0.250", "a [worker] died (will be tried again)", "succeeded, attempt 2",
    ):  # fmt: skip
        assert line in text, text


def test_a_live_picture() -> None:
    picture = JobPicture("job-x", 3, "a name")
    for event in events()[:5]:
        picture.apply(event)
    console = Console(record=True, width=120, force_terminal=True)
    watch(iter(events()), JobPicture("job-x", 3), console)
    console = Console(record=True, width=120)
    console.print(picture.render())
    text = console.export_text()
    for word in ("job-x", "a name", "step 1/3", "attempt 2", "3/8", "connecting to Ray", "sync", "0.250"):
        assert word in text, text


def test_result_table(tmp_path: Path) -> None:
    run_dir = tmp_path / "job-x"
    run_dir.mkdir()
    summary = {
        "job_id": "job-x", "name": "n", "state": "succeeded", "steps": 3, "steps_wanted": 3, "seed": 0, "guidance": 1.0,
        "wall_seconds": 61.0, "phase_seconds": {}, "adapter_sha256": None, "policy_version": 3,
        "samples_generated": 96, "components": {}, "environment": {}, "clips": [],
        "rewards": {
            "sync": {"route": "both", "weight": 1.0, "before": {"mean": 0.2, "sem": 0.03, "n": 8},
                     "after": {"mean": 0.5, "sem": 0.04, "n": 8}},
            "dynamic_degree": {"route": "video", "weight": 0.0, "before": {"mean": None, "sem": None, "n": 0},
                               "after": None},
        },
        "held_out": {"distance": {"before": {"mean": 2.0, "sem": None, "n": 1},
                                  "after": {"mean": 1.5, "sem": None, "n": 1}}},
    }  # fmt: skip
    (run_dir / "summary.json").write_text(json.dumps(summary))
    console = Console(record=True, width=140)
    show_result(RunFolder(run_dir), console)
    text = console.export_text()
    for word in ("0.200 ± 0.030", "0.500 ± 0.040", "+0.300 (+6.0)", "better", "not trained", "2.000", "-0.500",
                 "report.html", "guidance 1 (off)", "96 clips"):  # fmt: skip
        assert word in text, text


def test_latest_link(tmp_path: Path) -> None:
    for name in ("job-a", "job-b"):
        (tmp_path / name).mkdir()
        link_latest(tmp_path / name, tmp_path / "demo")
        assert (tmp_path / "demo").resolve().name == name
    (tmp_path / "real").mkdir()
    link_latest(tmp_path / "job-a", tmp_path / "real")
    assert not (tmp_path / "real").is_symlink()
