"""What a run folder promises, on a disk and in a store that neither renames nor appends."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord import disk, run_folder
from accord.disk import aside, patiently, swap_in, write_whole
from accord.errors import UserError, VolumeFull
from accord.events import StepCompleted
from accord.run_folder import METRICS, SUMMARY, RunFolder


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    if request.param == "disk":
        yield RunFolder(tmp_path / "job-1")
        return
    found = RunFolder(f"memory://{uuid.uuid4().hex}/job-1")
    yield found
    found.remove()


@pytest.fixture
def on_disk(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "job-1")


def step(number: int) -> StepCompleted:
    return StepCompleted(step=number, policy_version=number, metrics={"a": 0.1}, phase_seconds={"learn": 1}, samples=2)


def evaluation(number: int) -> str:
    sample = {"prompt": "p", "seed": 2**60 + 1, "scores": {"r": 0.1}, "reasons": {}}
    return json.dumps({"step": number, "rewards": {}, "held_out": {}, "samples": [sample], "more": 1})


def leave(folder: RunFolder, name: str, content: bytes) -> None:
    """Put a file there as a process would that knows nothing of run folders."""
    path = folder.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_what_is_written_is_read(folder: RunFolder) -> None:
    assert (
        folder.job_id == "job-1"
        and not folder.exists()
        and not folder.exists(SUMMARY)
        and folder.read_object(SUMMARY) == {}
    )
    with pytest.raises(FileNotFoundError):
        folder.read(SUMMARY)
    for content, read in (("{}", b"{}"), (b"\x00\xff", b"\x00\xff"), ("é", "é".encode()), ("", b"")):
        folder.write_whole("deep/er/x", content)
        assert folder.exists() and folder.exists("deep/er/x") and folder.read("deep/er/x") == read
    folder.write_whole(SUMMARY, step(1))
    assert folder.read(SUMMARY).endswith(b"}\n") and folder.read_object(SUMMARY)["step"] == 1
    folder.delete(SUMMARY)
    folder.delete(SUMMARY)
    assert not folder.exists(SUMMARY)


@pytest.mark.parametrize("odd", [b"", b"[1]", b"null", b'{"a": 1', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_an_empty_one(folder: RunFolder, odd: bytes) -> None:
    leave(folder, SUMMARY, odd)
    assert folder.read_object(SUMMARY) == {}


def test_files_are_listed_by_name(folder: RunFolder) -> None:
    assert folder.files() == folder.files("clips") == []
    for name in ("clips/b.mp4", "clips/a.mp4", "clips/.a.mp4.1.tmp", "clips/deeper/c.mp4", "x.json"):
        folder.write_whole(name, b"1")
    assert folder.files() == ["x.json"] and folder.files("clips") == ["clips/a.mp4", "clips/b.mp4"]


def test_steps_come_back_in_order_and_torn_lines_become_warnings(folder: RunFolder) -> None:
    assert folder.steps() == [] and not folder.exists(METRICS)
    for number in (1, 2, 3):
        folder.append_step(step(number))
    leave(folder, METRICS, folder.read(METRICS) + b'\n{"step": 9}\n' + step(2).model_dump_json().encode()[:40])
    warnings: list[str] = []
    assert [one.step for one in folder.steps(warnings)] == [one.step for one in folder.steps()] == [1, 2, 3]
    assert [text.partition(":")[0] for text in warnings] == ["metrics.jsonl, line 5", "metrics.jsonl, line 6"]
    again = step(2).model_copy(update={"samples": 7})
    leave(folder, METRICS, folder.read(METRICS) + b"\n")
    folder.append_step(again)
    assert folder.steps()[1] == again


def test_a_step_is_one_line_as_the_event_says_it(folder: RunFolder) -> None:
    folder.append_step(one := step(1))
    folder.append_step(two := step(2))
    assert folder.read(METRICS) == b"".join(event.model_dump_json().encode() + b"\n" for event in (one, two))


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_lines_are_read_from_the_end(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(run_folder, "BLOCK", block)
    leave(folder, METRICS, b"one\ntwo\nthree\n")
    assert [*folder.lines_backwards()] == [b"", b"three", b"two", b"one"]
    assert [*folder.lines_backwards(most_bytes=8)] == [b"", b"three"]
    assert [*folder.lines_backwards(most_bytes=0)] == []


def test_cutting_drops_the_lineage_that_died(folder: RunFolder) -> None:
    folder.cut(3)
    assert not folder.exists(METRICS)
    for number in range(1, 6):
        folder.append_step(step(number))
    leave(folder, METRICS, folder.read(METRICS) + b'[1]\n{"step": "1"}\n{"st')
    kept = folder.read(METRICS).splitlines(keepends=True)[:3]
    for number in (0, 3, 4):
        folder.write_whole(folder.evaluation(number), evaluation(number))
    folder.write_whole("evaluation/notes.json", "mine")
    folder.cut(3)
    assert folder.read(METRICS) == b"".join(kept)
    assert [one.step for one in folder.evaluations()] == [0, 3] and folder.exists("evaluation/notes.json")


def test_evaluations_come_by_step(folder: RunFolder) -> None:
    assert folder.evaluations() == []
    for number in (1_000_000, 3, 0):
        folder.write_whole(folder.evaluation(number), evaluation(number))
    leave(folder, "evaluation/step-000002.json", b'{"step": 2')
    leave(folder, "evaluation/step-2.txt", b"")
    warnings: list[str] = []
    found = folder.evaluations(warnings)
    assert [one.step for one in found] == [0, 3, 1_000_000] and found[0].samples[0].seed == 2**60 + 1
    assert found[0].samples[0].scores == {"r": 0.1}
    assert warnings == ["evaluation/step-000002.json: left out (ValidationError)"]


def test_clips_are_known_by_seed_and_label(folder: RunFolder) -> None:
    assert folder.clips() == []
    name, base = folder.clip(10**6, 2**62, "tuned"), folder.clip(3, 6, "base")
    assert re.fullmatch(r"clips/[a-z0-9-]{1,60}\.mp4", name) and base == "clips/prompt-00003-6-base.mp4"
    for one in (name, base, "clips/any-6-old-5-base.mp4", "clips/x-base.mp4", "clips/p-1-other.mp4"):
        folder.write_whole(one, b"")
    found = {(clip.name, clip.seed, clip.label) for clip in folder.clips()}
    assert found == {
        (name, 2**62, "tuned"), (base, 6, "base"), ("clips/any-6-old-5-base.mp4", 5, "base")
    }  # fmt: skip


def test_a_name_that_leads_out_is_seen(folder: RunFolder, tmp_path: Path) -> None:
    folder.write_whole("clips/a.mp4", b"12")
    assert folder.inside("clips/a.mp4") and folder.inside("clips/none.mp4") and folder.size("clips/a.mp4") == 2
    assert not folder.inside("../job-2/clips/a.mp4") and not folder.inside("/etc/passwd")


def test_a_folder_can_be_removed(folder: RunFolder) -> None:
    folder.write_whole("clips/a.mp4", b"12")
    folder.remove()
    assert not folder.exists("clips/a.mp4") and folder.files("clips") == []


def test_links_are_files_only_where_they_may_be(on_disk: RunFolder, tmp_path: Path) -> None:
    on_disk.write_whole("clips/a.mp4", b"1")
    on_disk.path("clips/b.mp4").symlink_to(tmp_path / "job-1/clips/a.mp4")
    on_disk.path("more").symlink_to(on_disk.path("clips"))
    (tmp_path / "outside").write_bytes(b"")
    on_disk.path("clips/c.mp4").symlink_to(tmp_path / "outside")
    assert on_disk.files("clips") == [*on_disk.files("clips", links=False), "clips/b.mp4", "clips/c.mp4"]
    assert len(on_disk.files("more")) == 3 and on_disk.files("more", links=False) == []
    assert on_disk.inside("clips/b.mp4") and not on_disk.inside("clips/c.mp4")
    linked = RunFolder(tmp_path / "latest")
    linked.path().symlink_to(on_disk.path())
    linked.remove()
    assert on_disk.exists("clips/a.mp4")


def test_a_checkpoint_is_whole_when_every_byte_is(folder: RunFolder) -> None:
    assert folder.checkpoints() == [] and folder.checkpoint(5).torn() == "manifest.json is missing"
    content = b"weights"
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    for number in (5, 1_000_000, 6):
        folder.write_whole(f"checkpoints/step-{number:06d}/a", content)
    folder.write_whole("checkpoints/.step-000007.epoch-1.tmp/a", content)
    folder.write_whole("checkpoints/step-8.txt", content)
    five, six, million = folder.checkpoints()
    assert (five.step, six.step, million.step) == (5, 6, 1_000_000) and five.manifest() == {}
    folder.write_whole("checkpoints/step-000005/manifest.json", json.dumps({"files": {"a": entry}}))
    assert five.torn() is None and five.manifest()["files"]["a"]["bytes"] == 7
    folder.write_whole("checkpoints/step-000005/a", b"weights!")
    assert five.torn() == "a has 8 bytes, the manifest says 7"
    folder.write_whole("checkpoints/step-000005/a", b"weightz")
    assert five.torn() == "a does not have the sha256 of the manifest"
    folder.delete("checkpoints/step-000005/a")
    assert five.torn() == "a is missing"
    for odd in ("", "[]", '{"files": 3}', '{"files": {"a": 1}}', '{"files"'):
        folder.write_whole("checkpoints/step-000005/manifest.json", odd)
        folder.write_whole("checkpoints/step-000005/a", content)
        assert (five.torn() or "").startswith("manifest.json is unreadable: "), odd


@pytest.mark.parametrize("odd", [[], "x", {}, {"artifacts": 3}, {"artifacts": [None, {"id": 1}]}])
def test_artifacts_are_what_is_listed(folder: RunFolder, odd: object) -> None:
    assert folder.artifacts() == []
    entry = {"id": "a", "name": "clips/a.mp4", "media_type": "video/mp4", "bytes": 1, "sha256": "0"}
    folder.write_whole("artifacts.json", json.dumps({"job_id": "job-1", "artifacts": [{"id": "b"}, entry]}))
    assert [one.name for one in folder.artifacts()] == ["clips/a.mp4"]
    folder.write_whole("artifacts.json", json.dumps(odd))
    assert folder.artifacts() == []


def test_a_library_writes_by_path_and_the_file_comes_whole(folder: RunFolder) -> None:
    with folder.writing("clips/a.mp4") as path:
        path.write_bytes(b"half")
        assert not folder.exists("clips/a.mp4") and folder.files("clips") == []
        path.write_bytes(b"whole")
    assert folder.read("clips/a.mp4") == b"whole" and not path.exists()
    with pytest.raises(ZeroDivisionError), folder.writing("clips/a.mp4") as path:
        path.write_bytes(b"torn")
        raise ZeroDivisionError
    assert folder.read("clips/a.mp4") == b"whole" and not path.exists() and folder.files("clips") == ["clips/a.mp4"]


def test_a_library_reads_by_path(folder: RunFolder) -> None:
    folder.write_whole("checkpoints/step-000001/a", b"1")
    folder.write_whole("checkpoints/step-000001/b", b"2")
    with folder.local("checkpoints/step-000001/a") as path:
        assert path.read_bytes() == b"1"
    with folder.local("checkpoints/step-000001") as path:
        assert sorted(file.name for file in path.iterdir()) == ["a", "b"] and (path / "b").read_bytes() == b"2"


def test_it_travels_to_other_processes(folder: RunFolder) -> None:
    folder.write_whole("x", "1")
    assert pickle.loads(pickle.dumps(folder)).read("x") == b"1"


def test_what_needs_a_disk_says_so(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).path("learner") == tmp_path / "learner" and RunFolder(tmp_path).path() == tmp_path
    with pytest.raises(UserError, match="memory://runs/job-1/learner is not on a disk"):
        RunFolder("memory://runs/job-1").path("learner")


WRITER = """
import sys
from accord.events import StepCompleted
from accord.run_folder import RunFolder

folder, size = RunFolder(sys.argv[1]), 300_000
print("go", flush=True)
for number in range(1, 10**9):
    folder.write_whole("x.json", str(number % 10) * size)
    with folder.writing("clips/x.mp4") as path, path.open("w") as file:
        file.write("a" * size)
        file.write("b" * size)
"""


def test_a_writer_that_is_killed_leaves_nothing_torn(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job-1")
    for life in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder.root)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"go\n"
        for read in itertools.count():
            for name in ("x.json", "clips/x.mp4"):
                if folder.exists(name):
                    content = folder.read(name)
                    assert len(content) in (300_000, 600_000) and content[-1:] != b"a", (life, read, name)
            if read > 40 + 3 * life and folder.exists("clips/x.mp4"):
                break
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        writer.stdout.close()
        assert len(folder.read("x.json")) == 300_000
        assert folder.files() == ["x.json"] and folder.files("clips") in ([], ["clips/x.mp4"])


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(on_disk: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.write_whole(METRICS, b"")
    on_disk.append_step(step(1))
    before, real = on_disk.read(METRICS), os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) > 20:
            return real(handle, data[:20])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "write", half)
        with pytest.raises(OSError, match="full"):
            on_disk.append_step(step(2))
        with pytest.raises(VolumeFull):
            patiently(lambda: on_disk.append_step(step(2)), wait_s=0)
    assert on_disk.read(METRICS) == before
    on_disk.append_step(two := step(2))
    assert on_disk.read(METRICS) == before + two.model_dump_json().encode() + b"\n"


def test_a_full_disk_keeps_the_old_file_and_is_waited_for(on_disk: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.write_whole("x", "old")
    real, failures = os.fsync, [0]

    def full(handle: int) -> None:
        failures[0] += 1
        if failures[0] <= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        on_disk.write_whole("x", "new")
    assert on_disk.read("x") == b"old" and [path.name for path in on_disk.path().iterdir()] == ["x"]
    patiently(lambda: on_disk.write_whole("x", "new"))
    assert on_disk.read("x") == b"new" and failures[0] == 4


def test_a_file_is_synced_before_its_name_and_the_name_before_the_end(
    on_disk: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.path().mkdir()
    seen: list[str] = []
    flush, replace = disk.flush, Path.replace
    monkeypatch.setattr(disk, "flush", lambda path: (seen.append("file" if path.is_file() else "folder"), flush(path)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append("rename"), replace(path, to)))
    on_disk.write_whole("x", "1")
    assert seen == ["file", "rename", "folder"]


def test_a_pipe_in_the_place_of_a_file_blocks_nobody(on_disk: RunFolder) -> None:
    on_disk.path().mkdir()
    for name in (METRICS, "artifacts.json"):
        os.mkfifo(on_disk.path(name))
    assert on_disk.artifacts() == [] and on_disk.steps() == [] and on_disk.files() == []
    with pytest.raises(OSError):
        next(on_disk.lines_backwards())


def test_permissions_are_those_of_any_file_or_of_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "x", "1")
    write_whole(tmp_path / "secret", "1", private=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"plain": modes["x"], "x": modes["plain"], "secret": 0o600}


def test_a_link_is_put_in_place_like_a_file(tmp_path: Path) -> None:
    for target in ("a", "b"):
        with aside(tmp_path / "latest") as draft:
            draft.symlink_to(target)
        assert (tmp_path / "latest").readlink() == Path(target) and len([*tmp_path.iterdir()]) == 1


def test_a_folder_is_swapped_in_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, final = tmp_path / ".x.tmp", tmp_path / "x"
    with pytest.raises(FileNotFoundError):
        swap_in(draft, final)
    for content in ("old", "new"):
        draft.mkdir()
        (draft / "a").write_text(content)
        swap_in(draft, final)
        assert (final / "a").read_text() == content and [*tmp_path.iterdir()] == [final]
    swap_in(draft, final)  # again, after an error at its end
    assert (final / "a").read_text() == "new"
    draft.mkdir()
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path == draft:
            raise OSError(errno.EDQUOT, "over quota")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="over quota"):
        swap_in(draft, final)
    assert (final / "a").read_text() == "new"
