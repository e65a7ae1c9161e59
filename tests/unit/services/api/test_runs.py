"""Curves are read from the end of their file, and no further than is asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from accord import run_folder
from accord.run_folder import RunFolder
from services.api import runs
from services.api.views import Series


def written(folder: Path, steps: int, width: int = 30) -> Path:
    metrics = {f"reward/{index}/mean": index / 7 for index in range(width)}
    lines = [json.dumps({"step": step, "metrics": metrics, "phase_seconds": {"learn": 1.0}}) for step in
             range(1, steps + 1)]  # fmt: skip
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the system gave, block by block."""
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
            block = super().read(size)
            read.append(len(block or b""))
            return block

    monkeypatch.setattr(run_folder, "_opened", Counted)
    return read


def test_the_last_ten_rows_of_a_long_file_cost_one_block(tmp_path: Path, count: list[int]) -> None:
    size = written(tmp_path, 20_000).stat().st_size
    assert runs.series(RunFolder(tmp_path), ["reward/1/mean"], 19_990).steps == list(range(19_991, 20_001))
    assert 0 < sum(count) <= run_folder.BLOCK < size / 100


def test_nothing_new_costs_one_block(tmp_path: Path, count: list[int]) -> None:
    written(tmp_path, 5_000)
    assert runs.series(RunFolder(tmp_path), since_step=5_000).steps == []
    assert sum(count) <= run_folder.BLOCK


@pytest.mark.parametrize("block", [1, 7, 1000, 2**20])
@pytest.mark.parametrize("since", [0, 1, 17, 39, 40, 99])
def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, since: int) -> None:
    monkeypatch.setattr(run_folder, "BLOCK", block)
    written(tmp_path, 40, width=3)
    found = runs.series(RunFolder(tmp_path), since_step=since)
    assert found.steps == list(range(since + 1, 41))
    assert all(len(curve) == len(found.steps) for curve in found.metrics.values())


def test_torn_lines_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, 5)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, '{"step": 9, "met', "", "[]", *rest, '{"step": 6, "metr']), encoding="utf-8")
    assert runs.series(RunFolder(tmp_path)).steps == [1, 2, 3, 4, 5]
    assert runs.series(RunFolder(tmp_path), since_step=3).steps == [4, 5]


def test_a_file_without_end_is_read_as_far_as_the_bounds_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: list[int]
) -> None:
    size = written(tmp_path, 3_000).stat().st_size
    monkeypatch.setattr(runs, "MAX_STEPS", 100)
    assert runs.series(RunFolder(tmp_path)).steps == list(range(2_901, 3_001))
    monkeypatch.setattr(runs, "MAX_STEPS", 20_000)
    monkeypatch.setattr(runs, "MAX_BYTES", size // 3)
    count.clear()
    steps = runs.series(RunFolder(tmp_path)).steps
    assert steps == list(range(steps[0], 3_001)) and 900 < len(steps) <= 1_001
    assert sum(count) <= size // 3
    (tmp_path / "metrics.jsonl").unlink()
    assert runs.series(RunFolder(tmp_path)).steps == []


@pytest.mark.parametrize("line", [
    b"[" * 100_000, b'{"step": true, "metrics": {"a": 1}}', b'{"step": 1' + b"0" * 100 + b', "metrics": {"a": 1}}',
    b'{"step": 2, "metrics": [1]}', b'{"step": 2, "metrics": null, "phase_seconds": 3}',
    b'{"step": 2, "metrics": {"a": "x"}}', b'{"step": 2, "metrics": {"a": {"b": 1}}}',
    b'{"step": 2, "metrics": {"a": NaN}}', b'{"step": 2, "metrics": {"a": ' + b"9" * 400 + b"}}",
    b'{"step": 2, "metrics": {"\\ud800": 1}}',
])  # fmt: skip
def test_an_odd_row_costs_no_other(tmp_path: Path, line: bytes) -> None:
    good = b'{"step": 1, "metrics": {"a": 0.5}, "phase_seconds": {"learn": 2}}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b"\n")
    found = Series.model_validate_json(runs.series(RunFolder(tmp_path)).model_dump_json())
    assert found.metrics["a"][0] == 0.5 and found.phase_seconds["learn"][0] == 2
    assert found.metrics["a"][1:] in ([], [None])


def test_a_folder_in_the_place_of_the_curves_is_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    assert runs.series(RunFolder(tmp_path)).steps == []


@pytest.mark.parametrize("odd", [
    {"media_type": "a/b\r\nX: y"}, {"media_type": "té"}, {"name": 3}, {"bytes": None},
])  # fmt: skip
def test_an_odd_entry_is_not_offered(tmp_path: Path, odd: dict[str, object]) -> None:
    good = {"id": "a", "name": "a", "media_type": "a/b", "bytes": 1, "sha256": "0"}
    (tmp_path / "artifacts.json").write_text(json.dumps({"artifacts": [good | odd | {"id": "b"}, good]}))
    assert [entry.id for entry in runs.artifacts(RunFolder(tmp_path))] == ["a"]
    for text in ("[" * 100_000, '{"artifacts": [{"id": "\\ud800"}]}'):
        (tmp_path / "artifacts.json").write_text(text)
        assert runs.artifacts(RunFolder(tmp_path)) == []
