"""The end of a job as people see it: summary.json, report.html and artifacts.json in its run folder.

A job that succeeded is concluded by its attempt, before it is reported as succeeded; one that failed or was cancelled
by the supervisor, after it was reported, from whatever its attempts left.
"""

from __future__ import annotations

import logging

from accord.config.files import reading
from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import IncompatibleSpec
from accord.run_folder import SUMMARY, RunFolder
from services.connections import RAY_FILE
from services.jobs.job import Job, JobState
from services.results.artifacts import write_artifacts
from services.results.report import write_report
from services.results.summary import build_summary, component_versions

log = logging.getLogger("accord.conclude")


def conclude(
    settings: Settings,
    folder: RunFolder,
    job_id: str,
    spec: JobSpec,
    *,
    state: str,
    reason: str = "",
    wall_seconds: float,
    alone: bool = False,
) -> None:
    """Write the three files from what is in the run folder. `alone`: the job had neither store nor Ray."""
    store = "redis (REDIS_URL)" if settings.redis_url else "valkey (embedded)"
    ray = "embedded" if (settings.data_dir / RAY_FILE).exists() else "cluster"
    with reading(settings.roots):
        summary = build_summary(
            folder,
            spec,
            job_id=job_id,
            state=state,
            reason=reason,
            wall_seconds=wall_seconds,
            components=component_versions(spec, store=None if alone else store, ray=None if alone else ray),
        )
    folder.write_whole(SUMMARY, summary)
    write_report(folder)
    write_artifacts(folder, job_id)


def conclude_unfinished(settings: Settings, job: Job) -> None:
    """Conclude a job that ended without success. Never raises: its outcome is stored already, and stands.

    Nothing is written for a job without a run folder or with a spec that cannot be read.
    """
    folder = settings.run_folder(job.id)
    if not job.finished or job.state == JobState.SUCCEEDED:
        return
    try:
        if not folder.exists():
            return
        conclude(
            settings, folder, job.id, job.spec, state=str(job.state),
            reason=": ".join(part for part in (str(job.reason), job.message) if part),
            wall_seconds=max(0.0, job.updated_at - (job.started_at or job.created_at)),
        )  # fmt: skip
    except IncompatibleSpec as error:
        log.warning("%s has no report, its spec cannot be read: %s", job.id, error)
    except Exception:
        log.exception("%s has no report", job.id)
