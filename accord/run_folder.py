"""The run folder: everything that a job leaves, under names that are written here and nowhere else.

    spec.json                  the job, every field resolved
    inputs.json                what is known of the files that the job names
    roster.json                version and weights of each reward, as the first attempt found them
    canaries.json              what each reward said of the canary set before the first step
    metrics.jsonl              one StepCompleted per line, cut back to the checkpoint on resume
    checkpoints/step-000005/   a version and its optimizer, whole once its manifest matches
    evaluation/step-000010.json
    clips/                     what the base and the tuned model make of the same prompts and seeds
    adapter/                   the result, as diffusers loads it
    summary.json  report.html  artifacts.json
    logs/  learner/  exports/

It stands on a disk, or in any store that fsspec reaches (`s3://bucket/runs/job-1`). A disk gets what it can: rename,
append, sync. A store that knows neither renames nor appends is only ever given whole files. `path` is for what needs a
real folder under it; `local` and `writing` are for libraries that want a file by its path.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from accord.disk import append_whole, aside, write_whole
from accord.errors import UserError
from accord.events import ChangeSummary, RewardSummary, StepCompleted

if TYPE_CHECKING:
    from upath import UPath

SPEC = "spec.json"
INPUTS = "inputs.json"
ROSTER = "roster.json"
CANARIES = "canaries.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
ARTIFACTS = "artifacts.json"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
EVALUATION = "evaluation"
CLIPS = "clips"
LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers' `load_lora_weights` looks for."""
ADAPTER = f"adapter/{LORA_FILE}"
LOGS = "logs"
LEARNER = "learner"
EXPORTS = "exports"

BLOCK = 65_536
"""Bytes read at a time from the end of metrics.jsonl."""
RESULTS = ("adapter", CLIPS, EVALUATION)
"""Folders whose files are for people to take away."""

Label = Literal["base", "tuned"]
_CLIP = re.compile(rf"{CLIPS}/.+-(?P<seed>\d+)-(?P<label>base|tuned)\.mp4")
_STEP = re.compile(r"step-(\d{6,})", re.ASCII)


class Sample(BaseModel):
    """One held-out sample; what else is recorded of it nobody reads back."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    """The prompt's id."""
    seed: int
    scores: dict[str, float | None] = Field(default_factory=dict)


class Evaluation(BaseModel):
    """One evaluation, as far as it is read back."""

    model_config = ConfigDict(extra="ignore")

    step: int
    rewards: dict[str, RewardSummary]
    held_out: dict[str, RewardSummary]
    seconds: float = 0.0
    change: dict[str, ChangeSummary] = Field(default_factory=dict)
    """Difference to the first evaluation, paired by prompt and seed."""
    samples: list[Sample] = Field(default_factory=list)


class Artifact(BaseModel):
    """A file that can be downloaded from `/v1/jobs/{job}/artifacts/{id}`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """First 16 hex digits of sha256(name + job id): it says nothing about the file's place."""
    name: str
    """Path inside the run folder, with forward slashes."""
    media_type: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KeptClip:
    """A clip of a held-out prompt."""

    name: str
    seed: int
    label: Label


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A folder of `checkpoints/`, whole or torn."""

    step: int
    path: Path | UPath

    @property
    def name(self) -> str:
        """Its name in the run folder."""
        return f"{CHECKPOINTS}/{self.path.name}"

    def manifest(self) -> dict[str, Any]:
        """What the folder should hold; {} when that is missing or unreadable."""
        return _object_of(self.path / MANIFEST)

    def torn(self) -> str | None:
        """Say what is wrong with it, every byte compared; None when it is whole."""
        if not (self.path / MANIFEST).is_file():
            return f"{MANIFEST} is missing"
        try:
            for name, entry in self.manifest()["files"].items():
                file = self.path / name
                if (size := file.stat().st_size) != entry["bytes"]:
                    return f"{name} has {size} bytes, the manifest says {entry['bytes']}"
                if _sha256(file) != entry["sha256"]:
                    return f"{name} does not have the sha256 of the manifest"
        except FileNotFoundError:
            return f"{name} is missing"
        except (KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST} is unreadable: {error!r}"
        return None


class RunFolder:
    """The folder of one job. Names are relative, with forward slashes; `root` is a path or an address of fsspec's."""

    def __init__(self, root: str | Path) -> None:
        self.root: Path | UPath = Path(root)
        if "://" in str(root):
            from upath import UPath  # brings fsspec, which a folder on the disk does without

            self.root = UPath(root)

    @property
    def job_id(self) -> str:
        """The job whose folder it is: its name."""
        return self.root.name

    def path(self, name: str = "") -> Path:
        """A place on the disk, for what needs one. Raises UserError when the folder is not on a disk."""
        if not isinstance(self.root, Path):
            raise UserError(f"{self.root / name} is not on a disk of this machine, and what uses it needs that")
        return self.root / name

    def exists(self, name: str = "") -> bool:
        """True when something of that name is there, whole."""
        return (self.root / name).exists()

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises OSError, FileNotFoundError where there is none."""
        with _opened(self.root / name) as file:
            return file.read()

    def size(self, name: str) -> int:
        """Return a file's bytes in number. Raises OSError."""
        return (self.root / name).stat().st_size

    def inside(self, name: str) -> bool:
        """False for a name that leads out of the folder, by `..` or by a link."""
        if isinstance(self.root, Path):
            return (self.root / name).resolve().is_relative_to(self.root.resolve())
        return ".." not in PurePosixPath(name).parts and not name.startswith("/")

    def sha256(self, name: str) -> str:
        """Return the digest of a file in hexadecimal. Raises OSError when it cannot be read."""
        return _sha256(self.root / name)

    def read_object(self, name: str) -> dict[str, Any]:
        """Return a file's JSON object; {} when it is missing, unreadable, torn or none."""
        return _object_of(self.root / name)

    def write_whole(self, name: str, content: str | bytes | BaseModel) -> None:
        """Write a file so that readers see the old one or the new one; on a disk it is synced.

        Raises OSError, also for a disk without room; it may be repeated.
        """
        if isinstance(content, BaseModel):
            content = content.model_dump_json(indent=2) + "\n"
        content = content.encode() if isinstance(content, str) else content
        if isinstance(self.root, Path):
            write_whole(_with_parent(self.root / name), content, sync=True)
        else:
            self.root.fs.pipe_file((self.root / name).path, content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path of this machine to write a file to; it gets its name, whole, when the block ends without an error."""
        if isinstance(self.root, Path):
            with aside(_with_parent(self.root / name), sync=True) as draft:
                yield draft
            return
        with tempfile.TemporaryDirectory(prefix="accord-") as folder:
            draft = Path(folder) / Path(name).name
            yield draft
            self.root.fs.put_file(str(draft), (self.root / name).path)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A path of this machine to read a file or a folder from. Raises FileNotFoundError when it is not there."""
        if isinstance(self.root, Path):
            yield self.root / name
            return
        with tempfile.TemporaryDirectory(prefix="accord-") as folder:
            copy = Path(folder) / Path(name).name
            self.root.fs.get((self.root / name).path, str(copy), recursive=True)
            yield copy

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.root / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the whole folder, if it is there and no link. Raises OSError."""
        if not isinstance(self.root, Path):
            with suppress(FileNotFoundError):
                self.root.fs.rm(self.root.path, recursive=True)
        elif self.root.is_dir() and not self.root.is_symlink():
            shutil.rmtree(self.root)

    def files(self, folder: str = "", *, links: bool = True) -> list[str]:
        """The names of the files right below a folder, sorted; hidden ones, being written or abandoned, are none.

        With `links` off, no link counts, of the folder or of a file.
        """
        below, at = f"{folder}/" if folder else "", self.root / folder
        if not links and at.is_symlink():
            return []
        found = (path for path in at.glob("*") if not path.name.startswith(".") and path.is_file())
        return sorted(f"{below}{path.name}" for path in found if links or not path.is_symlink())

    def append_step(self, step: StepCompleted) -> None:
        """Add the line of a step. Raises OSError, and then nothing of the line is there."""
        line = step.model_dump_json().encode() + b"\n"
        if isinstance(self.root, Path):
            append_whole(_with_parent(self.root / METRICS), line)
        else:  # a store does not append
            self.write_whole(METRICS, (self.read(METRICS) if self.exists(METRICS) else b"") + line)

    def cut(self, step: int) -> None:
        """Drop lines and evaluations after `step`, and torn lines: they belong to a lineage that died."""
        if self.exists(METRICS):
            lines = self._lines()
            kept = [line + b"\n" for line in lines if type(at := parse_object(line).get("step")) is int and at <= step]
            self.write_whole(METRICS, b"".join(kept))
        for number, name in self._evaluations():
            if number > step:
                self.delete(name)

    def steps(self, warnings: list[str] | None = None) -> list[StepCompleted]:
        """The steps that were done, ascending. A line that is none, as a killed attempt leaves, becomes a warning."""
        steps: dict[int, StepCompleted] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                step = StepCompleted.model_validate_json(line)
            except ValidationError as error:
                if line.strip() and warnings is not None:
                    warnings.append(f"{METRICS}, line {number}: left out ({error.errors()[0]['msg']})")
                continue
            steps[step.step] = step
        return [steps[number] for number in sorted(steps)]

    def lines_backwards(self, most_bytes: int | None = None) -> Iterator[bytes]:
        """The lines of metrics.jsonl from its end, read in blocks, as far as `most_bytes` go. Raises OSError."""
        with _opened(self.root / METRICS) as file:
            end = file.seek(0, os.SEEK_END)
            first, begun = max(0, end - most_bytes) if most_bytes is not None else 0, b""
            while end > first:
                start = max(first, end - BLOCK)
                file.seek(start)
                block = file.read(end - start)
                if len(block) < end - start:
                    return  # cut back by an attempt that begins again
                begun, *lines = (block + begun).split(b"\n")
                yield from reversed(lines)
                end = start
            if first == 0:
                yield begun

    def _lines(self) -> list[bytes]:
        return self.read(METRICS).split(b"\n") if (self.root / METRICS).is_file() else []

    @staticmethod
    def evaluation(step: int) -> str:
        """The name of a step's evaluation."""
        return f"{EVALUATION}/step-{step:06d}.json"

    def evaluations(self, warnings: list[str] | None = None) -> list[Evaluation]:
        """The evaluations, by step. One that cannot be read becomes a warning."""
        found = []
        for _, name in self._evaluations():
            try:
                found.append(Evaluation.model_validate_json(self.read(name)))
            except (ValidationError, OSError) as error:
                if warnings is not None:
                    warnings.append(f"{name}: left out ({type(error).__name__})")
        return sorted(found, key=lambda one: one.step)

    def _evaluations(self) -> list[tuple[int, str]]:
        names = [name for name in self.files(EVALUATION) if name.endswith(".json")]
        found = ((_STEP.fullmatch(name[len(EVALUATION) + 1 : -len(".json")]), name) for name in names)
        return [(int(match[1]), name) for match, name in found if match]

    @staticmethod
    def clip(prompt: int, seed: int, label: Label) -> str:
        """The name of a clip: which prompt of the file, which seed. A prompt's id is data and names no file."""
        return f"{CLIPS}/prompt-{prompt:05d}-{seed}-{label}.mp4"

    def clips(self) -> list[KeptClip]:
        """The clips that were kept, by name."""
        found = (_CLIP.fullmatch(name) for name in self.files(CLIPS))
        return [KeptClip(match[0], int(match["seed"]), cast(Label, match["label"])) for match in found if match]

    @staticmethod
    def log(attempt: int) -> str:
        """The name of an attempt's log."""
        return f"{LOGS}/attempt-{attempt}.log"

    def checkpoint(self, step: int) -> CheckpointFolder:
        """The checkpoint of a step, whether it is there or not."""
        return CheckpointFolder(step, self.root / CHECKPOINTS / f"step-{step:06d}")

    def checkpoints(self) -> list[CheckpointFolder]:
        """The checkpoints that are there, whole or torn, by step."""
        paths = (self.root / CHECKPOINTS).glob("step-*")
        steps = (int(match[1]) for match in (_STEP.fullmatch(path.name) for path in paths) if match)
        return [self.checkpoint(step) for step in sorted(steps)]

    def artifacts(self) -> list[Artifact]:
        """What artifacts.json lists; nothing before it is there. An entry of another release is left out."""
        listed = self.read_object(ARTIFACTS).get("artifacts", [])
        found = []
        for entry in listed if isinstance(listed, list) else []:
            try:
                found.append(Artifact.model_validate(entry))
            except ValidationError:
                continue
        return found


def _with_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _opened(path: Path | UPath) -> BinaryIO:
    """Open for reading, without waiting for a writer where a pipe stands in the place of a file."""
    if isinstance(path, Path):
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    return cast(BinaryIO, path.open("rb"))


def _sha256(path: Path | UPath) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _object_of(path: Path | UPath) -> dict[str, Any]:
    try:
        with _opened(path) as file:
            return parse_object(file.read())
    except OSError:
        return {}


def parse_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object; {} when the text is torn or something else."""
    try:
        value = from_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
