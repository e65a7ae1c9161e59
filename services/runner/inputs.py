"""The files that a spec names belong to the job: they may not change between its attempts.

The first attempt notes of every file its size, inode and times, and a digest: of the whole file where that is read
anyway, of the header where it is a model's weights. Digests of whole weights follow while the attempt trains. A later
attempt passes what has the same inode and times, compares digests of what has not, and refuses a file that changed, or
that was touched before its digest was noted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accord.config.files import JSON_BYTES, files_below, reading, stamp_of
from accord.config.job import JobSpec
from accord.config.lora_alpha import LORA_CONFIG
from accord.config.settings import Settings
from accord.config.weights import header_bytes
from accord.errors import ModelError, SpecError
from accord.ids import file_sha256
from accord.run_folder import INPUTS, SPEC, RunFolder

WEIGHTS = ".safetensors"

log = logging.getLogger("accord.inputs")

Entry = dict[str, Any]
"""What is noted of a file: `stamp`, and `sha256` or, until that is known, `header`."""


class Pins:
    """What is noted of a job's files."""

    def __init__(self, folder: RunFolder, entries: dict[str, dict[str, Entry]]) -> None:
        self._folder, self._entries = folder, entries

    def complete(self) -> None:
        """Add the digests of whole files that are not noted yet. Reads all weights; meant for a thread of its own."""
        for entry in (entry for files in self._entries.values() for entry in files.values()):
            if "sha256" in entry:
                continue
            path = Path(entry["path"])
            try:
                digest = file_sha256(path)
                if _stamp(path) == entry["stamp"]:  # else it changed meanwhile, and the next attempt refuses it
                    entry["sha256"] = digest
                    self.write()
            except OSError as error:
                log.warning("the digest of %s is not noted: %s", path, error)

    def complete_in_background(self) -> threading.Thread:
        """Start `complete`; the thread ends with the process."""
        thread = threading.Thread(target=self.complete, name="accord-pin", daemon=True)
        thread.start()
        return thread

    def write(self) -> None:
        """Write the note, whole or not at all."""
        self._folder.write_whole(INPUTS, json.dumps(self._entries, indent=1) + "\n")


def prepare(settings: Settings, job: JobSpec, folder: RunFolder) -> Pins:
    """Put the spec into the run folder, and hold the job's files to what is noted of them there. Raises SpecError."""
    with reading(settings.roots):
        pins = pin_inputs(job, folder)
    folder.write_whole(SPEC, job)
    return pins


def pin_inputs(job: JobSpec, folder: RunFolder) -> Pins:
    """Note the job's files in its run folder at the first attempt; compare them at any later one.

    Every file of every path field of the spec, of directories all files below. Raises SpecError that names every file
    that changed, appeared or went.
    """
    found = _found(job)
    if not folder.exists(INPUTS):
        pins = Pins(folder, {pointer: _first(files) for pointer, files in found.items()})
        pins.write()
        return pins
    noted = _noted(folder.read(INPUTS), found)
    problems = [
        (pointer, message)
        for pointer, files in found.items()
        for message in _differences(noted.setdefault(pointer, {}), files)
    ]
    if problems:
        raise SpecError(problems)
    pins = Pins(folder, noted)
    pins.write()
    return pins


def _found(job: JobSpec) -> dict[str, dict[str, Path]]:
    """Files by pointer and name. What a plug-in adds at a field that names one already goes by its path."""
    found: dict[str, dict[str, Path]] = {}
    for named in job.files():
        path, files = Path(named.path), found.setdefault(named.pointer, {})
        files |= {str(path / name) if files else name: file for name, file in _files(path, named.mark.kind)}
    return found


def _files(path: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """By name below the path; a file has none. A LoRA file's config belongs to it."""
    beside = path.with_name(LORA_CONFIG)
    if kind == "file":
        yield "", path
        if path.suffix == WEIGHTS and stamp_of(str(beside)) is not None:
            yield LORA_CONFIG, beside
    else:
        yield from ((str(file.relative_to(path)), file) for file in files_below(path))


def _first(files: dict[str, Path]) -> dict[str, Entry]:
    return {name: {"path": str(path), "stamp": _stamp(path), **_digests(path, name)} for name, path in files.items()}


def _digests(path: Path, name: str) -> Entry:
    """The whole file's digest, but for what is big and lies in a directory: then its header's, or none yet."""
    if not name or (path.stat().st_size <= JSON_BYTES and path.suffix != WEIGHTS):
        return {"sha256": file_sha256(path)}
    return {"header": _header(path)} if path.suffix == WEIGHTS else {}


def _header(path: Path) -> str:
    try:
        return hashlib.sha256(header_bytes(path)).hexdigest()
    except ModelError:
        return "none"  # no job's weights, or the check of the model refuses them


def _stamp(path: Path) -> list[int]:
    """Inode, size and times; no device, whose number is another one on each machine that mounts it."""
    return list(stamp_of(str(path)) or ())[1:]


def _differences(noted: dict[str, Entry], files: dict[str, Path]) -> Iterator[str]:
    remedy = "put the old file back, or submit a new job"
    for name in sorted(noted.keys() - files.keys()):
        yield f"{noted[name]['path']} has gone since the job began; {remedy}"
    for name, path in files.items():
        entry, stamp = noted.get(name), _stamp(path)
        if entry is None:
            yield f"{path} has appeared since the job began; take it away, or submit a new job"
        elif entry["stamp"] != stamp:
            if "sha256" not in entry:
                yield f"{path} was touched before its digest was noted, so it may have changed; submit a new job"
            elif file_sha256(path) != entry["sha256"]:
                yield f"{path} changed since the job began; {remedy}"
            else:
                entry["stamp"] = stamp


def _noted(text: bytes, found: dict[str, dict[str, Path]]) -> dict[str, dict[str, Entry]]:
    """A note; one that holds plain digests, of files alone, is as good for those."""
    noted: dict[str, Any] = json.loads(text)
    for pointer, entry in noted.items():
        if isinstance(entry, str):
            noted[pointer] = {"": {"path": str(found.get(pointer, {}).get("", "")), "stamp": [], "sha256": entry}}
    for pointer in found.keys() - noted.keys():
        noted[pointer] = _first(found[pointer])
    return noted
