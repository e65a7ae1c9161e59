"""The rewards of a job are what they were when it began: scores of two models do not mix in one run.

The first attempt notes of each reward the version and the digest of the weights that its server loaded; every later one
asks again before its first step, and goes on only if nothing changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from accord.config.job import JobSpec
from accord.errors import SpecError
from accord.run_folder import ROSTER, RunFolder
from accord.types import RewardIdentity


def hold_roster(job: JobSpec, folder: RunFolder, roster: Mapping[str, RewardIdentity]) -> None:
    """Note who answers for the job's rewards; compare it with the note of an earlier attempt.

    Raises SpecError that names each reward that changed, what it was and what it is.
    """
    found = {name: asdict(identity) for name, identity in roster.items()}
    noted: dict[str, dict[str, str]] = json.loads(folder.read(ROSTER)) if folder.exists(ROSTER) else {}
    problems = [
        (f"/rewards/{place}", f"{reward.name}: {message}")
        for place, reward in enumerate(job.rewards)
        if reward.name in noted
        for message in _changes(noted[reward.name], found[reward.name])
    ]
    if problems:
        raise SpecError(problems)
    if found.keys() - noted.keys():
        folder.write_whole(ROSTER, json.dumps({**found, **noted}, indent=1) + "\n")


def _changes(was: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    if was["version"] != now["version"]:
        yield (
            f"version {was['version']!r} when the job began, {now['version']!r} now; go on with the release that it "
            "began with, or submit a new job"
        )
    if was["weights_digest"] != now["weights_digest"]:
        yield (
            f"weights {was['weights_digest'] or 'none'} when the job began, {now['weights_digest'] or 'none'} now; put "
            "the old ones back, or submit a new job"
        )
