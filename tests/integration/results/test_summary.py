"""The summary tells what the run folder holds, and rows compare before and after honestly."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.config.job import JobSpec
from accord.events import ChangeSummary, RewardSummary
from accord.run_folder import SUMMARY, RunFolder
from accord.seeds import derive_seed
from services.results.comparison import headline, summary_rows, verdict_of
from services.results.summary import Change, Summary, build_summary, component_versions


def summarise(run_dir: Path, **changes: object) -> Summary:
    job = JobSpec.parse((run_dir / "spec.json").read_bytes())
    values = {"job_id": run_dir.name, "state": "succeeded", "wall_seconds": 331.4} | changes
    return build_summary(RunFolder(run_dir), job, **values)  # type: ignore[arg-type]


def test_every_field_of_the_document_is_there(finished_run: Path) -> None:
    summary = summarise(finished_run)
    document = json.loads(summary.model_dump_json())
    assert {
        "job_id", "state", "steps", "seed", "wall_seconds", "phase_seconds", "rewards", "held_out", "adapter_sha256",
        "policy_version", "samples_generated", "components", "clips", "guidance",
    } <= document.keys()  # fmt: skip
    assert document["phase_seconds"].keys() >= {"rollout", "reward", "learn", "publish", "checkpoint", "startup"}
    assert document["components"].keys() == {
        "store", "ray", "serve", "deepspeed", "zero_stage", "torch", "diffusers",
    }  # fmt: skip
    clap = document["rewards"]["clap"]
    assert (clap["route"], clap["before"]["mean"], clap["after"]["mean"], clap["after"]["n"]) == (
        "audio",
        0.75,
        0.96,
        64,
    )
    assert document["held_out"]["video_distance"]["before"] == {"mean": 3.32, "sem": 0.10, "n": 64}
    assert (document["steps"], document["policy_version"], document["seed"]) == (17, 17, 7)
    assert document["samples_generated"] == 17 * 64 + 2 * 8
    assert document["phase_seconds"]["reward"] == pytest.approx(17 * 1.4)
    assert document["phase_seconds"]["startup"] == 20.0
    assert document["phase_seconds"]["checkpoint"] == pytest.approx(3 * 0.3)
    assert document["phase_seconds"]["evaluate"] == 25.0
    assert document["adapter_sha256"] == hashlib.sha256(b"weights of the adapter").hexdigest()
    assert document["warnings"] == []


def test_clips_are_paired_by_seed_and_go_by_the_text_of_their_prompt(finished_run: Path) -> None:
    clips = summarise(finished_run).clips
    assert len(clips) == 3
    assert clips[0].prompt == "a red ball bouncing with a drum sound"
    assert clips[0].seed == derive_seed(7, "evaluate", 0, 0)
    for pair in clips:
        assert pair.base == f"clips/{pair.prompt_id}-{pair.seed}-base.mp4"
        assert pair.tuned == f"clips/{pair.prompt_id}-{pair.seed}-tuned.mp4"


def test_what_was_written_is_what_was_built(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=2, pairs=0)
    summary = summarise(run_dir)
    RunFolder(run_dir).write_whole(SUMMARY, summary)
    assert Summary.model_validate_json((run_dir / "summary.json").read_bytes()) == summary
    assert not list(run_dir.glob(".*"))


def test_a_job_that_was_killed_early_has_a_summary(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=4, pairs=1, after=False)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"type": "step", "step": 5, "poli')
    (run_dir / "adapter" / "pytorch_lora_weights.safetensors").unlink()
    (run_dir / "held_out.jsonl").unlink(missing_ok=True)
    summary = summarise(run_dir, state="failed", reason="rollout: gone")
    assert (summary.state, summary.steps, summary.policy_version, summary.adapter_sha256) == ("failed", 4, 4, None)
    assert summary.rewards["sync"].before is not None
    assert summary.rewards["sync"].after is None
    assert summary.clips[0].tuned is None
    assert len(summary.warnings) == 1
    assert "metrics.jsonl, line 5" in summary.warnings[0]
    assert {row.verdict for row in summary_rows(summary)} == {"not compared"}


def test_an_empty_folder_has_a_summary(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=0, pairs=0)
    for path in (run_dir / "evaluation").iterdir():
        path.write_text("{torn")
    (run_dir / "metrics.jsonl").unlink()
    summary = summarise(run_dir, state="failed")
    assert (summary.steps, summary.samples_generated, summary.held_out) == (0, 0, {})
    assert [text.split(":")[0] for text in summary.warnings] == [
        "evaluation/step-000000.json", "evaluation/step-000017.json",
    ]  # fmt: skip


def test_without_the_prompt_file_clips_go_by_their_id(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(steps=1, pairs=1)
    run_dir.with_name("held_out.jsonl").unlink()
    summary = summarise(run_dir)
    assert summary.clips[0].prompt == summary.clips[0].prompt_id == "red-bouncing-drum"
    assert "held_out.jsonl" in summary.warnings[0]


def test_the_plain_engine_names_no_deepspeed(finished_run: Path) -> None:
    tree = json.loads((finished_run / "spec.json").read_text())
    tree["cluster"] |= {"engine": "torch", "learner_ranks": 1}
    components = component_versions(JobSpec.parse(json.dumps(tree)), store="redis")
    assert (components["deepspeed"], components["zero_stage"], components["store"]) == (None, None, "redis")


def change(before: float, after: float, sem: float | None = 0.01, difference: float | None = None) -> Change:
    def estimate(mean: float) -> RewardSummary:
        return RewardSummary(mean=mean, sem=sem, n=8)

    paired = None if difference is None else ChangeSummary(mean=difference, sem=0.02, n=8)
    return Change(before=estimate(before), after=estimate(after), difference=paired)


def rows_of(summary: Summary, **held_out: Change) -> dict[str, object]:
    return {row.name: row for row in summary_rows(summary.model_copy(update={"held_out": held_out}))}


def test_rows_hold_difference_and_standard_errors(finished_run: Path) -> None:
    rows = {row.name: row for row in summary_rows(summarise(finished_run))}
    assert list(rows)[:2] == ["sound", "clap"]
    paired, independent = rows["clap"], rows["video_distance"]
    assert paired.paired and paired.delta == pytest.approx(0.21) and paired.error == pytest.approx(0.34 / 6)
    assert paired.z == pytest.approx(0.21 / (0.34 / 6))
    assert not independent.paired
    assert independent.error == pytest.approx(math.hypot(0.1, 0.1))
    assert independent.z == pytest.approx(-0.91 / math.hypot(0.1, 0.1))
    assert (paired.verdict, paired.trained, rows["temporal_flicker"].trained) == ("better", True, False)
    verdicts = {name: row.verdict for name, row in rows.items() if row.kind == "held_out"}
    assert verdicts == {
        "video_distance": "better", "audio_distance": "unchanged", "video_diversity": "different",
        "audio_diversity": "worse", "sync_shuffled": "unchanged", "sync_gap": "better",
        "sync_offset_ms_median": "better",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "moved", "verdict"),
    [
        ("video_distance", change(1.0, 0.9), "better"),
        ("video_distance", change(1.0, 1.02), "perhaps worse"),
        ("video_distance", change(1.0, 1.005), "unchanged"),
        ("video_distance", change(1.0, 0.5, sem=None), "no error known"),
        ("video_distance", change(1.0, 0.5, sem=0.0), "better"),
        ("video_distance", change(1.0, 1.0, sem=0.0), "unchanged"),
        ("video_diversity", change(1.0, 0.9), "worse"),
        ("video_diversity", change(1.0, 0.98), "perhaps worse"),
        ("video_diversity", change(1.0, 1.1), "different"),
        ("sync_gap", change(0.1, 0.2, difference=0.03), "perhaps better"),
        ("sync_shuffled", change(0.1, 0.2), "different"),
        ("third_party", change(1.0, 1.02), "perhaps different"),
        ("sync_gap", change(0.1, 0.109, sem=0.001), "slightly better"),
        ("sync_gap", change(0.1, 0.111, sem=0.001), "better"),
        ("sync_gap", change(0.1, 0.091, sem=0.001), "slightly worse"),
        ("video_distance", change(50.0, 49.5, sem=0.01), "slightly better"),
        ("video_distance", change(50.0, 48.9, sem=0.01), "better"),
        ("sync_offset_ms_median", change(100.0, 104.0, sem=0.1), "slightly worse"),
    ],
)
def test_verdicts_follow_direction_and_error(finished_run: Path, name: str, moved: Change, verdict: str) -> None:
    assert rows_of(summarise(finished_run), **{name: moved})[name].verdict == verdict  # type: ignore[attr-defined]


def test_a_reward_that_rises_no_more_than_its_control_is_not_called_better(finished_run: Path) -> None:
    summary = summarise(finished_run)
    assert rows_of(summary, sync_gap=change(0.16, 0.165))["sync"].verdict == "not beyond chance"  # type: ignore[attr-defined]
    assert rows_of(summary, sync_gap=change(0.16, 0.30))["sync"].verdict == "better"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("delta", "z", "better", "verdict"),
    [
        (0.02, 2.0, "higher", "better"),
        (0.02, 1.9, "higher", "perhaps better"),
        (0.005, 9.0, "higher", "slightly better"),
        (-0.005, -7.4, "higher", "slightly worse"),
        (-0.02, -7.4, "higher", "worse"),
        (-0.02, -0.9, "higher", "unchanged"),
        (0.005, 9.0, None, "slightly different"),
    ],
)
def test_better_takes_certainty_and_size(delta: float, z: float, better: str | None, verdict: str) -> None:
    assert verdict_of(delta, z, better, smallest=0.01) == verdict  # type: ignore[arg-type]


def told(summary: Summary, rewards: dict[str, Change], held_out: dict[str, Change] | None = None) -> str:
    """The headline of a summary whose rewards moved like this."""
    moved = {
        name: known.model_copy(
            update={side: getattr(rewards[name], side) for side in ("before", "after", "difference")}
        )
        for name, known in summary.rewards.items()
        if name in rewards
    }
    changed = summary.model_copy(update={"rewards": moved, "held_out": held_out or {}})
    return headline(changed, summary_rows(changed))


def test_the_headline_tells_what_got_worse_beside_what_got_better(finished_run: Path) -> None:
    text = told(
        summarise(finished_run),
        {
            "clap": change(0.5, 0.7, difference=0.2), "sound": change(0.6, 1.0, difference=0.4),
            "text_video": change(0.8, 0.70, difference=-0.1), "sync": change(0.1, 0.105, difference=0.03),
            "temporal_flicker": change(0.99, 0.842, difference=-0.148),
        },
        {"video_distance": change(50, 55, sem=0.5), "audio_diversity": change(1.0, 0.99, sem=0.001)},
    )  # fmt: skip
    assert text == (
        "2 of 4 trained rewards rose on held-out prompts, by two standard errors or more and by enough to matter. "
        "Worse: text_video (−5.0 standard errors), temporal_flicker (−7.4 standard errors, not trained on), "
        "video_distance (+7.1 standard errors, not trained on). "
        "Perhaps or slightly worse: audio_diversity (−7.1 standard errors, not trained on). "
        "Rose too little to count: sync (+1.5 standard errors). "
        "Saturated, at the top of the range: sound."
    )


def test_the_headline_says_when_nothing_got_worse_or_nothing_was_compared(finished_run: Path) -> None:
    summary = summarise(finished_run)
    text = told(summary, {"clap": change(0.5, 0.7), "sound": change(0.998, 0.9985, sem=0.0001)})
    assert text.endswith("Nothing that was measured got worse. Saturated, at the top of the range: sound.")
    assert text.startswith("1 of 2 trained rewards rose")
    assert told(summary, {}).startswith("Nothing was compared")


def test_a_metric_at_its_ceiling_is_saturated_but_a_certain_fall_from_it_is_told(finished_run: Path) -> None:
    summary = summarise(finished_run)

    def verdict(before: float, after: float, sem: float) -> tuple[str, bool]:
        known = summary.rewards["sound"].model_copy(update=dict(change(before, after, sem)))
        (row,) = summary_rows(summary.model_copy(update={"rewards": {"sound": known}, "held_out": {}}))
        return row.verdict, row.saturated

    assert verdict(1.0, 1.0, 0.0) == ("saturated", True)
    assert verdict(0.997, 0.9999, 0.0001) == ("saturated", True)
    assert verdict(0.6, 1.0, 0.0) == ("better", True)
    assert verdict(1.0, 0.996, 0.0001) == ("slightly worse", True)
    assert verdict(1.0, 0.9, 0.001) == ("worse", False)
