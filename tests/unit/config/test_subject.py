"""What an evaluation may leave out, what it refuses, and which files are the clips of a prompt."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from accord.config.job import JobSpec
from accord.config.panels import PANELS, missing
from accord.config.preflight import preflight
from accord.config.subject import clip_files
from accord.errors import InputError, SpecError
from accord.plugins import names, spec_class
from accord.types import Prompt

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
CAT, DOG = (Prompt(name, f"a {name}", f"a {name}", "a sound") for name in ("cat", "dog"))
ADAPTER = {
    "kind": "evaluate",
    "subject": {"adapter": "/p/lora.safetensors"},
    "backbone": {"name": "ltx2"},
    "prompts": {"held_out": "/p/held_out"},
    "rewards": [{"name": "sync"}],
}


def job(**changes: Any) -> JobSpec:
    return JobSpec.parse(json.dumps(ADAPTER | changes))


def refused(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        job(**changes)
    return caught.value.problems


def test_what_only_training_needs_may_be_left_out() -> None:
    made = job()
    assert (made.kind, made.steps, made.cluster.learner_ranks) == ("evaluate", 1, 1)
    assert [reward.weight for reward in made.rewards] == [0.0]
    assert job(rewards=[{"name": "sync", "weight": 2.0}]).rewards[0].weight == 2.0


def test_what_weights_and_groups_would_forbid_a_training_job_is_measured() -> None:
    imagebind = {"name": "imagebind_av", "path": "/p", "allow_noncommercial": True, "weight": 1.0}
    vendi = {"name": "audio_vendi", "weight": 1.0}
    made = job(rewards=[imagebind, vendi], prompts={"held_out": "/p/held_out", "group_size": 2})
    assert [reward.name for reward in made.rewards] == ["imagebind_av", "audio_vendi"]


def test_the_example_of_the_page_is_a_job_whatever_it_does_not_sample() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    made = JobSpec.parse(json.dumps(tomllib.loads(example)))
    assert made.rewards[0].name == "desync"
    with pytest.raises(SpecError, match=r"desync: judges no less than 4\.8 s"):
        job(rewards=[{"name": "desync", "path": "/p"}])


def test_the_resolved_job_is_the_same_job() -> None:
    made = job(panel="javis", rewards=[{"name": "sync", "deadline_s": 5.0}])
    assert JobSpec.parse(made.model_dump_json()) == made


def test_only_what_is_at_work_is_looked_at() -> None:
    files = [named.pointer for named in job().files()]
    assert files == ["/subject/adapter", "/prompts/train", "/prompts/held_out"]
    clips = {name: value for name, value in ADAPTER.items() if name != "backbone"} | {"subject": {"clips": "/p/clips"}}
    made = JobSpec.parse(json.dumps(clips))
    assert [place for place, _ in made.plugins()] == [("rewards", 0)]


@pytest.mark.parametrize(
    ("changes", "pointer", "told"),
    [
        ({"subject": None}, "/subject", "give an adapter, a checkpoint or clips"),
        ({"subject": {}}, "/subject", "names nothing to judge; give one of adapter, checkpoint, clips"),
        ({"subject": {"adapter": "/a", "clips": "/b"}}, "/subject", "names adapter, clips; give one of"),
        ({"subject": {"adapter": "/a", "clips_base": "/b"}}, "/subject/clips_base", "the base is sampled"),
        ({"steps": 5}, "/steps", "takes no optimizer steps; leave it out"),
        ({"cluster": {"learner_ranks": 2, "engine": "deepspeed"}}, "/cluster/learner_ranks", "one rank, not 2"),
        ({"kind": "train", "steps": 1, "algorithm": {"name": "awm"}, "prompts": {"train": "/t", "held_out": "/h"}},
         "/subject", "a training job has none; leave it out, or set kind = 'evaluate'"),
        ({"panel": "movies"}, "/panel", "'accord', 'javis', 'vbench' or 'audiocanvas' (got 'movies')"),
        ({"rewards": []}, "/rewards", "at least 1 item"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_field_and_a_remedy(
    changes: dict[str, Any], pointer: str, told: str
) -> None:
    found = refused(**changes)
    assert [where for where, _ in found] == [pointer], found
    assert told in found[0][1]


def test_a_training_job_still_needs_its_own_fields() -> None:
    found = {where for where, _ in refused(kind="train")}
    assert {"/steps", "/algorithm", "/prompts/train"} <= found


class TestPanels:
    def test_every_panel_names_rewards_that_there_are_and_that_need_no_weights(self) -> None:
        for panel in PANELS.values():
            assert {*panel.light, *panel.weighed} <= {*names("rewards")}
            for name in panel.light:
                assert list(spec_class("rewards", name)().files()) == []

    def test_its_rewards_come_behind_those_of_the_job_which_win_and_keep_their_numbers(self) -> None:
        made = job(panel="javis", rewards=[{"name": "clap"}, {"name": "sync", "deadline_s": 5.0}])
        assert [reward.name for reward in made.rewards] == ["clap", "sync", "text_audio", "text_video"]
        assert made.rewards[1].deadline_s == 5.0
        with pytest.raises(SpecError, match="/rewards/0/deadline_s"):
            job(panel="javis", rewards=[{"name": "clap", "deadline_s": -1.0}])

    def test_it_needs_no_rewards_beside_it(self) -> None:
        tree = {name: value for name, value in ADAPTER.items() if name != "rewards"} | {"panel": "vbench"}
        assert [reward.name for reward in JobSpec.parse(json.dumps(tree)).rewards] == [*PANELS["vbench"].light]

    def test_the_page_lists_what_each_brings_and_what_needs_weights(self) -> None:
        rows = re.findall(
            r"^\| `(\w+)`[^|]*\|([^|]*)\|([^|]*)\|[^|]*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
        )
        listed = {name: [{*re.findall(r"`(\w+)`", cell)} for cell in cells] for name, *cells in rows if name in PANELS}
        assert listed == {name: [{*panel.light}, {*panel.weighed}] for name, panel in PANELS.items()}

    def test_what_is_not_measured_is_said(self) -> None:
        told = missing("javis", {"sync", "clap"})
        assert "DeSync (Synchformer) (reward desync, needs weights)" in told and "JavisScore" in told
        assert "reward clap" not in told
        assert missing("accord", set()) == ""


def folder(path: Path, *files: str) -> Path:
    path.mkdir()
    for name in files:
        (path / name).write_bytes(b"")
    return path


class TestClips:
    def test_one_clip_of_each_prompt(self, tmp_path: Path) -> None:
        clips = folder(tmp_path / "c", "cat.mp4", "dog.mp4", "cat.txt", "cow.mp4")
        assert clip_files(clips, [CAT, DOG]) == {"cat": (clips / "cat.mp4",), "dog": (clips / "dog.mp4",)}

    def test_several_come_by_number_and_not_by_letter(self, tmp_path: Path) -> None:
        clips = folder(tmp_path / "c", "cat-10.mp4", "cat-2.mp4", "dog-0.mp4", "dog-1.mp4", "dog-x.mp4")
        assert [path.name for path in clip_files(clips, [CAT, DOG])["cat"]] == ["cat-2.mp4", "cat-10.mp4"]

    def test_an_id_is_data_and_leads_nowhere(self, tmp_path: Path) -> None:
        clips = folder(tmp_path / "c", "a.b.mp4", "axb.mp4")
        (tmp_path / "out.mp4").write_bytes(b"")
        assert clip_files(clips, [Prompt("a.b", "", "", "")])["a.b"] == (clips / "a.b.mp4",)
        with pytest.raises(InputError, match=r"holds no \.\./out\.mp4 and no"):
            clip_files(clips, [Prompt("../out", "", "", "")])

    @pytest.mark.parametrize(
        ("files", "told"),
        [
            (("cat.mp4",), r"holds no dog\.mp4 and no dog-0\.mp4; every held-out prompt needs one"),
            (("cat.mp4", "cat-0.mp4", "dog.mp4"), r"holds both cat\.mp4 and cat-0\.mp4; name a prompt's clips in one"),
            (("cat-0.mp4", "cat-1.mp4", "dog-0.mp4"), r"prompt 'dog' has 1 clips and 'cat' 2; give as many"),
        ],
    )
    def test_what_is_missing_is_named(self, tmp_path: Path, files: tuple[str, ...], told: str) -> None:
        with pytest.raises(InputError, match=told):
            clip_files(folder(tmp_path / "c", *files), [CAT, DOG])

    def test_before_a_job_is_taken_its_clips_are_looked_for(self, tmp_path: Path) -> None:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(
            json.dumps({"id": one.id, "prompt_av": one.prompt_av, "prompt_v": "v", "prompt_a": "a"}) + "\n"
            for one in (CAT, DOG)
        ))  # fmt: skip
        clips = folder(tmp_path / "c", "cat-0.mp4", "cat-1.mp4", "dog-0.mp4", "dog-1.mp4")
        base = folder(tmp_path / "b", "cat.mp4", "dog.mp4")
        tree = {
            "kind": "evaluate", "subject": {"clips": str(clips), "clips_base": str(base)},
            "prompts": {"held_out": str(prompts)}, "rewards": [{"name": "sync"}],
        }  # fmt: skip
        with pytest.raises(SpecError) as caught:
            preflight(JobSpec.parse(json.dumps(tree)))
        assert caught.value.problems == [
            ("/subject/clips_base", "1 clips of each prompt here, 2 in clips; they are compared one by one")
        ]
        (clips / "dog-0.mp4").unlink()
        with pytest.raises(SpecError, match=r"/subject/clips: .*prompt 'dog' has 1 clips and 'cat' 2"):
            preflight(JobSpec.parse(json.dumps(tree)))


class TestCheckpoints:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        found = folder(tmp_path / "step-000005", "policy-000005.safetensors")
        lora = json.loads(job().model_dump_json())["backbone"]["lora"]
        (found / "job.json").write_text(json.dumps({"backbone": {"lora": lora | {"rank": 4}}}))
        return found

    def problems(self, place: Path, tmp_path: Path, **lora: Any) -> list[tuple[str, str]]:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text(json.dumps({"id": "a", "prompt_av": "a", "prompt_v": "a", "prompt_a": "a"}))
        made = job(
            subject={"checkpoint": str(place)}, prompts={"held_out": str(prompts)},
            backbone={"name": "ltx2", "lora": lora},
        )  # fmt: skip
        try:
            preflight(made)
        except SpecError as error:
            return error.problems
        return []

    def test_one_of_another_adapter_is_refused_with_what_to_set(self, place: Path, tmp_path: Path) -> None:
        ((where, told),) = self.problems(place, tmp_path)
        assert where == "/subject/checkpoint" and "was trained with backbone.lora.rank = 4, this job has 16" in told
        assert self.problems(place, tmp_path, rank=4) == []

    def test_a_folder_of_another_kind_is_no_checkpoint(self, place: Path, tmp_path: Path) -> None:
        ((where, told),) = self.problems(tmp_path, tmp_path)
        assert where == "/subject/checkpoint" and "name a folder checkpoints/step-…" in told
