"""What deleted and expired jobs leave behind is cleared away, and nothing else."""

from __future__ import annotations

from pathlib import Path

from accord.config.settings import Settings
from accord.ids import new_job_id
from services.jobs.store import Submission
from services.runner.janitor import clear_away
from tests.memory_store import InMemoryJobStore


def ended(store: InMemoryJobStore, runs: Path) -> str:
    job_id = store.enqueue(Submission(new_job_id(), "n", "{}", 1))[0].id
    store.cancel(job_id)
    (runs / job_id / "checkpoints").mkdir(parents=True)
    (runs / job_id / "checkpoints" / "a.safetensors").write_bytes(b"x")
    return job_id


def test_folders_of_deleted_jobs_go_and_others_stay(tmp_path: Path) -> None:
    now = [1000.0]
    store = InMemoryJobStore(clock=lambda: now[0])
    settings = Settings(runs_dir=tmp_path / "runs", data_dir=tmp_path / "data", job_retention_s=100)
    deleted, expired = ended(store, settings.runs_dir), ended(store, settings.runs_dir)
    store.delete(deleted)
    clear_away(settings, store)
    assert [path.name for path in settings.runs_dir.iterdir()] == [expired]
    assert [job.id for job in store.page().jobs] == [expired] and store.folders_to_remove() == []

    now[0] += 200
    young = ended(store, settings.runs_dir)
    clear_away(settings, store)
    assert [job.id for job in store.page().jobs] == [young]
    assert (settings.runs_dir / expired).is_dir(), "results outlive the record"


def test_a_link_is_not_followed_and_a_missing_folder_is_fine(tmp_path: Path) -> None:
    store = InMemoryJobStore()
    settings = Settings(runs_dir=tmp_path / "runs", data_dir=tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    gone, linked = (ended(store, settings.runs_dir) for _ in range(2))
    (settings.runs_dir / gone).rename(tmp_path / "moved")
    (settings.runs_dir / linked).rename(tmp_path / "moved too")
    (settings.runs_dir / linked).symlink_to(elsewhere)
    for job_id in (gone, linked):
        store.delete(job_id)
    clear_away(settings, store)
    assert elsewhere.is_dir() and store.folders_to_remove() == []
