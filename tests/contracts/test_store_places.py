"""The embedded store works in a folder of any name that a file system takes."""

from pathlib import Path

import pytest

from accord.config.settings import Settings
from services.jobs.redis_store import open_store
from services.node.embedded import EmbeddedStore


@pytest.mark.parametrize(
    "name",
    [
        "a#b",
        "100%20",
        "q?m",
        "sp ace",
        "quo\"te'",
        "back\\slash\\x41",
        "ünï",
        "co:lon@at",
        "new\nline",
        "$HOME",
        "q?m\\g [a]",
    ],
)
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    settings = Settings(data_dir=tmp_path / name / "data", redis_url=None)
    settings.data_dir.mkdir(parents=True)
    with EmbeddedStore(settings.data_dir):
        store = open_store(settings)
        store.ready()
        store.close()
        assert (settings.data_dir / "store").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [name]
