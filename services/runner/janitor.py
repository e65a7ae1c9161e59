"""Clears away what jobs leave in the store and on the disk: records some time after a job's end, and the run folders of
jobs that a user deleted. Any number of runners may do it at once."""

from __future__ import annotations

import logging
import threading

from accord.config.settings import Settings
from accord.errors import StoreError
from services.jobs.store import JobStore

log = logging.getLogger("accord.janitor")

PERIOD_S = 10.0


def keep_clean(settings: Settings, store: JobStore, stop: threading.Event) -> None:
    """Clear away until `stop` is set."""
    while not stop.wait(PERIOD_S):
        try:
            clear_away(settings, store)
        except StoreError as error:
            log.warning("nothing is cleared away: %s", error)
        except Exception:
            log.exception("nothing is cleared away")


def clear_away(settings: Settings, store: JobStore) -> None:
    """Once. A folder that cannot be removed now is tried again the next time. Raises StoreError."""
    expired = store.sweep(settings.job_retention_s)
    if expired:
        log.info("%d jobs ended longer than %.0f s ago; their records are gone", expired, settings.job_retention_s)
    for job_id in store.folders_to_remove():
        try:
            settings.run_folder(job_id).remove()
        except OSError as error:
            log.warning("the run folder of the deleted %s cannot be removed: %s", job_id, error)
            continue
        store.folder_removed(job_id)
