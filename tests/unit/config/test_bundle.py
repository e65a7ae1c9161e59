"""A reward's weights are found in the bundle, in their folder or by their file, and nothing else is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest

from accord.config.files import Roots, reading
from accord.config.rewards.bundle import BundledReward, part
from accord.types import Route


class _Sync(BundledReward):
    folder: ClassVar[str] = "synchformer"
    weight_files: ClassVar[tuple[str, ...]] = ("sync.pth", "sync.safetensors")
    name: Literal["sync_from_bundle"] = "sync_from_bundle"
    route: Route = "both"


class _Folder(BundledReward):
    folder: ClassVar[str] = "CLAP"
    name: Literal["clap_from_bundle"] = "clap_from_bundle"
    route: Route = "audio"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for folder, file in (("synchformer", "sync.pth"), ("CLAP", "config.json"), ("other", "big.bin")):
        (tmp_path / "bundle" / folder).mkdir(parents=True)
        (tmp_path / "bundle" / folder / file).write_bytes(b"x")
    return tmp_path / "bundle"


@pytest.mark.parametrize("way", ["", "synchformer", "synchformer/sync.pth"])
def test_a_file_is_found_by_three_ways(bundle: Path, way: str):
    assert part(bundle / way, "synchformer", "other.pth", "sync.pth") == bundle / "synchformer" / "sync.pth"


@pytest.mark.parametrize("way", ["", "CLAP"])
def test_a_folder_is_found_by_two_ways(bundle: Path, way: str):
    assert part(bundle / way, "CLAP") == bundle / "CLAP"


def test_a_file_of_any_name_is_taken_as_it_is(bundle: Path):
    renamed = bundle / "synchformer" / "sync.pth"
    renamed.rename(bundle / "mine.bin")
    assert part(bundle / "mine.bin", "synchformer", "sync.pth") == bundle / "mine.bin"


def test_what_is_not_there_is_named_where_it_should_be(bundle: Path):
    (bundle / "synchformer" / "sync.pth").unlink()
    assert part(bundle, "synchformer", "sync.pth", "b") == bundle / "synchformer" / "sync.pth"
    assert part(bundle / "nowhere", "synchformer", "sync.pth") == bundle / "nowhere"


def test_only_the_own_part_is_pinned(bundle: Path):
    (named,) = _Sync(path=str(bundle)).files()
    assert (named.pointer, named.path, named.mark.kind) == ("/path", str(bundle / "synchformer" / "sync.pth"), "file")
    (named,) = _Folder(path=str(bundle)).files()
    assert (named.path, named.mark.kind) == (str(bundle / "CLAP"), "directory")


def test_a_place_that_may_not_be_read_does_not_tell_what_is_in_it(bundle: Path, tmp_path: Path):
    with reading(Roots.of((tmp_path / "allowed",), ())):
        assert part(bundle, "synchformer", "sync.pth") == bundle
