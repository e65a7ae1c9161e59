"""Encoded prompts on disk, so that a text encoder need not be loaded for prompts that were encoded once.

A row is found by what it was made from: the text, the content of the files that encode it, and what computed it. One
safetensors file per row, written whole or not at all, with a checksum that is verified on every read. A file that is
damaged is as good as missing. Nothing is ever deleted: a directory may be shared by any jobs and removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accord.disk import aside, write_whole
from accord.ids import file_sha256

FORMAT = "1"

log = logging.getLogger("accord.text_cache")


class TextCache:
    """Rows of tensors by text. `made_by` says everything else that a row depends on."""

    def __init__(self, directory: Path, made_by: Iterable[str]) -> None:
        self.directory = directory
        self.made_by = _digest(FORMAT, *made_by)

    def path(self, text: str) -> Path:
        """Where the row of a text is kept."""
        return self.directory / f"{self._key(text)}.safetensors"

    def get(self, text: str) -> dict[str, Tensor] | None:
        """Return the row of a text on the CPU, bit for bit as it was put; None when it is not there or is damaged."""
        path = self.path(text)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                row = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                whole = (file.metadata() or {}).get("sha256") == _checksum(self._key(text), row)
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s); the prompt is encoded again", path, error)
            return None
        if not whole:
            log.warning("%s is damaged: its checksum does not match; the prompt is encoded again", path)
        return row if whole else None

    def put(self, text: str, row: Mapping[str, Tensor]) -> None:
        """Keep a row. A disk that refuses costs the entry, not the job."""
        path = self.path(text)
        kept = {name: tensor.detach().to("cpu").contiguous() for name, tensor in row.items()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with aside(path) as draft:
                save_file(kept, draft, metadata={"sha256": _checksum(self._key(text), kept)})
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be written (%s); the prompt will be encoded again", path, error)

    def _key(self, text: str) -> str:
        return _digest(self.made_by, text)


def content_digest(folders: Iterable[Path], kept_in: Path) -> str:
    """Return the sha256 over names and contents of all files in `folders`, whatever their place.

    Reading gigabytes takes a while, so the result is kept in `kept_in` next to what the file system says about each
    file: size, inode, and the times of its last change, of which `ctime` cannot be set by hand.
    """
    listed = [(folder, file) for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    seen = _stats(file for _, file in listed)
    note = kept_in / f"digest-{_digest(*(str(folder.resolve()) for folder in folders))[:32]}.json"
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["files"] == seen:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing kept, or not readable: then it is computed
    names = ((f"{folder.name}/{file.relative_to(folder).as_posix()}", file) for folder, file in listed)
    found = _digest(*(part for name, file in names for part in (name, file_sha256(file))))
    if _stats(file for _, file in listed) == seen:
        _keep(note, {"files": seen, "sha256": found})
    return found


def _stats(files: Iterable[Path]) -> list[list[int | str]]:
    return [
        [str(file), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        for file in files
        for stat in [file.stat()]
    ]


def _keep(note: Path, content: Mapping[str, object]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(content))
    except OSError as error:
        log.warning("%s cannot be written (%s); the model's files will be read again next time", note, error)


def _digest(*parts: str) -> str:
    """sha256 over parts, unambiguously joined."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _checksum(key: str, row: Mapping[str, Tensor]) -> str:
    """sha256 over a row's key, names, types, shapes and bytes."""
    total = hashlib.sha256(key.encode())
    for name, tensor in sorted(row.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
