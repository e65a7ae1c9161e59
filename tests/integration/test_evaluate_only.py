"""Evaluations as jobs, as `accord run` does them: an adapter or a checkpoint of the tiny model, or clips in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accord.backbones.adapters import adapter_state, export_lora
from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.spec import LTX2Spec
from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.config.sampling import SamplingSpec
from accord.config.settings import Settings
from accord.errors import ModelError, SpecError, UserError
from accord.events import EvaluationDone, Event
from accord.ids import PolicyVersion
from accord.media import write_mp4
from accord.run_folder import ADAPTER, LORA_FILE, REPORT, SUMMARY, RunFolder
from accord.types import PolicyState
from accord.world.scene import CLEAN, HELD_OUT_PROMPTS, Imperfections, make_clip, write_prompt_file
from learner.checkpoint import Checkpoints
from learner.collectives import Ranks
from learner.evaluate_only import subject_state
from services.results.comparison import headline, summary_rows
from services.results.summary import Summary
from services.runner.local import run_here

LORA = {"rank": 4, "alpha": 6.0}
PROMPTS = Path(__file__).with_name("held_out_two.jsonl")


class Kept:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def evaluated(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, EvaluationDone)]


@pytest.fixture(scope="module")
def spec() -> LTX2Spec:
    return LTX2Spec.parse(json.dumps({"name": "ltx2", "lora": LORA}))


@pytest.fixture(scope="module")
def state(spec: LTX2Spec) -> dict[str, np.ndarray]:
    """Random tensors of a role, large enough to be heard and seen."""
    backbone = LTX2Backbone.load(spec, SamplingSpec(frames=9, num_steps=2), without=("text", "decoders"))
    rng = np.random.default_rng(5)
    return {
        key: (0.2 * rng.standard_normal(value.shape)).astype(np.float32)
        for key, value in adapter_state(backbone.velocity_model, "policy").items()
    }


@pytest.fixture(scope="module")
def adapter(spec: LTX2Spec, state: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / LORA_FILE
    export_lora(state, spec, path)
    return path


def job(subject: dict[str, str], **changes: Any) -> JobSpec:
    tree = {
        "kind": "evaluate", "subject": subject, "backbone": {"name": "ltx2", "lora": LORA},
        "sampling": {"frames": 9, "num_steps": 2}, "prompts": {"held_out": str(PROMPTS)},
        "rewards": [{"name": "sync"}, {"name": "text_video"}, {"name": "video_vendi"}],
        "evaluate": {"samples_per_prompt": 2, "clips": 2},
    }  # fmt: skip
    return JobSpec.parse(json.dumps(tree | changes))


def run(made: JobSpec, path: Path) -> tuple[RunFolder, Kept, Summary]:
    folder, events = RunFolder(path), Kept()
    preflight(made)
    run_here(Settings(), made, folder, events)
    return folder, events, Summary.model_validate_json(folder.read(SUMMARY))


@pytest.fixture(scope="module")
def judged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Kept, Summary]:
    return run(job({"adapter": str(adapter)}), tmp_path_factory.mktemp("runs") / "judged")


class TestAdapter:
    def test_the_base_and_then_the_adapter_are_scored_on_the_same_seeds(
        self, judged: tuple[RunFolder, Kept, Summary]
    ) -> None:
        folder, events, summary = judged
        assert events.evaluated == [0, 1] and summary.state == "succeeded"
        base, tuned = folder.evaluations()
        assert [(one.prompt, one.seed) for one in base.samples] == [(one.prompt, one.seed) for one in tuned.samples]
        assert len(base.samples) == summary.samples_generated / 2 == 4
        assert [one.scores for one in base.samples] != [one.scores for one in tuned.samples]
        assert not folder.exists(ADAPTER) and not folder.checkpoints()
        assert [bool(pair.base and pair.tuned) for pair in summary.clips] == [True, True]

    def test_the_change_is_that_of_the_samples_with_its_interval(self, judged: tuple[RunFolder, Kept, Summary]) -> None:
        folder, _, summary = judged
        base, tuned = folder.evaluations()
        change = summary.rewards["text_video"].difference
        per_prompt = np.subtract(*(
            np.reshape([sample.scores["text_video"] for sample in one.samples], (2, 2)) for one in (tuned, base)
        )).mean(axis=1)  # fmt: skip
        assert change is not None and change.mean == pytest.approx(per_prompt.mean())
        assert [change.low, change.high] == pytest.approx(sorted(per_prompt))  # of two prompts: one drawn twice

    def test_the_page_tells_an_evaluation(self, judged: tuple[RunFolder, Kept, Summary], adapter: Path) -> None:
        folder, _, summary = judged
        page = folder.read(REPORT).decode()
        assert str(adapter) in page and "rewards better" in page and "[" in page
        assert "Rewards while training" not in page and "optimizer steps" not in page and "AdamW" not in page
        assert headline(summary, summary_rows(summary)).startswith("Of 3 rewards, the subject against its base: ")

    def test_one_that_died_goes_on_and_does_nothing_twice(
        self, judged: tuple[RunFolder, Kept, Summary], adapter: Path
    ) -> None:
        folder, _, _ = judged
        first, second = folder.evaluation(0), folder.evaluation(1)
        kept, before = folder.read(first), json.loads(folder.read(second))
        for name in (SUMMARY, second):
            folder.delete(name)
        _, events, _ = run(job({"adapter": str(adapter)}), folder.path())
        assert events.evaluated == [1] and folder.read(first) == kept
        after = json.loads(folder.read(second))
        for one in (before, after):
            one.pop("at"), one.pop("seconds")
        assert after == before

    def test_the_file_is_read_at_the_scale_of_the_job(self, adapter: Path, state: dict[str, np.ndarray]) -> None:
        made = job({"adapter": str(adapter)})
        assert made.subject is not None
        found = subject_state(made, made.subject).adapters["policy"]
        assert found.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6)

    def test_a_checkpoint_is_as_good(
        self, judged: tuple[RunFolder, Kept, Summary], state: dict[str, np.ndarray], tmp_path: Path
    ) -> None:
        tree = json.loads(job({"adapter": "/a"}).model_dump_json()) | {"kind": "train", "subject": None}
        trained = JobSpec.parse(json.dumps(tree | {"rewards": [{"name": "sync"}]}))
        run_folder = RunFolder(tmp_path / "trained")
        version = PolicyState(PolicyVersion(5), {"policy": state, "old": dict.fromkeys(state, np.zeros(1))})
        Checkpoints(run_folder, trained, Ranks("cpu")).save(5, [version], {})
        made = job({"checkpoint": str(run_folder.path("checkpoints/step-000005"))})
        preflight(made)
        assert made.subject is not None
        found = subject_state(made, made.subject)
        assert found.version == 1
        for role in ("policy", "old"):
            assert all(np.array_equal(found.adapters[role][key], value) for key, value in state.items())

    def test_a_file_of_another_rank_is_refused_at_its_field(self, adapter: Path) -> None:
        with pytest.raises(SpecError, match=r"/subject/adapter: .*has rank 4, the job's adapter 8; set lora.rank = 4"):
            preflight(job({"adapter": str(adapter)}, backbone={"name": "ltx2", "lora": {"rank": 8, "alpha": 6.0}}))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A prompt file, clean clips, and clips of the same scenes whose sound is out of step."""
    root = RunFolder(tmp_path_factory.mktemp("clips"))
    write_prompt_file(HELD_OUT_PROMPTS[:3], root.path("held_out.jsonl"))
    broken = Imperfections(offset=1.0)
    for folder, flaws in (("clean", CLEAN), ("broken", broken)):
        for place, prompt in enumerate(HELD_OUT_PROMPTS[:3]):
            for number in range(2):
                write_mp4(make_clip(prompt, place, number, flaws).clip, root, f"{folder}/{prompt.id}-{number}.mp4")
    return root.path("held_out.jsonl"), root.path("clean"), root.path("broken")


class TestClips:
    def of(self, made: tuple[Path, Path, Path], **subject: str) -> JobSpec:
        tree = {
            "kind": "evaluate", "subject": subject, "prompts": {"held_out": str(made[0])},
            "rewards": [{"name": "sync"}, {"name": "sound"}, {"name": "text_video"}], "evaluate": {"clips": 1},
        }  # fmt: skip
        return JobSpec.parse(json.dumps(tree))

    def test_two_folders_are_compared_clip_by_clip(self, clips: tuple[Path, Path, Path], tmp_path: Path) -> None:
        made = self.of(clips, clips=str(clips[1]), clips_base=str(clips[2]))
        folder, events, summary = run(made, tmp_path / "run")
        assert events.evaluated == [0, 1] and summary.samples_generated == 0
        assert len(folder.evaluations()[1].samples) == 6
        row = next(row for row in summary_rows(summary) if row.name == "sync")
        assert row.verdict == "better" and row.low is not None and 0.2 < row.low < row.delta
        assert summary.held_out["sync_gap"].after is not None

    def test_one_folder_stands_alone(self, clips: tuple[Path, Path, Path], tmp_path: Path) -> None:
        folder, events, summary = run(self.of(clips, clips=str(clips[1])), tmp_path / "run")
        assert events.evaluated == [1] and summary.rewards["sync"].before is None
        assert "3 rewards were measured, and there is nothing to compare them with" in folder.read(REPORT).decode()
        with pytest.raises(UserError, match="an evaluation of clips samples no groups; leave them out"):
            run_here(Settings(), self.of(clips, clips=str(clips[1])), RunFolder(tmp_path / "x"), Kept(), save=tmp_path)

    def test_a_torn_clip_is_named(self, clips: tuple[Path, Path, Path], tmp_path: Path) -> None:
        folder = tmp_path / "torn"
        folder.mkdir()
        for file in clips[1].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        torn = folder / f"{HELD_OUT_PROMPTS[1].id}-0.mp4"
        torn.write_bytes(
            b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"
        )  # a playlist is no clip, and is not followed
        with pytest.raises(UserError, match=rf"/subject: cannot read the clip {torn}"):
            run(self.of(clips, clips=str(folder)), tmp_path / "run")


def test_a_plain_backbone_reads_what_export_writes(spec: LTX2Spec, state: dict[str, np.ndarray], adapter: Path) -> None:
    from accord.backbones.adapters import import_lora

    for key, value in import_lora(spec, str(adapter)).items():
        np.testing.assert_allclose(value, state[key], rtol=1e-6)
    with pytest.raises(ModelError, match="is no adapter file"):
        import_lora(spec, str(PROMPTS))
