"""Folders that `accord run` is given are tried before anything is sampled; who stops it hears how it goes on."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from accord.config.settings import Settings
from accord.errors import UserError
from services.cli.here import run

JOB = Path(__file__).parents[4] / "examples" / "tiny_omninft.toml"


@pytest.mark.parametrize("option", ["--out", "--save-groups"])
def test_a_folder_that_cannot_be_written_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    file = tmp_path / "file"
    file.touch()
    out, save = (file, None) if option == "--out" else (tmp_path / "run", file / "groups")
    with pytest.raises(UserError, match=f"{option} {file}.*: (File exists|Not a directory); name a folder that can"):
        run(JOB, [], Settings(), Console(file=StringIO()), out, save, None)


def test_who_stops_a_run_hears_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("services.runner.local.run_here", stopped)
    said = StringIO()
    with pytest.raises(KeyboardInterrupt):
        run(JOB, [], Settings(runs_dir=tmp_path), Console(file=said), None, None, None)
    assert f"--out {tmp_path}/tiny_omninft goes on from its last checkpoint" in said.getvalue()
