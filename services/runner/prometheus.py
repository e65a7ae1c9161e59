"""Turns a job's events into the training metrics of `accord.metrics.TABLE`."""

from __future__ import annotations

import re
import time
from collections import defaultdict

from prometheus_client import Gauge

from accord.events import CheckpointSaved, Failed, JobEvent, ProcessLost, StepCompleted
from accord.metrics import TABLE
from services.registry import Metrics

KEPT_S = 15 * 60
"""How long the gauges of a finished job stay."""

_INVALID = re.compile(r"reward/([^/]+)/invalid/([a-z_]+)")
"""Reward and reason in the name of a number."""
_GAUGES = tuple(metric for metric in TABLE if metric.number)


class TrainingMetrics:
    """Feeds one registry. Gauges that carry a job id are removed KEPT_S after the job's last attempt here ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._labels: dict[str, set[tuple[str, tuple[str, ...]]]] = defaultdict(set)
        self._ended: dict[str, float] = {}
        self._last_step_at: dict[str, float] = {}

    def observe(self, job_id: str, event: JobEvent) -> None:
        """Take one event."""
        self._ended.pop(job_id, None)
        if isinstance(event, StepCompleted):
            self._step(job_id, event)
        elif isinstance(event, CheckpointSaved):
            self._metrics.histogram("accord_checkpoint_write_seconds").observe(event.seconds)
            self._set(job_id, "accord_checkpoint_bytes", event.bytes)
            self._set(job_id, "accord_checkpoint_last_success_timestamp_seconds", event.at)
        elif isinstance(event, ProcessLost):
            kind = event.process.split(" ")[0].split("/")[0]
            self._metrics.counter("accord_process_lost_total").labels(process=kind).inc()
            if event.recovery_seconds is not None:
                self._metrics.histogram("accord_recovery_seconds").labels(process=kind).observe(event.recovery_seconds)
        elif isinstance(event, Failed) and event.reason == "nonfinite":
            self._metrics.counter("accord_train_nonfinite_total").labels(where="loss").inc()

    def ended(self, job_id: str) -> None:
        """The attempt is over; its gauges go in a while."""
        self._ended[job_id] = time.monotonic()
        self._last_step_at.pop(job_id, None)

    def forget(self, older_than_s: float = KEPT_S) -> None:
        """Remove the gauges of jobs that ended longer ago."""
        now = time.monotonic()
        for job_id in [job_id for job_id, at in self._ended.items() if now - at >= older_than_s]:
            del self._ended[job_id]
            for name, labels in self._labels.pop(job_id, set()):
                self._metrics.gauge(name).remove(*labels)

    def _step(self, job_id: str, event: StepCompleted) -> None:
        seconds = event.at - self._last_step_at.get(job_id, event.at - event.seconds)
        self._last_step_at[job_id] = event.at
        self._set(job_id, "accord_train_step", event.step)
        self._set(job_id, "accord_train_step_seconds", seconds)
        self._set(job_id, "accord_train_last_step_timestamp_seconds", event.at)
        self._set(job_id, "accord_weights_version", event.policy_version)
        self._metrics.counter("accord_rollout_samples_total").inc(event.samples)
        for phase, value in event.phase_seconds.items():
            self._metrics.histogram("accord_train_phase_seconds").labels(phase=phase).observe(value)
        for key, number in event.metrics.items():
            if number is not None:
                self._number(job_id, key, number, event.samples)

    def _number(self, job_id: str, key: str, value: float, samples: int) -> None:
        if invalid := _INVALID.fullmatch(key):
            self._metrics.counter("accord_reward_invalid_total").labels(*invalid.groups()).inc(value)
        for metric in _GAUGES:
            labels = metric.labels_in(key)
            if labels is None:
                continue
            self._set(job_id, metric.name, value, *labels)
            if metric.name == "accord_train_reward_valid_ratio":
                valid = round(value * samples)
                scores = self._metrics.counter("accord_reward_scores_total")
                scores.labels(reward=labels[0], outcome="valid").inc(valid)
                scores.labels(reward=labels[0], outcome="invalid").inc(max(0, samples - valid))

    def _set(self, job_id: str, name: str, value: float, *more: str) -> None:
        gauge: Gauge = self._metrics.gauge(name)
        labels = (job_id, *more)
        gauge.labels(*labels).set(value)
        self._labels[job_id].add((name, labels))
