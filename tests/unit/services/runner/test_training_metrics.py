"""What a step reports reaches the gauges of the table, and what the learner reports has the names that are read."""

import pytest
import torch

from accord.config.algorithm_parts import CreditSpec
from accord.events import StepCompleted
from accord.metrics import TABLE
from learner.algorithms.credit import ScoreTable, assign_credit
from services.registry import Metrics
from services.runner.prometheus import TrainingMetrics

SHOWN = [metric for metric in TABLE if metric.number]


def observed(**numbers: float | None) -> Metrics:
    metrics = Metrics()
    event = StepCompleted(step=1, policy_version=1, metrics=numbers, phase_seconds={"learn": 1.0}, samples=8)
    TrainingMetrics(metrics).observe("a", event)
    return metrics


@pytest.mark.parametrize("metric", SHOWN, ids=lambda metric: metric.name)
def test_every_number_of_the_table_reaches_its_gauge(metric):
    labels = {
        label: {"reward": "sync", "modality": "audio", "feature": "luma"}[label]
        for label in metric.labels
        if label != "job_id"
    }
    registry = observed(**{metric.named(**labels): 0.25}).registry
    assert registry.get_sample_value(metric.name, {"job_id": "a", **labels}) == 0.25
    assert metric.labels_in(metric.named(**labels)) == tuple(labels.values())


@pytest.mark.parametrize(
    "name", ["loss/total", "loss/reference", "reward/a/b/mean", "reward//mean", "reward/mean", "grad_norm/x", ""]
)
def test_other_numbers_are_nobodys(name):
    assert [metric.name for metric in TABLE if metric.labels_in(name) is not None] == []


def test_undefined_numbers_set_nothing_and_valid_scores_are_counted():
    metrics = observed(**{"reward/sync/mean": None, "reward/sync/valid_ratio": 0.75})
    value = metrics.registry.get_sample_value
    assert value("accord_train_reward_mean", {"job_id": "a", "reward": "sync"}) is None
    assert value("accord_reward_scores_total", {"reward": "sync", "outcome": "valid"}) == 6
    assert value("accord_reward_scores_total", {"reward": "sync", "outcome": "invalid"}) == 2


def test_scores_without_a_value_are_counted_by_reason():
    value = observed(**{"reward/sync/invalid/timeout": 3.0, "reward/sync/invalid/too_short": 1.0}).registry
    assert value.get_sample_value("accord_reward_invalid_total", {"reward": "sync", "reason": "timeout"}) == 3
    assert value.get_sample_value("accord_reward_invalid_total", {"reward": "sync", "reason": "too_short"}) == 1


def test_a_reward_with_a_label_is_counted_under_its_whole_name():
    numbers = {"reward/remote:motion/invalid/wrong_version": 2.0, "reward/remote:motion/mean": 0.5}
    value = observed(**numbers).registry.get_sample_value
    assert value("accord_reward_invalid_total", {"reward": "remote:motion", "reason": "wrong_version"}) == 2
    assert value("accord_train_reward_mean", {"job_id": "a", "reward": "remote:motion"}) == 0.5


def test_what_credit_reports_is_what_is_read():
    values = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    table = ScoreTable("sync", "both", 1.0, values, values, values.abs(), values.isfinite())
    reported = assign_credit([table], CreditSpec(mode="routed"), ("video", "audio")).metrics
    read = {name for name in reported if any(metric.labels_in(name) is not None for metric in TABLE)}
    assert set(reported) - read == {"credit/degenerate_groups"}
    assert len(read) == 6 + 2 * 2
