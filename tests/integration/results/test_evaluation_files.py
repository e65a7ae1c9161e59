"""What the learner's evaluator writes is what the summary reads: the real writer, a source of world clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.backbones.base import Conditions
from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.run_folder import RunFolder
from accord.types import Clip, GroupData, Prompt, RewardScores, RolloutRequest, SampleGroup, ScoredGroup
from accord.world.scene import HELD_OUT_PROMPTS, make_clip, write_prompt_file
from learner.evaluate import Evaluator
from services.results.comparison import summary_rows
from services.results.summary import build_summary


class Source:
    """Answers evaluations with clips of the world; the score is `level` where sound and picture belong together."""

    def __init__(self) -> None:
        self.level = 0.2

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        return [self._group(request) for request in requests]

    def _group(self, request: RolloutRequest) -> ScoredGroup:
        clips = []
        for index, _ in enumerate(request.seeds):
            clips.append(make_clip(HELD_OUT_PROMPTS[request.prompt_index], request.prompt_index, index).clip)
        data = GroupData(dict.fromkeys(("video", "audio"), np.zeros((2, 3, 4), np.float32)), Conditions({}))
        scores = self._scores([self.level + 0.01 * (request.prompt_index + index) for index in range(2)])
        return ScoredGroup(SampleGroup(request, request.policy_version, data, clips), {"sync": scores})

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        return {"sync": self._scores([0.05 + 0.01 * (len(prompt.id) % 3)] * len(clips))}

    def _scores(self, values: list[float]) -> RewardScores:
        offsets = {"offset_s": (self.level / 10, math.nan)}
        return RewardScores("sync", "1", tuple(values), ("ok",) * 2, components=offsets)

    def fetch(self, handle: Any) -> Any:
        return handle


def test_the_summary_reads_what_the_evaluator_writes(tmp_path: Path) -> None:
    held_out, run_dir = tmp_path / "held_out.jsonl", tmp_path / "job-1"
    write_prompt_file(HELD_OUT_PROMPTS[:3], held_out)
    job = JobSpec.model_validate(
        {
            "steps": 2, "backbone": {"name": "ltx2", "path": "/models/other"}, "algorithm": {"name": "omninft"},
            "prompts": {"train": "train.jsonl", "held_out": str(held_out)}, "guards": {"allow_prompt_blind": True},
            "rewards": ({"name": "sync"},),
            "evaluate": {"samples_per_prompt": 2, "clips": 2},
        }
    )  # fmt: skip
    source = Source()
    evaluator = Evaluator(job, RunFolder(run_dir), source, load_prompts(held_out), lambda event: None)  # type: ignore[arg-type]
    evaluator.evaluate(0)
    source.level = 0.6
    evaluator.evaluate(2)
    summary = build_summary(RunFolder(run_dir), job, job_id="job-1", state="succeeded", wall_seconds=1.0)
    assert summary.warnings == []
    assert summary.samples_generated == 2 * 3 * 2
    assert summary.phase_seconds["evaluate"] > 0
    assert [(pair.prompt, pair.base is not None, pair.tuned is not None) for pair in summary.clips] == [
        (prompt.prompt_av, True, True) for prompt in HELD_OUT_PROMPTS[:2]
    ]
    rows = {row.name: row for row in summary_rows(summary)}
    assert np.isclose(rows["sync"].delta or 0, 0.4) and rows["sync"].paired and rows["sync"].verdict == "better"
    assert np.isclose(rows["sync_gap"].delta or 0, 0.4) and rows["sync_gap"].paired
    assert rows["sync_shuffled"].better is None
    assert np.isclose(rows["sync_offset_ms_median"].delta or 0, 40.0)
    assert rows["sync_offset_ms_median"].verdict == "worse"
