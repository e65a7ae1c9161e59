"""`accord rewards score | check | contract`: a reward in this process, without service, Ray or store.

consumes: names of rewards with their fields, and clips from files or from the canary set; produces: tables, or the same
as JSON. What is typed as a path means relative to where it was typed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accord.canary import canaries, digest
from accord.config.contract import RewardSpec
from accord.config.paths import InputPath
from accord.drift import FILE, CanaryScores, drift
from accord.errors import MediaError, UserError
from accord.media import CONTAINERS, read_mp4
from accord.plugins import answering, names, spec_class
from accord.run_folder import CANARIES
from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score, build, contiguous, unusable
from reward_servers.contract import Verdict
from services.cli.job_file import reward_fields

MIB = 2**20
MOST_BREACHES = 5
"""Lines that a promise gets in the table; the rest is counted."""
_NUMBERS = frozenset({"value", "first", "distance"})
"""Columns of numbers."""


def spec_of(name: str, overrides: Sequence[str] = (), weights: str = "") -> RewardSpec:
    """The spec of a reward with what `--set` and `--weights` say.

    Raises UserError: unknown reward, `--set` that cannot be read; SpecError: a field that is wrong or missing.
    """
    try:
        kind = spec_class("rewards", name)
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    given = [f"{_weights_field(kind, weights)}={json.dumps(weights)}"] if weights else []
    return kind.parse(json.dumps(reward_fields(name, [*given, *overrides])))


def _path_fields(kind: type[RewardSpec]) -> list[str]:
    return [
        name for name, field in kind.model_fields.items() if any(isinstance(mark, InputPath) for mark in field.metadata)
    ]


def _weights_field(kind: type[RewardSpec], weights: str) -> str:
    """The field that names the weights. Raises UserError where there is none, or more than one that may."""
    fields = _path_fields(kind)
    if not fields:
        raise UserError(f"--weights {weights}: {kind.model_fields['name'].default} has no weights; leave it out")
    if "path" not in fields and len(fields) > 1:
        raise UserError(f"--weights {weights}: it has several; name each: {', '.join(f'--set {f}=…' for f in fields)}")
    return "path" if "path" in fields else fields[0]


def without_weights() -> list[str]:
    """Rewards that can be tried as they are: no field must be given, and no file is named unless it is."""
    fields = {name: spec_class("rewards", name).model_fields for name in names("rewards")}
    return [
        name
        for name, of in fields.items()
        if not any(field.is_required() for field in of.values())
        and all(of[one].default == "" for one in _path_fields(spec_class("rewards", name)))
    ]


def chosen(rewards: Sequence[str], overrides: Sequence[str]) -> list[RewardSpec]:
    """Specs for `--reward`, each with the overrides that begin with its name. Raises UserError, SpecError."""
    wanted = list(dict.fromkeys(rewards)) or without_weights()
    by_name: dict[str, list[str]] = {name: [] for name in wanted}
    for override in overrides:
        name, dot, rest = override.partition(".")
        if not dot or name not in by_name:
            raise UserError(
                f"--set {override}: begin with one of the rewards, as --set {wanted[0]}.field=value; "
                f"there are {', '.join(wanted)}"
            )
        by_name[name].append(rest)
    return [spec_of(name, of) for name, of in by_name.items()]


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The clips among files and folders, a folder's sorted by name. Raises UserError where one has none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.glob("*") if file.suffix.lower() in CONTAINERS and file.is_file())
        if path.is_dir() and not inside:
            raise UserError(f"{path} holds no clip; one ends in {', '.join(CONTAINERS)}")
        found += inside or [path]
    return found


def decoded(path: Path) -> Clip:
    """A clip from its file. Raises UserError."""
    try:
        return read_mp4(path)
    except MediaError as error:
        raise UserError(str(error)) from error


def exemplars(name: str, overrides: Sequence[str], paths: Sequence[Path], out: Path) -> int:
    """Write clips from files as the exemplars of a reward. Returns how many. Raises UserError, SpecError."""
    kind = spec_class("rewards", name) if name in names("rewards") else RewardSpec
    if "exemplars" not in kind.model_fields:
        those = [one for one in names("rewards") if "exemplars" in spec_class("rewards", one).model_fields]
        raise UserError(f"{name} takes no exemplars; those that do: {', '.join(those)}")
    from accord.config.rewards.sets import ExemplarReward
    from reward_servers.sets.models import write_exemplars

    spec = cast(ExemplarReward, spec_of(name, [*overrides, f"exemplars={json.dumps(str(out))}"]))
    return write_exemplars(spec, (decoded(path) for path in files_of(paths)))


def score(
    paths: Sequence[Path], prompt: Prompt, specs: Sequence[RewardSpec], plot: Path | None
) -> Iterator[dict[str, Any]]:
    """Score each clip by each reward; one clip is held at a time, and each model is built once.

    Raises UserError for files that are no clips and a `--plot` that cannot be drawn; what building a model raises.
    """
    files = files_of(paths)
    if plot is not None and len(files) > 1 and plot.suffix:
        raise UserError(f"--plot {plot}: there are {len(files)} clips; name a folder for a picture of each")
    models = [build(spec) for spec in specs]
    for file in files:
        clip = decoded(file)
        yield {
            "file": str(file),
            "frames": list(clip.video_FHWC.shape[:3]),
            "fps": clip.fps,
            "samples": list(clip.audio_CS.shape),
            "sample_rate": clip.sample_rate,
            "scores": [_scored(model, prompt, clip) for model in models],
        }
        if plot is not None:
            _plotted(models, prompt, clip, file, plot if plot.suffix else plot / f"{file.stem}.png")


def _scored(model: RewardModel, prompt: Prompt, clip: Clip) -> dict[str, Any]:
    started = time.monotonic()
    ((found,),) = model.score([prompt], [[clip]])
    return {
        "reward": model.spec.name,
        "version": model.spec.version,
        **_plain(found),
        "seconds": time.monotonic() - started,
    }


def _plain(found: Score) -> dict[str, Any]:
    return {
        "value": found.value if found.valid else None,
        "valid": found.valid,
        "reason": found.reason,
        "components": {name: value if value == value else None for name, value in found.components.items()},
    }


def _plotted(models: Sequence[RewardModel], prompt: Prompt, clip: Clip, file: Path, target: Path) -> None:
    from services.cli.curves import draw

    found: dict[str, Sequence[Curve]] = {}
    for model in models:
        if unusable(clip, model.spec) is None:
            with answering(model.spec, "curves"):
                found[model.spec.name] = list(model.curves(prompt, contiguous(clip, model.spec.needs)))
    if not any(found.values()):
        asked = ", ".join(model.spec.name for model in models)
        raise UserError(f"--plot {target}: there is no curve of {file.name} to draw; asked were {asked}")
    try:
        draw(found, file.name, target)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {target}: {error}; name a file that can be written, as curves.png") from error


def show_scores(found: Mapping[str, Any], console: Console) -> None:
    """Print one clip's scores as a table."""
    frames, height, width = found["frames"]
    channels, samples = found["samples"]
    heard = f"{samples / found['sample_rate']:.2f} s of sound, {found['sample_rate']} Hz, {channels} channels"
    console.print(
        f"[bold]{escape(found['file'])}[/bold]  {frames} frames of {height}x{width} at {found['fps']:g} fps, {heard}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    table = _table("reward", "value", "reason", "components")
    for row in found["scores"]:
        table.add_row(row["reward"], *_cells(row, spec_class("rewards", row["reward"])))
    console.print(table)


def _cells(row: Mapping[str, Any], spec: type[RewardSpec]) -> tuple[str, str, str]:
    parts = []
    for name, value in row["components"].items():
        unit = spec.components[name].unit if name in spec.components else ""
        parts.append(f"{name} {'–' if value is None else f'{value:.4g}'}{f' {unit}' if unit else ''}")
    value = f"{row['value']:.4f}" if row["valid"] else "invalid"
    return value, row["reason"], ", ".join(parts)


def check(spec: RewardSpec) -> dict[str, Any]:
    """Load a reward's model, score the canary set clip by clip, and measure both. Raises what building it raises."""
    before, started = _resident(), time.monotonic()
    model = build(spec)
    loaded_s, loaded = time.monotonic() - started, _resident()
    rows, seconds = [], []
    for canary in canaries(spec):
        times = []
        for _ in range(2):
            started = time.monotonic()
            ((found,),) = model.score([canary.prompt], [[canary.clip]])
            times.append(time.monotonic() - started)
        seconds.append(times[-1])
        rows.append({"canary": canary.name, **_plain(found)})
    torch = sys.modules.get("torch")
    return {
        "reward": spec.name,
        "version": spec.version,
        "weights_digest": model.weights_digest,
        "licence": spec.licence,
        "noncommercial": spec.noncommercial,
        "load_seconds": loaded_s,
        "weights_mib": (loaded - before) / MIB,
        "peak_mib": (_resident() - before) / MIB,
        "gpu_mib": torch.cuda.max_memory_allocated() / MIB if torch is not None and torch.cuda.is_available() else 0.0,
        "seconds_per_clip": statistics.median(seconds),
        "clips_digest": digest(canary.clip for canary in canaries(spec)),
        "canaries": rows,
    }


def _scores(found: Mapping[str, Any]) -> CanaryScores:
    rows = found["canaries"]
    return CanaryScores(
        version=found["version"],
        clips=found["clips_digest"],
        values={row["canary"]: row["value"] for row in rows},
        reasons={row["canary"]: row["reason"] for row in rows},
    )


def keep_check(found: Mapping[str, Any], path: Path) -> None:
    """Write the values of a check, for later ones to be held against. Raises UserError."""
    try:
        path.write_bytes(FILE.dump_json({found["reward"]: _scores(found)}, indent=1) + b"\n")
    except OSError as error:
        raise UserError(f"--out {path}: {error}; name a file that can be written") from error


def compared(spec: RewardSpec, found: dict[str, Any], path: Path, tolerance: float) -> bool:
    """Add to each canary of a check its distance to the value in a file of an earlier one, or of a run. Returns whether
    the reward is another than it was.

    Raises UserError: no such file, or no scores of this reward's canaries in it.
    """
    try:
        first = FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = (
            error.strerror
            if isinstance(error, OSError)
            else f"it holds no canary scores ({error.error_count()} problems)"
        )
        raise UserError(
            f"--against {path}: {why}; name {CANARIES} of a run folder, or what `accord rewards check --out` wrote"
        ) from error
    if spec.name not in first:
        there = ", ".join(sorted(first)) or "nothing"
        raise UserError(f"--against {path}: it has no scores of {spec.name}; it has {there}")
    was, now = first[spec.name], _scores(found)
    if was.clips != now.clips:
        raise UserError(f"--against {path}: its canaries are other clips than those of this release; write it anew")
    apart = drift(spec, was, now, tolerance)
    if not apart.distances:
        said = ", ".join(sorted({*now.reasons.values()}))
        why = f"no canary has a score both there and now (now: {said}), so nothing is compared"
        raise UserError(f"--against {path}: {why}; run the check without it, and see what the reward lacks")
    for row in found["canaries"]:
        row |= {"first": was.values.get(row["canary"]), "distance": apart.distances.get(row["canary"])}
    found |= {"first_version": was.version, "tolerance": apart.bound, "drifted": apart.beyond}
    return apart.beyond


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(psutil.Process().memory_info().rss)


def show_check(found: Mapping[str, Any], console: Console) -> None:
    """Print what `check` found."""
    terms = f"{found['licence']}{', non-commercial' if found['noncommercial'] else ''}"
    gpu = f", {found['gpu_mib']:.0f} MiB on the GPU" if found["gpu_mib"] else ""
    for name, value in (
        ("reward", f"{found['reward']}, version {found['version']}"),
        ("weights", f"sha256:{found['weights_digest']}" if found["weights_digest"] else "none"),
        ("licence", terms),
        ("memory", f"{found['weights_mib']:.0f} MiB loaded, {found['peak_mib']:.0f} MiB after scoring{gpu}"),
        ("time", f"{found['load_seconds']:.2f} s to load, {found['seconds_per_clip'] * 1000:.1f} ms a clip (median)"),
    ):
        console.print(f" {name:8} {escape(value)}", soft_wrap=True, highlight=False)
    against = ("first", "distance") if "drifted" in found else ()
    rows = _table("canary", *against, "value", "reason", "components")
    for row in found["canaries"]:
        numbers = ["–" if row[name] is None else f"{row[name]:.4f}" for name in against]
        rows.add_row(row["canary"], *numbers, *_cells(row, spec_class("rewards", found["reward"])))
    console.print(rows)
    if against:
        said = "has drifted: a canary lies" if found["drifted"] else "is what it was: no canary lies"
        console.print(
            f" {found['reward']} {said} more than {found['tolerance']:.3g} standard deviations from its first value "
            f"(version {found['first_version']})", soft_wrap=True, highlight=False,
        )  # fmt: skip


def show_verdicts(name: str, verdicts: Sequence[Verdict], console: Console) -> None:
    """Print each promise, whether it was kept, and the offending values."""
    table = _table("promise", "", "what is promised, and what broke it")
    for verdict in verdicts:
        more = len(verdict.breaches) - MOST_BREACHES
        said = [verdict.promise.says, *(f"[red]{escape(line)}[/red]" for line in verdict.breaches[:MOST_BREACHES])]
        said += [f"[red]and {more} more[/red]"] if more > 0 else []
        kept = "[green]kept[/green]" if not verdict.breaches else "[red]BROKEN[/red]"
        table.add_row(verdict.promise.name, kept, "\n".join(said))
    console.print(table)
    broken = sum(bool(verdict.breaches) for verdict in verdicts)
    took = sum(verdict.seconds for verdict in verdicts)
    told = f"breaks {broken} of {len(verdicts)} promises" if broken else f"keeps all {len(verdicts)} promises"
    console.print(f"{name} {told} ({took:.1f} s).", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=column == columns[0])
    return table
