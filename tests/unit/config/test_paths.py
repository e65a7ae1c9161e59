"""Every path field of every spec is found by its type, and what it names is opened with care."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pytest
from pydantic import BaseModel, Field

from accord.config import files
from accord.config.base import Spec
from accord.config.files import Roots, files_below, open_file, read_bytes, reading, remembered
from accord.config.job import JobSpec
from accord.config.paths import InputPath, input_paths
from accord.config.preflight import preflight
from accord.config.prompts import load_prompts
from accord.config.settings import Settings
from accord.config.weights import read_safetensors_header
from accord.errors import InputError, SpecError, UserError


class Ears(BaseModel):
    name: Literal["ears"] = "ears"
    weights: Annotated[str, InputPath("file", 10)] = ""


class Eyes(BaseModel):
    name: Literal["eyes"] = "eyes"
    looks: tuple[Annotated[str, InputPath("directory")], ...] = ()
    note: str = ""


class Hat(BaseModel):
    shape: Annotated[str, InputPath()] = ""


class Head(Spec):
    """What a plug-in may make of it: unions told apart by name, lists, optional ones, dictionaries."""

    parts: tuple[Annotated[Union[Ears, Eyes], Field(discriminator="name")], ...] = ()  # noqa: UP007
    spare: Annotated[str, InputPath()] | None = None
    hat: Hat | None = None
    by_name: dict[str, Annotated[str, InputPath()]] = Field(default_factory=dict)


def test_paths_are_found_by_their_type_in_specs_and_in_trees_that_need_not_be_valid() -> None:
    tree: dict[str, Any] = {
        "parts": [{"name": "eyes", "looks": ["a", "b"], "note": "c"}, {"name": "ears", "weights": "d"}],
        "spare": "e", "hat": {"shape": "h"}, "by_name": {"x/y": "f", "z": "builtin:g"},
    }  # fmt: skip
    expected = ["/parts/0/looks/0", "/parts/0/looks/1", "/parts/1/weights", "/spare", "/hat/shape", "/by_name/x~1y"]
    assert [named.pointer for named in input_paths(Head, tree)] == expected
    assert [named.pointer for named in input_paths(Head, Head.parse(json.dumps(tree)))] == expected
    broken = {"parts": [{"name": "mouth", "weights": "d"}, 3, {"name": "ears", "weights": 3}], "spare": []}
    assert list(input_paths(Head, broken)) == []


def test_the_paths_of_a_job(job_tree: dict[str, Any]) -> None:
    job_tree["backbone"] |= {"init_lora": "l"}
    job_tree["rewards"] = [{"name": "sync"}, {"name": "clap", "path": "c"}, {"name": "remote:a", "ca_file": "d"}]
    found = {named.pointer: named.mark.kind for named in input_paths(JobSpec, job_tree)}
    assert found == {
        "/backbone/path": "directory", "/backbone/init_lora": "file", "/prompts/train": "file",
        "/prompts/held_out": "file", "/rewards/1/path": "directory", "/rewards/2/ca_file": "file",
    }  # fmt: skip


FIELDS = (("prompts", "train"), ("prompts", "held_out"), ("backbone", "path"), ("backbone", "init_lora"))


@pytest.mark.parametrize("field", [*FIELDS, ("rewards", "path")], ids=".".join)
@pytest.mark.parametrize(
    "path",
    ["a\0b", "~nouser/x", "~/x", "x" * 300, "/".join(["ü" * 130, "x"]), "/x" * 2100, "é" * 4000],
    ids=["nul", "user", "home", "name", "bytes", "path", "bytes of path"],
)
def test_what_no_file_system_can_have_is_refused_by_the_spec(
    job_tree: dict[str, Any], field: tuple[str, str], path: str
) -> None:
    job_tree["rewards"] = [{"name": "clap", "route": "both"}]
    holder = job_tree["rewards"][0] if field[0] == "rewards" else job_tree[field[0]]
    holder[field[1]] = path
    pointer = "/rewards/0/path" if field[0] == "rewards" else "/" + "/".join(field)
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(json.dumps(job_tree))
    assert [where for where, _ in caught.value.problems] == [pointer]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp", "../x", "a" * 65, "a\n", "é", "~x"])
def test_a_text_cache_is_a_plain_name(job_tree: dict[str, Any], name: str) -> None:
    job_tree["backbone"]["text_cache"] = name
    with pytest.raises(SpecError, match="/backbone/text_cache"):
        JobSpec.parse(json.dumps(job_tree))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`in` is allowed but for `in/runs`; `out` is not; links go everywhere."""
    root = tmp_path / "in"
    (root / "runs" / "open").mkdir(parents=True)
    (root / "folder").mkdir()
    (tmp_path / "out").mkdir()
    for place in (root, root / "runs", root / "runs" / "open", root / "folder", tmp_path / "out"):
        (place / "file").write_text("text")
    (root / "kept").symlink_to("folder/file")
    (root / "away").symlink_to(tmp_path / "out" / "file")
    (root / "away_folder").symlink_to(tmp_path / "out")
    (root / "nowhere").symlink_to(tmp_path / "out" / "missing")
    (root / "loop").symlink_to("loop")
    (root / "inner_runs").symlink_to("runs")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(root)  # a socket's path is short
        try:
            made.bind("socket")
        finally:
            os.chdir(here)
    return root


def roots(tree: Path) -> Roots:
    return Roots.of((tree, tree / "runs" / "open"), (tree / "runs",))


@pytest.mark.parametrize(
    "name",
    ["missing", "away", "away_folder/file", "nowhere", "loop", "../out/file", "../out/missing", "runs/file",
     "inner_runs/file", "/dev/zero", "/etc/passwd", "/nowhere", "file/x"],
)  # fmt: skip
def test_missing_and_not_allowed_are_the_same_answer(tree: Path, name: str) -> None:
    with reading(roots(tree)), pytest.raises(InputError) as caught:
        open_file(tree / name, 100)
    assert str(caught.value) == f"{tree / name}: {files.NOT_FOUND}"
    assert "ACCORD_INPUT_ROOTS" in files.NOT_FOUND


@pytest.mark.parametrize("name", ["file", "kept", "folder/file", "folder/../file", "runs/open/file"])
def test_what_lies_within_is_read(tree: Path, name: str) -> None:
    with reading(roots(tree)) as seen:
        assert read_bytes(tree / name, 100) == b"text"
    assert list(seen) == [str(tree / name)]


@pytest.mark.parametrize("name", ["fifo", "socket", "folder"])
def test_only_regular_files_are_opened(tree: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        open_file(tree / name, 100)


def test_a_device_is_never_opened() -> None:
    for device in ("/dev/zero", "/dev/stdin", "/dev/null"):
        with pytest.raises(InputError):
            open_file(device, 100)


def test_a_disk_that_does_not_give_a_file_is_told(tree: Path) -> None:
    """The memory of a process is a regular file whose first bytes cannot be read."""
    for read in (lambda path: read_bytes(path, 100), load_prompts, lambda path: read_safetensors_header(Path(path))):
        with pytest.raises(UserError, match=r"mem: (cannot be read|torn)"):
            read("/proc/self/mem")


def test_a_file_beyond_its_bound_is_refused(tree: Path) -> None:
    with pytest.raises(InputError, match="has 4 bytes; at most 3 are read"):
        read_bytes(tree / "file", 3)


@pytest.mark.parametrize("name", ["away", "away_folder", "nowhere", "loop", "fifo", "socket"])
def test_a_folder_with_a_way_out_is_refused(tree: Path, name: str) -> None:
    (tree / name).rename(tree / "folder" / name)
    if name == "loop":
        (tree / "folder" / "loop").unlink()
        (tree / "folder" / "loop").symlink_to(tree / "folder" / "loop")
    with reading(roots(tree)), pytest.raises(InputError, match=f"folder/{name}: (not found|is not a regular)"):
        files_below(tree / "folder")


def test_a_folder_is_walked_once_and_so_far(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "folder" / "back").symlink_to(".")
    (tree / "folder" / "more").mkdir()
    (tree / "folder" / "more" / "link").symlink_to("../file")
    with reading(roots(tree)) as seen:
        found = [str(path.relative_to(tree)) for path in files_below(tree / "folder")]
    assert found == ["folder/file", "folder/more/link"] and str(tree / "folder" / "more") in seen
    monkeypatch.setattr(files, "MAX_ENTRIES", 3)
    with pytest.raises(InputError, match="more than 3 files"):
        files_below(tree / "folder")
    with pytest.raises(InputError, match="is not a folder"):
        files_below(tree / "file")


def test_facts_are_read_again_when_a_file_changed_and_only_then(tree: Path) -> None:
    reads = []

    def read(path: str) -> bytes:
        reads.append(path)
        return read_bytes(path, 100)

    path = str(tree / "file")
    assert [remembered(read, path) for _ in range(3)] == [b"text"] * 3 and len(reads) == 1
    (tree / "file").write_text("TEXT")
    assert remembered(read, path) == b"TEXT" and len(reads) == 2
    with reading(Roots.of((tree / "folder",), ())), pytest.raises(InputError):
        remembered(read, path)  # what one service may read is not what another may


def test_a_job_is_confined_in_every_field(job_tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    job_tree["backbone"]["init_lora"] = str(tmp_path / "lora.safetensors")
    job_tree["rewards"] = [{"name": "sync"}, {"name": "clap", "path": str(tmp_path / "clap")}]
    with pytest.raises(SpecError) as caught:
        preflight(JobSpec.parse(json.dumps(job_tree)), Roots.of((tmp_path / "only",), ()))
    problems = dict(caught.value.problems)
    assert problems.keys() == {
        "/backbone/path", "/backbone/init_lora", "/prompts/train", "/prompts/held_out", "/rewards/1/path",
    }  # fmt: skip
    assert all(message.endswith(files.NOT_FOUND) for message in problems.values())


def test_the_settings_say_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCORD_INPUT_ROOTS", raising=False)
    monkeypatch.chdir(tmp_path)
    here = Settings().roots
    assert here.hold(str(tmp_path / "jobs" / "a.jsonl")) and not here.hold(str(tmp_path.parent / "a.jsonl"))
    assert not here.hold(str(tmp_path / "runs" / "job" / "x")) and not here.hold(str(tmp_path / ".accord" / "key"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not Settings().roots.hold(str(tmp_path / "a.jsonl")), "a home folder holds more than jobs"
    monkeypatch.setenv("ACCORD_INPUT_ROOTS", f"/a:{tmp_path}")
    assert Settings().roots.allowed == ("/a", str(tmp_path))
    monkeypatch.setenv("ACCORD_INPUT_ROOTS", '["/a:b"]')
    assert Settings().roots.allowed == ("/a:b",)
    assert Settings().roots.hold(str(Path(files.__file__).parents[1] / "world" / "pretrained" / "tiny-ltx2"))
