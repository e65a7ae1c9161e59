"""Credit: from reward scores to one advantage per sample and modality (OmniNFT eq. 6-7, GDPO, plain sum).

For reward k and prompt p, over the samples i whose score is valid:

    A_k[p, i] = (R_k[p, i] - mean_i R_k[p, i]) / std

`std = "prompt"`: population standard deviation of the prompt's valid scores.
`std = "step"`: population standard deviation of all valid raw scores of the step, prompts pooled without centring them
first. This is what the published code does (`global_std`); it includes the spread between prompts, so a reward that
mostly tells prompts apart, rather than samples, gets small advantages.

Then, with the weights w_k:

    routed   A_video = sum of w_k A_k over rewards routed to video or both;  A_audio likewise
    gdpo     A_video = A_audio = sum_k w_k A_k, optionally normalised again over the step's samples that have credit
    sum      A_video = A_audio = the advantage of S = sum_k w_k R_k, normalised once like a single reward

An invalid sample has no part in a statistic and gets 0 for that reward. A group is degenerate for a reward when fewer
than two of its scores are valid, or their standard deviation is no more than epsilon times that of the step or epsilon
times the largest of them; it gets 0 for that reward and is counted. So the unit of a reward changes nothing.

A reward that is not required and whose server failed for one sample of the step (no answer in time, none at all, no
room, an error in the model) is dropped for the whole step: for some samples it is left out for none of their doing, and
a group in which it counts for some only would be compared by unlike sums. What a clip itself causes (too short, not
finite) drops nothing.

What rounding leaves of rewards that cancel is no credit either: a group in which every sum is within epsilon of what
was added up gets 0, before a second normalisation could make it large. Nothing stands in for a reward that is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accord.config.algorithm_parts import CreditSpec
from accord.config.contract import RewardSpec
from accord.errors import RewardError
from accord.types import Modality, RewardScores, Route, ScoredGroup, ScoreReason
from learner.algorithms.base import Credit

_SERVERS_FAULT: frozenset[ScoreReason] = frozenset(
    {"timeout", "unreachable", "backpressure", "circuit_open", "model_error"}
)
"""Why a sample has no score through no fault of its clip."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """All scores of one reward in one step."""

    reward: str
    route: Route
    weight: float
    values_PG: Tensor
    """float64; 0 where invalid, so that arithmetic never meets a NaN."""
    sizes_PG: Tensor
    """Sum of the magnitudes that each value was added up from."""
    valid_PG: Tensor
    """bool"""
    invalid: Mapping[ScoreReason, int] = field(default_factory=dict)
    """How many samples have no value, by reason."""
    dropped: bool = False
    """It takes no part in this step."""


def tabulate(groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec]) -> list[ScoreTable]:
    """Collect the scores by reward, in prompt order.

    Raises RewardError when a required reward has no valid score in the whole step.
    """
    tables = []
    for reward in rewards:
        scores = [group.scores[reward.name] for group in groups]
        values = torch.tensor([score.values for score in scores], dtype=torch.float64)
        valid = values.isfinite()
        if reward.required and not valid.any():
            reasons = sorted({reason for score in scores for reason in score.reasons})
            raise RewardError(
                f"reward {reward.name!r} is required and none of its {valid.numel()} scores of this step is valid "
                f"({', '.join(reasons)}); see its server, or set required = false to train without it"
            )
        values = torch.where(valid, values, torch.zeros_like(values))
        invalid = _invalid(scores)
        dropped = not reward.required and not _SERVERS_FAULT.isdisjoint(invalid)
        tables.append(
            ScoreTable(reward.name, reward.route, reward.weight, values, values.abs(), valid, invalid, dropped)
        )
    return tables


def _invalid(scores: Sequence[RewardScores]) -> Counter[ScoreReason]:
    """How many samples have no value, by reason; a value that is no number and does not say why is `non_finite`."""
    pairs = [pair for score in scores for pair in zip(score.valid, score.reasons, strict=True)]
    return Counter("non_finite" if reason == "ok" else reason for valid, reason in pairs if not valid)


def normalised(table: ScoreTable, spec: CreditSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return one reward's advantages float64 [P, G], who may have one, bool [P, G], and degenerate groups, bool [P]."""
    values, valid = table.values_PG, table.valid_PG
    centred, group_std = _centre(values, valid)
    _, step_std = _centre(values.reshape(1, -1), valid.reshape(1, -1))
    least = spec.epsilon * torch.maximum(step_std, table.sizes_PG.amax(1))
    degenerate = (valid.sum(1) < 2) | (group_std <= least)
    scale = group_std.unsqueeze(1) if spec.std == "prompt" else step_std.view(1, 1)
    usable = valid & ~degenerate.unsqueeze(1)
    advantage = torch.where(usable, centred / scale, torch.zeros_like(values))
    return advantage, usable, degenerate


def _centre(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: valid values minus their mean (0 where invalid), and their population standard deviation."""
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = (values * valid).sum(1, keepdim=True) / count
    centred = (values - mean) * valid
    return centred, ((centred**2).sum(1, keepdim=True) / count).sqrt().squeeze(1)


def assign_credit(tables: Sequence[ScoreTable], spec: CreditSpec, modalities: Sequence[Modality]) -> Credit:
    """Return the advantages [P, G] per modality.

    Metrics: `reward/<name>/{mean,std,valid_ratio}` over valid scores, `reward/<name>/dropped` (1 or 0),
    `reward/<name>/invalid/<reason>` (samples without a value, by reason), `advantage/<modality>/{std,zero_ratio}`
    and `credit/degenerate_groups`, the number of (trained reward, prompt) pairs without credit.
    """
    weighted = [table for table in tables if table.weight > 0]
    trained = [table for table in weighted if table.valid_PG.any() and not table.dropped]
    # A trained reward that takes part in nothing: each of its groups counts as degenerate.
    degenerate_groups = sum(table.valid_PG.shape[0] for table in weighted if table not in trained)
    if spec.mode == "sum" and trained:
        trained = [_summed(trained)]
    shape = tables[0].values_PG.shape
    advantages = {modality: torch.zeros(shape, dtype=torch.float64) for modality in modalities}
    sizes = {modality: torch.zeros(shape, dtype=torch.float64) for modality in modalities}
    earned = {modality: torch.zeros(shape, dtype=torch.bool) for modality in modalities}
    for table in trained:
        advantage, usable, degenerate = normalised(table, spec)
        degenerate_groups += int(degenerate.sum())
        for modality in modalities:
            if spec.mode != "routed" or table.route in (modality, "both"):
                advantages[modality] += table.weight * advantage
                sizes[modality] += table.weight * advantage.abs()
                earned[modality] |= usable
    for modality, size in sizes.items():
        cancelled = (advantages[modality].abs() <= spec.epsilon * size).all(1, keepdim=True)
        advantages[modality] = advantages[modality].masked_fill(cancelled, 0.0)
        earned[modality] &= ~cancelled
        if spec.mode == "gdpo" and spec.batch_norm:
            advantages[modality] = _batch_normalised(advantages[modality], earned[modality])
    metrics: dict[str, float | None] = {"credit/degenerate_groups": float(degenerate_groups)}
    for table in tables:
        metrics |= _reward_metrics(table)
    for modality, advantage in advantages.items():
        metrics[f"advantage/{modality}/std"] = float(advantage.std(unbiased=False))
        metrics[f"advantage/{modality}/zero_ratio"] = float((advantage == 0).double().mean())
    return Credit(advantages, metrics, earned)


def _summed(tables: Sequence[ScoreTable]) -> ScoreTable:
    """The weighted raw sum as one reward; a sample that lacks one of the scores has no sum."""
    values = torch.stack([table.weight * table.values_PG for table in tables]).sum(0)
    sizes = torch.stack([table.weight * table.sizes_PG for table in tables]).sum(0)
    valid = torch.stack([table.valid_PG for table in tables]).all(0)
    return ScoreTable("sum", "both", 1.0, values * valid, sizes * valid, valid)


def _batch_normalised(advantage: Tensor, earned: Tensor) -> Tensor:
    """GDPO's second normalisation (arXiv 2601.05242) over the samples that have credit; the others keep 0."""
    if not earned.any():
        return advantage
    centred, std = _centre(advantage.reshape(1, -1), earned.reshape(1, -1))
    return centred.reshape(advantage.shape) / std


def _reward_metrics(table: ScoreTable) -> Mapping[str, float | None]:
    scores = table.values_PG[table.valid_PG]
    known = scores.numel() > 0
    return {
        f"reward/{table.reward}/mean": float(scores.mean()) if known else None,
        f"reward/{table.reward}/std": float(scores.std(unbiased=False)) if known else None,
        f"reward/{table.reward}/valid_ratio": float(table.valid_PG.double().mean()),
        f"reward/{table.reward}/dropped": float(table.dropped),
        **{f"reward/{table.reward}/invalid/{reason}": float(count) for reason, count in sorted(table.invalid.items())},
    }
