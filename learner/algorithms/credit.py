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
room, an error in the model, an answer that does not count) is dropped for the whole step: for some samples it is left
out for none of their doing, and a group in which it counts for some only would be compared by unlike sums. What a clip
itself causes (too short, not finite) drops nothing.

What rounding leaves of rewards that cancel is no credit either: a group in which every sum is within epsilon of what
was added up gets 0, before a second normalisation could make it large. Nothing stands in for a reward that is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accord.config.algorithm_parts import CreditSpec, EnsembleSpec
from accord.config.contract import RewardSpec
from accord.errors import RewardError
from accord.types import SERVERS_FAULT, Modality, RewardScores, Route, ScoredGroup, ScoreReason
from learner.algorithms.base import Credit


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """All scores of one reward in one step."""

    reward: str
    route: Route
    weight: float
    values_PG: Tensor
    """float64; 0 where invalid, so that arithmetic never meets a NaN."""
    earning_PG: Tensor
    """What credit is made of: the values, but for the reward's `clip` and `band`."""
    sizes_PG: Tensor
    """Sum of the magnitudes that each of those was added up from."""
    valid_PG: Tensor
    """bool"""
    invalid: Mapping[ScoreReason, int] = field(default_factory=dict)
    """How many samples have no value, by reason."""
    dropped: bool = False
    """It takes no part in this step."""
    top: float = math.inf
    """Values from here on stand at the end of the reward's range."""


def tabulate(groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec]) -> list[ScoreTable]:
    """Collect the scores by reward, in prompt order.

    Raises RewardError when a required reward has no valid score in the whole step, unless it reads the prompts and none
    of them asks it anything.
    """
    tables = []
    for reward in rewards:
        scores = [group.scores[reward.name] for group in groups]
        values = torch.tensor([score.values for score in scores], dtype=torch.float64)
        valid = values.isfinite()
        reasons = sorted({reason for score in scores for reason in score.reasons})
        unasked = reward.prompt_anchored and reasons == ["unverifiable"]
        if reward.required and not valid.any() and not unasked:
            raise RewardError(
                f"reward {reward.name!r} is required and none of its {valid.numel()} scores of this step is valid "
                f"({', '.join(reasons)}); see its server, or set required = false to train without it"
            )
        values = torch.where(valid, values, torch.zeros_like(values))
        weight = 0.0 if groups[0].group.request.step <= reward.shadow_steps else reward.weight
        invalid = _invalid(scores)
        dropped = not reward.required and not SERVERS_FAULT.isdisjoint(invalid)
        earning = _earning(values, reward) * valid
        top = reward.range[1] - reward.smallest_effect / 2
        sizes = earning.abs()
        tables.append(
            ScoreTable(reward.name, reward.route, weight, values, earning, sizes, valid, invalid, dropped, top)
        )
    return tables


def _earning(values: Tensor, reward: RewardSpec) -> Tensor:
    """What credit is made of: a score within the reward's `clip`, or minus its distance to the reward's `band`."""
    if reward.clip is not None:
        values = values.clamp(*reward.clip)
    if reward.band is not None:
        values = -(values - values.clamp(*reward.band)).abs()
    return values


def _invalid(scores: Sequence[RewardScores]) -> Counter[ScoreReason]:
    """How many samples have no value, by reason; a value that is no number and does not say why is `non_finite`."""
    pairs = [pair for score in scores for pair in zip(score.valid, score.reasons, strict=True)]
    return Counter("non_finite" if reason == "ok" else reason for valid, reason in pairs if not valid)


def normalised(table: ScoreTable, spec: CreditSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return one reward's advantages float64 [P, G], who may have one, bool [P, G], and degenerate groups, bool [P]."""
    values, valid = table.earning_PG, table.valid_PG
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

    Metrics: `reward/<name>/{mean,std,valid_ratio}` over valid scores, `reward/<name>/saturated` (share of them at the
    end of the range), `reward/<name>/flat_groups` (prompts whose scores are all alike), `reward/<name>/dropped` (1 or
    0), `reward/<name>/invalid/<reason>` (samples without a value, by reason), `advantage/<modality>/{std,zero_ratio}`
    and `credit/degenerate_groups`, the number of (trained reward, prompt) pairs without credit.
    """
    weighted = [table for table in tables if table.weight > 0]
    trained = [table for table in weighted if table.valid_PG.any() and not table.dropped]
    # A trained reward that takes part in nothing: each of its groups counts as degenerate.
    degenerate_groups = sum(table.valid_PG.shape[0] for table in weighted if table not in trained)
    trained = ensembled(trained, spec.ensembles)
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


def ensembled(tables: Sequence[ScoreTable], ensembles: Sequence[EnsembleSpec]) -> list[ScoreTable]:
    """Put one table in the place of the members of each ensemble, of those that take part in this step.

    z_k[p, i] is member k's score in standard deviations within its prompt; a sample counts where all members have one.
    `lower_confidence` is mean_k z_k - k std_k z_k: a sample that the members disagree about earns less.
    """
    found = list(tables)
    for ensemble in ensembles:
        members = [table for table in found if table.reward in ensemble.members]
        if len(members) < 2:
            continue
        valid = torch.stack([member.valid_PG for member in members]).all(0)
        z_KPG = torch.stack([_standardised(member.earning_PG * valid, valid) for member in members])
        place = found.index(members[0])
        found = [table for table in found if table not in members]
        weight = math.fsum(member.weight for member in members)
        values = _combined(z_KPG, ensemble) * valid
        table = ScoreTable(ensemble.name, members[0].route, weight, values, values, values.abs(), valid)
        found.insert(place, table)
    return found


def _combined(z_KPG: Tensor, spec: EnsembleSpec) -> Tensor:
    """The members' scores as one, [P, G]."""
    if spec.combine == "min":
        return z_KPG.amin(0)
    if spec.combine == "rank":  # members that are alike share their place
        below = (z_KPG.unsqueeze(3) > z_KPG.unsqueeze(2)).sum(3) + (z_KPG.unsqueeze(3) == z_KPG.unsqueeze(2)).sum(3) / 2
        return below.double().mean(0)
    mean = z_KPG.mean(0)
    return mean - spec.k * z_KPG.std(0, unbiased=False) if spec.combine == "lower_confidence" else mean


def _standardised(values: Tensor, valid: Tensor) -> Tensor:
    """Per row: in standard deviations from the mean of its valid values; 0 where invalid, or where all are alike."""
    centred, std = _centre(values, valid)
    return torch.where(std.unsqueeze(1) > 0, centred / std.unsqueeze(1), torch.zeros_like(values))


def _summed(tables: Sequence[ScoreTable]) -> ScoreTable:
    """The weighted raw sum as one reward; a sample that lacks one of the scores has no sum."""
    values = torch.stack([table.weight * table.earning_PG for table in tables]).sum(0)
    sizes = torch.stack([table.weight * table.sizes_PG for table in tables]).sum(0)
    valid = torch.stack([table.valid_PG for table in tables]).all(0)
    return ScoreTable("sum", "both", 1.0, values * valid, values * valid, sizes * valid, valid)


def _batch_normalised(advantage: Tensor, earned: Tensor) -> Tensor:
    """GDPO's second normalisation (arXiv 2601.05242) over the samples that have credit; the others keep 0."""
    if not earned.any():
        return advantage
    centred, std = _centre(advantage.reshape(1, -1), earned.reshape(1, -1))
    return centred.reshape(advantage.shape) / std


def _reward_metrics(table: ScoreTable) -> Mapping[str, float | None]:
    scores = table.values_PG[table.valid_PG]
    known = scores.numel() > 0
    _, spread = _centre(table.values_PG, table.valid_PG)
    return {
        f"reward/{table.reward}/mean": float(scores.mean()) if known else None,
        f"reward/{table.reward}/std": float(scores.std(unbiased=False)) if known else None,
        f"reward/{table.reward}/saturated": float((scores >= table.top).double().mean()) if known else None,
        f"reward/{table.reward}/flat_groups": float((spread == 0).sum()),
        f"reward/{table.reward}/valid_ratio": float(table.valid_PG.double().mean()),
        f"reward/{table.reward}/dropped": float(table.dropped),
        **{f"reward/{table.reward}/invalid/{reason}": float(count) for reason, count in sorted(table.invalid.items())},
    }
