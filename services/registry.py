"""The Prometheus registry of a process, built from `accord.metrics.TABLE`, and the queue gauges read at scrape time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

import accord
from accord.errors import StoreError
from accord.metrics import METRICS, TABLE, Metric
from services.jobs.store import JobStore

log = logging.getLogger("accord.metrics")

_AT_SCRAPE = {"accord_queue_jobs", "accord_queue_oldest_age_seconds", "accord_records_unreadable_total"}

SCRAPE_S = 1.0

_Kind = TypeVar("_Kind", Counter, Gauge, Histogram)

prometheus_client.disable_created_metrics()


class Metrics:
    """All metrics of one process by name, in a registry of their own."""

    def __init__(self, store: JobStore | None = None) -> None:
        self.registry = CollectorRegistry()
        self._scraping = threading.Lock()
        self._scraped, self._scraped_at = b"", float("-inf")
        self._by_name = {metric.name: self._build(metric) for metric in TABLE if metric.name not in _AT_SCRAPE}
        self.gauge("accord_build_info").labels(version=accord.__version__).set(1)
        ProcessCollector(registry=self.registry)
        if store is not None:
            self.registry.register(_Queue(store))

    def counter(self, name: str) -> Counter:
        """Raises KeyError or TypeError for a name that is not a counter of the table."""
        return self._typed(name, Counter)

    def gauge(self, name: str) -> Gauge:
        """Raises KeyError or TypeError for a name that is not a gauge of the table."""
        return self._typed(name, Gauge)

    def histogram(self, name: str) -> Histogram:
        """Raises KeyError or TypeError for a name that is not a histogram of the table."""
        return self._typed(name, Histogram)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return prometheus_client.generate_latest(self.registry)

    def scrape(self) -> bytes:
        """`exposition`, at most SCRAPE_S old: anybody may ask for it, and as often as he likes."""
        with self._scraping:
            if time.monotonic() - self._scraped_at > SCRAPE_S:
                self._scraped = self.exposition()
                self._scraped_at = time.monotonic()
            return self._scraped

    def _typed(self, name: str, kind: type[_Kind]) -> _Kind:
        metric = self._by_name[name]
        if not isinstance(metric, kind):
            raise TypeError(f"{name} is a {type(metric).__name__.lower()}, not a {kind.__name__.lower()}")
        return metric

    def _build(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind == "histogram":
            buckets = metric.buckets or Histogram.DEFAULT_BUCKETS
            return Histogram(metric.name, metric.help, metric.labels, buckets=buckets, registry=self.registry)
        kind = Counter if metric.kind == "counter" else Gauge
        return kind(metric.name, metric.help, metric.labels, registry=self.registry)


class _Queue(Collector):
    """Reads the store when scraped; a store that does not answer leaves the gauges out and the scrape whole."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> list[Family]:
        return []

    def collect(self) -> Iterator[Family]:
        name = "accord_records_unreadable_total"
        unreadable = CounterMetricFamily(name, METRICS[name].help, labels=["kind"])
        for kind, count in self._store.unreadable().items():
            unreadable.add_metric([kind], count)
        yield unreadable
        try:
            stats = self._store.stats()
        except StoreError as error:
            log.warning("no queue gauges in this scrape: %s", error)
            return
        jobs = GaugeMetricFamily("accord_queue_jobs", METRICS["accord_queue_jobs"].help, labels=["state"])
        for state, count in stats.by_state.items():
            jobs.add_metric([state], count)
        yield jobs
        name = "accord_queue_oldest_age_seconds"
        yield GaugeMetricFamily(name, METRICS[name].help, value=stats.oldest_queued_s)
