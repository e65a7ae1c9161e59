"""Encoded prompts on disk: the same bits with and without, no text encoder while warm, nothing damaged is used."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from accord.backbones.text_cache import TextCache, content_digest

TEXTS = ["a red ball", "a blue drum", ""]


def bits(conditions) -> list[torch.Tensor]:
    return list(conditions.tensors.values())


def equal(first, second) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(bits(first), bits(second), strict=True))


@pytest.fixture
def no_encoder(monkeypatch):
    """From here on a text encoder that is loaded is an error."""

    def forbid() -> None:
        def refuse(*_args, **_kwargs):
            raise AssertionError("the text encoder was loaded")

        monkeypatch.setattr(Gemma3ForConditionalGeneration, "from_pretrained", refuse)

    return forbid


def test_a_warm_cache_gives_the_same_bits_without_the_encoder(
    ltx2_dir, load, tmp_path, no_encoder, caplog, monkeypatch
):
    cache = tmp_path / "texts"
    monkeypatch.setenv("ACCORD_TEXT_CACHE_DIR", str(tmp_path))
    plain = load(ltx2_dir).encode(TEXTS)
    cold = load(ltx2_dir, text_cache="texts")
    assert cold.text_pipeline is None and cold.pipeline.text_encoder is None
    assert equal(cold.encode(TEXTS), plain)
    assert len(list(cache.glob("*.safetensors"))) == 3
    damaged = cold.cache.path(TEXTS[1])
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 0x40
    damaged.write_bytes(content)
    assert equal(cold.encode(TEXTS), plain) and str(damaged) in caplog.text
    no_encoder()
    warm = load(ltx2_dir, text_cache="texts")
    assert equal(warm.encode(TEXTS), plain)
    assert warm.text_pipeline is None
    with pytest.raises(AssertionError, match="was loaded"):
        warm.encode(["a bell"])


def test_another_type_or_encoder_is_another_row(ltx2_dir, load, tmp_path, monkeypatch):
    cache = tmp_path / "texts"
    monkeypatch.setenv("ACCORD_TEXT_CACHE_DIR", str(tmp_path))
    load(ltx2_dir, text_cache="texts").encode(TEXTS[:1])
    narrow = load(ltx2_dir, text_cache="texts", dtype="bfloat16").encode(TEXTS[:1])
    assert narrow["video"].dtype == torch.bfloat16
    other = shutil.copytree(ltx2_dir, tmp_path / "other")
    (weights,) = (other / "text_encoder").glob("*.safetensors")
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    changed = load(other, text_cache="texts")
    changed.encode(TEXTS[:1])
    assert changed.text_pipeline is not None, "found by size and time alone"
    assert len(list(cache.glob("*.safetensors"))) == 3


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "model" / "text_encoder"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def test_the_digest_is_that_of_the_content(files, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    first = content_digest([files], kept)
    copy = shutil.copytree(files, tmp_path / "elsewhere" / "text_encoder")
    assert content_digest([copy], kept) == first, "the same content in another place"
    stat = (files / "a.safetensors").stat()
    (files / "a.safetensors").write_bytes(b"Weights")
    os.utime(files / "a.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_digest([files], kept) != first, "the same size and time"
    (copy / "a.safetensors").rename(copy / "b.safetensors")
    assert content_digest([copy], kept) != first, "another name"
    monkeypatch.setattr("accord.backbones.text_cache.file_sha256", lambda _: pytest.fail("read again"))
    content_digest([files], kept)


ROW = {"video": torch.arange(6.0).view(1, 2, 3).bfloat16(), "mask": torch.tensor([[1, 0]])}


@pytest.mark.parametrize("damage", ["flipped", "shorter", "empty", "another's", "no checksum"])
def test_a_damaged_file_is_never_used(tmp_path, caplog, damage):
    cache = TextCache(tmp_path, ("model", "float32"))
    cache.put("red", ROW)
    cache.put("blue", {**ROW, "mask": torch.tensor([[1, 1]])})
    path = cache.path("red")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    elif damage == "shorter":
        content = content[:-1]
    elif damage == "empty":
        content = bytearray()
    elif damage == "another's":
        content = bytearray(cache.path("blue").read_bytes())
    else:
        content = content.replace(b"sha256", b"sha255")
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="accord.text_cache"):
        assert cache.get("red") is None
    assert str(path) in caplog.text and "encoded again" in caplog.text
    cache.put("red", ROW)
    found = cache.get("red")
    assert found.keys() == ROW.keys() and all(torch.equal(found[name], ROW[name]) for name in ROW)
    assert TextCache(tmp_path, ("model", "bfloat16")).get("red") is None
    assert cache.get("green") is None


def test_a_disk_that_refuses_costs_the_entry_only(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = TextCache(tmp_path / "file" / "texts", ("model",))
    cache.put("red", ROW)
    assert cache.get("red") is None and "cannot be written" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
