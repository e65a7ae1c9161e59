"""THE table of Prometheus metrics: name, kind, labels, help. Dashboards, alerts and code take names from here only.

`job_id` labels training gauges of running jobs and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accord.types import MODALITIES


@dataclass(frozen=True, slots=True)
class Metric:
    """One time series family."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    number: str = ""
    """Name of the number in `StepCompleted.metrics` that a gauge shows; `{label}` stands for the value of a label."""

    def named(self, **labels: str) -> str:
        """Name of the number for these labels, for example `reward/sync/mean`."""
        return self.number.format(**labels)

    def labels_in(self, name: str) -> tuple[str, ...] | None:
        """Values of the labels that a number's name holds; None when it names another number."""
        before, placeholder, rest = self.number.partition("{")
        if not placeholder:
            return () if self.number and name == self.number else None
        label, _, after = rest.partition("}")
        value = name[len(before) : len(name) - len(after)]
        fits = value in MODALITIES if label == "modality" else value and "/" not in value
        return (value,) if fits and name == before + value + after else None


def _shown(name: str, number: str, help: str) -> Metric:
    """A gauge that shows one number of each step; a `{label}` in the number's name is a label of the gauge."""
    label = number.partition("{")[2].partition("}")[0]
    return Metric(name, "gauge", help, ("job_id", label) if label else ("job_id",), number=number)


_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_WAIT = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)

TABLE: tuple[Metric, ...] = (
    # queue
    Metric("accord_queue_jobs", "gauge", "Jobs by state.", ("state",)),
    Metric("accord_queue_wait_seconds", "histogram", "Time from acceptance to the first attempt.", (), _WAIT),
    Metric("accord_queue_oldest_age_seconds", "gauge", "Age of the oldest queued job."),
    Metric("accord_jobs_finished_total", "counter", "Jobs that ended.", ("outcome", "reason")),
    Metric("accord_lease_lost_total", "counter", "Attempts whose lease ran out."),
    Metric("accord_lease_fenced_writes_total", "counter", "Writes refused because a newer attempt owns the job."),
    Metric("accord_records_unreadable_total", "counter", "Records of the store that were skipped.", ("kind",)),
    # runner
    Metric("accord_runner_can_claim", "gauge", "1 while what a job needs is there: ray, runs (volume).", ("check",)),
    Metric("accord_runs_volume_free_bytes", "gauge", "Free bytes of the runs volume, as the runner last saw it."),
    Metric("accord_runner_errors_total", "counter", "Faults that the runner met and survived.", ("where",)),
    # api
    Metric(
        "accord_http_request_duration_seconds", "histogram", "API latency.", ("route", "method", "status"), _SECONDS
    ),
    Metric("accord_event_streams", "gauge", "Event streams that are open."),
    # training (per running job)
    Metric("accord_train_step", "gauge", "Last completed optimizer step.", ("job_id",)),
    Metric("accord_train_last_step_timestamp_seconds", "gauge", "Unix time of the last completed step.", ("job_id",)),
    Metric("accord_train_step_seconds", "gauge", "Wall time of the last step.", ("job_id",)),
    _shown("accord_train_reward_mean", "reward/{reward}/mean", "Mean valid reward of the last step."),
    _shown("accord_train_reward_std", "reward/{reward}/std", "Spread of the reward in the last step."),
    _shown("accord_train_reward_valid_ratio", "reward/{reward}/valid_ratio", "Share of valid scores."),
    _shown("accord_train_reward_dropped", "reward/{reward}/dropped", "1 when the last step was trained without it."),
    _shown("accord_train_reward_saturated", "reward/{reward}/saturated", "Share of scores at the end of the range."),
    _shown("accord_train_reward_flat_groups", "reward/{reward}/flat_groups", "Prompts whose scores are all alike."),
    _shown("accord_train_control_prompt_gap", "control/{reward}/prompt_gap", "Score minus that for another prompt."),
    _shown("accord_train_control_sound_gap", "control/{reward}/sound_gap", "Score minus that with another sound."),
    _shown("accord_train_reward_drift", "canary/{reward}/distance", "Farthest canary from its first score."),
    _shown("accord_train_reward_degraded", "canary/{reward}/degraded", "1 while that is beyond the job's tolerance."),
    _shown("accord_train_feature_mean", "feature/{feature}/mean", "What the clips look and sound like."),
    _shown("accord_train_loss", "loss/{modality}", "Loss per modality."),
    _shown("accord_train_reference_distance", "loss/reference/{modality}", "Distance to the base policy."),
    _shown("accord_train_policy_ratio", "ratio/{modality}", "Mean ratio to the policy that sampled."),
    _shown("accord_train_policy_clip_ratio", "clipped/{modality}", "Share of ratios that were clipped."),
    _shown("accord_train_advantage_std", "advantage/{modality}/std", "Spread of the advantages."),
    _shown(
        "accord_train_zero_advantage_ratio", "advantage/{modality}/zero_ratio", "Share of samples without advantage."
    ),
    _shown("accord_train_grad_norm", "grad_norm", "Gradient norm before clipping."),
    _shown("accord_train_learning_rate", "learning_rate", "Learning rate."),
    Metric("accord_train_phase_seconds", "histogram", "Time per phase of a step.", ("phase",), _SECONDS),
    Metric("accord_train_nonfinite_total", "counter", "Non-finite values stopped on the way.", ("where",)),
    # rollout
    Metric("accord_rollout_samples_total", "counter", "Clips sampled."),
    Metric("accord_weights_version", "gauge", "Last published policy version.", ("job_id",)),
    # rewards
    Metric("accord_reward_scores_total", "counter", "Scores by validity.", ("reward", "outcome")),
    Metric("accord_reward_invalid_total", "counter", "Scores without a value, by reason.", ("reward", "reason")),
    # checkpoints
    Metric("accord_checkpoint_write_seconds", "histogram", "Time to write a checkpoint.", (), _SECONDS),
    Metric("accord_checkpoint_bytes", "gauge", "Size of the last checkpoint.", ("job_id",)),
    Metric("accord_checkpoint_last_success_timestamp_seconds", "gauge", "Time of the last checkpoint.", ("job_id",)),
    # recovery
    Metric("accord_process_lost_total", "counter", "Processes that died during an attempt.", ("process",)),
    Metric("accord_recovery_seconds", "histogram", "Time from a death to the next progress.", ("process",), _WAIT),
    Metric("accord_attempts_total", "counter", "Attempts started."),
    Metric("accord_build_info", "gauge", "Always 1; the version is the label.", ("version",)),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in TABLE}
