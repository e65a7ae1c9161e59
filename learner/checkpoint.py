"""Checkpoints that are either whole or not there.

    checkpoints/step-000005/
        policy-000005.safetensors            the roles of version 5; one file per version still needed
        optimizer-00000-of-00002.safetensors one per rank when the engine shards its state, else one
        job.json                             the resolved spec; a job with another one does not resume from here
        manifest.json                        written last: sha256 and size of every file above

Everything is written under a temporary name that carries the attempt's epoch, synced, and renamed. A directory whose
manifest is missing or does not match its files is torn: `latest` says so and takes the one before.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy
import safetensors.torch
from torch import Tensor

from accord.config.job import JobSpec
from accord.disk import flush, swap_in
from accord.errors import CheckpointError, SpecError
from accord.ids import PolicyVersion, file_sha256
from accord.run_folder import CHECKPOINTS, MANIFEST, RunFolder
from accord.types import PolicyState, Role
from learner.collectives import Ranks

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """What a checkpoint holds for one rank."""

    step: int
    states: Sequence[PolicyState]
    """Ascending versions, the last one is `step`."""
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk."""

    step: int
    path: Path
    bytes: int
    seconds: float


def read_policy(folder: RunFolder, step: int) -> tuple[JobSpec, PolicyState]:
    """Return the job and version `step` of the weights from the checkpoint of a step, for use outside a run.

    Raises CheckpointError when it is torn, SpecError when its job is not one that this release knows.
    """
    found = folder.checkpoint(step)
    torn = found.torn()
    if torn is not None:
        raise CheckpointError(f"{found.path} is torn ({torn}); take another step, or copy the folder again")
    with folder.local(found.name) as path:
        return JobSpec.parse((path / "job.json").read_text(encoding="utf-8")), _load_state(path, step)


class Checkpoints:
    """The checkpoints of one run. `save` and `latest` are called on every rank."""

    def __init__(
        self,
        folder: RunFolder,
        job: JobSpec,
        ranks: Ranks,
        *,
        epoch: int = 0,
        layout: str = "torch",
        sharded: bool = False,
        guard: Callable[[], None] = lambda: None,
        warn: Callable[[str, str], None] = lambda _code, _message: None,
        write: Callable[[Callable[[], Any]], Any] = lambda call: call(),
    ) -> None:
        """`guard` raises Fenced when the attempt lost the job; `warn(code, message)` reports a refused checkpoint.

        `write` does a write that may be repeated from its beginning.
        """
        self.write = write
        self.folder, self.job, self.ranks, self.epoch = folder, job, ranks, epoch
        self.directory = folder.path(CHECKPOINTS)
        self.layout, self.sharded, self.guard, self.warn = layout, sharded, guard, warn

    def save(self, step: int, states: Sequence[PolicyState], optimizer: Mapping[str, Tensor]) -> Saved:
        """Write the checkpoint of `step`, replace what stands there, drop old ones. Rank 0 needs `states`.

        Raises what `guard` raises before anything becomes visible; what `write` raises when the disk refuses.
        """
        started = time.monotonic()
        final = self.directory / self.folder.checkpoint(step).path.name
        draft = final.with_name(f".{final.name}.epoch-{self.epoch}.tmp")
        if self.ranks.first:
            shutil.rmtree(draft, ignore_errors=True)
            self.write(partial(draft.mkdir, parents=True, exist_ok=True))
        self.ranks.barrier()
        if self.sharded or self.ranks.first:
            self.write(partial(safetensors.torch.save_file, dict(optimizer), draft / self._shard()))
        self.ranks.barrier()
        size = 0
        if self.ranks.first:
            size = self.write(partial(self._complete, draft, step, states))
            self.guard()
            self.write(partial(swap_in, draft, final))  # what stands there was refused, or is this very step again
            self._prune(step)
        self.ranks.barrier()
        return Saved(step, final, size, time.monotonic() - started)

    def latest(self) -> Restored | None:
        """Return the newest whole checkpoint, None when there is none.

        Raises CheckpointError when it belongs to another job or to another engine layout or number of ranks.
        """
        step = self.ranks.from_first(self._newest() if self.ranks.first else 0)
        return self._load(step) if step else None

    def _shard(self) -> str:
        index, count = (self.ranks.index, self.ranks.count) if self.sharded else (0, 1)
        return f"optimizer-{index:05d}-of-{count:05d}.safetensors"

    def _complete(self, draft: Path, step: int, states: Sequence[PolicyState]) -> int:
        for state in states:
            tensors = {f"{role}/{name}": value for role, part in state.adapters.items() for name, value in part.items()}
            safetensors.numpy.save_file(tensors, draft / f"policy-{state.version:06d}.safetensors")
        (draft / "job.json").write_text(self.job.model_dump_json(indent=2), encoding="utf-8")
        files: dict[str, dict[str, Any]] = {}
        (draft / MANIFEST).unlink(missing_ok=True)
        for path in sorted(draft.iterdir()):
            flush(path)
            files[path.name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        manifest = {
            "format": FORMAT,
            "step": step,
            "epoch": self.epoch,
            "world_size": self.ranks.count,
            "layout": self.layout,
            "policy_versions": [int(state.version) for state in states],
            "files": files,
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        flush(draft / MANIFEST)
        flush(draft)
        return sum(entry["bytes"] for entry in files.values())

    def _prune(self, step: int) -> None:
        """Keep the newest of this lineage; anything later than `step` was refused, anything dotted was abandoned."""
        there = self.folder.checkpoints()
        kept = [known for known in there if known.step <= step][-self.job.checkpoint.keep :]
        for known in set(there) - set(kept):
            shutil.rmtree(self.directory / known.path.name, ignore_errors=True)
        for path in self.directory.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _newest(self) -> int:
        for found in reversed(self.folder.checkpoints()):
            torn = found.torn()
            if torn is None:
                return found.step
            self.warn("checkpoint_torn", f"{found.path} is torn ({torn}); falling back to the one before it")
        return 0

    def _load(self, step: int) -> Restored:
        manifest = self.folder.checkpoint(step).manifest()
        path = self.folder.path(self.folder.checkpoint(step).name)
        self._refuse_strangers(path, manifest)
        states = [_load_state(path, version) for version in manifest["policy_versions"]]
        return Restored(manifest["step"], states, safetensors.torch.load_file(path / self._shard()))

    def _refuse_strangers(self, path: Path, manifest: Mapping[str, Any]) -> None:
        found = {key: manifest.get(key) for key in ("format", "layout", "world_size")}
        here = {"format": FORMAT, "layout": self.layout, "world_size": self.ranks.count}
        differing = list(differences(found, here, ""))
        if not differing:  # another format may keep its job elsewhere
            written_by = _written_by(path)
            differing = list(differences(written_by.model_dump(mode="json"), self.job.model_dump(mode="json"), "/"))
        if differing:
            raise CheckpointError(
                f"{path}: {'; '.join(differing[:5])}; "
                "resume with the spec it was written by, or start in an empty run folder"
            )


def _written_by(path: Path) -> JobSpec:
    """The job of a checkpoint. Raises CheckpointError when it is not one that this release knows."""
    try:
        return JobSpec.parse((path / "job.json").read_text(encoding="utf-8"))
    except SpecError as error:
        raise CheckpointError(
            f"{path}: this release does not know the job it was written by ({error}); "
            "resume with the release that wrote it, or start in an empty run folder"
        ) from error


def differences(there: Mapping[str, Any], here: Mapping[str, Any], pointer: str) -> Iterator[str]:
    """Say of every field that differs what it is there and what it is here; `pointer` stands before its name."""
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{pointer}{key}/")
        elif old != new:
            yield f"{pointer}{key} is {old!r}, this job has {new!r}"


def _load_state(path: Path, version: int) -> PolicyState:
    adapters: dict[Role, dict[str, np.ndarray]] = {}
    for name, value in safetensors.numpy.load_file(path / f"policy-{version:06d}.safetensors").items():
        role, _, key = name.partition("/")
        adapters.setdefault(cast(Role, role), {})[key] = value
    return PolicyState(PolicyVersion(version), adapters)
