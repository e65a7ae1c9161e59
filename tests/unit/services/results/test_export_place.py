"""An export that cannot be put into place leaves what stood there."""

import pytest

from services.results.export import _swap_in


def test_a_failed_exchange_puts_the_old_export_back(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "file").write_text("old")
    with pytest.raises(FileNotFoundError):
        _swap_in(tmp_path / ".export.1.tmp", target)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (target / "file").read_text() == "old"


def test_an_exchange_leaves_only_the_new_one(tmp_path):
    for name in ("export", ".export.1.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    _swap_in(tmp_path / ".export.1.tmp", tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "file").read_text() == ".export.1.tmp"
