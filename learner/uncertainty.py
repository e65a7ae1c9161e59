"""Means with honest standard errors for scores that come in prompts: samples of one prompt are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from accord.events import ChangeSummary, RewardSummary
from accord.seeds import Purpose, derive_seed

Scores = Sequence[Sequence[float | None]]
"""One row per prompt, one value per sample; None where there is none [P, G]."""

RESAMPLES = 200
"""Bootstrap draws; the standard error itself is then known to about 5 %."""
INTERVAL_RESAMPLES = 2000
"""Draws for an interval: its ends lie where few draws do."""
INTERVAL = (0.025, 0.975)
"""Quantiles between which the interval lies."""


def clustered(scores: Scores) -> RewardSummary:
    """Mean over samples with a standard error that treats prompts, not samples, as the independent draws.

    With P prompts, n values x and their mean m:  sem^2 = P / (P - 1) * sum_p (sum_i (x_pi - m))^2 / n^2. With a single
    prompt the samples are all there is:  sem = std / sqrt(n). None where undefined.
    """
    rows = [[value for value in row if value is not None] for row in scores]
    rows = [row for row in rows if row]
    count = sum(len(row) for row in rows)
    if count == 0:
        return RewardSummary(mean=None, sem=None, n=0)
    mean = math.fsum(value for row in rows for value in row) / count
    clusters = [[value] for value in rows[0]] if len(rows) == 1 else rows
    if len(clusters) < 2:
        return RewardSummary(mean=mean, sem=None, n=count)
    squares = math.fsum(math.fsum(value - mean for value in row) ** 2 for row in clusters)
    sem = math.sqrt(squares * len(clusters) / (len(clusters) - 1)) / count
    return RewardSummary(mean=mean, sem=sem, n=count)


def differences(after: Scores, before: Scores) -> list[list[float | None]]:
    """After minus before, sample by sample; None where either is missing [P, G]."""
    return [
        [None if new is None or old is None else new - old for new, old in zip(left, right, strict=True)]
        for left, right in zip(after, before, strict=True)
    ]


def bootstrapped(statistic: Callable[[list[int]], float | None], prompts: int, *seed: int | str) -> RewardSummary:
    """A statistic of a list of prompts, with its standard error from resampling prompts.

    `statistic` gets prompt indices, with repetitions, and returns None when it cannot be formed. The draws come from a
    seed derived from `seed`, so every evaluation of a job resamples alike.
    """
    value = statistic(list(range(prompts)))
    if value is None or prompts < 2:
        return RewardSummary(mean=value, sem=None, n=prompts)
    generator = np.random.default_rng(derive_seed(Purpose.BOOTSTRAP, *seed))
    draws = [statistic(generator.integers(0, prompts, prompts).tolist()) for _ in range(RESAMPLES)]
    known = [draw for draw in draws if draw is not None]
    sem = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return RewardSummary(mean=value, sem=sem, n=prompts)


def compared(after: Scores, before: Scores, *seed: int | str) -> ChangeSummary:
    """Mean of the paired differences, its clustered standard error, and a paired bootstrap interval over prompts.

    The interval is of percentiles (Efron and Tibshirani, 1993, ch. 13): prompts are drawn with repetitions, each with
    all its differences, and the ends are quantiles of the means. It tells nothing of samples that are not there: with
    few prompts it is too narrow. None with fewer than two prompts that have a difference.
    """
    rows = differences(after, before)
    told = clustered(rows)
    known = [[value for value in row if value is not None] for row in rows]
    known = [row for row in known if row]
    if len(known) < 2:
        return ChangeSummary(mean=told.mean, sem=told.sem, n=told.n)
    sums, counts = np.array([math.fsum(row) for row in known]), np.array([len(row) for row in known])
    generator = np.random.default_rng(derive_seed(Purpose.BOOTSTRAP, *seed))
    draws = (generator.integers(0, len(known), len(known)) for _ in range(INTERVAL_RESAMPLES))
    low, high = np.quantile([sums[drawn].sum() / counts[drawn].sum() for drawn in draws], INTERVAL)
    return ChangeSummary(mean=told.mean, sem=told.sem, n=told.n, low=float(low), high=float(high))
