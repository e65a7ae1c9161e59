"""Credit against a brute-force reference written with loops over plain floats."""

import math
import random
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from accord.config.algorithm_parts import CreditSpec, EnsembleSpec
from accord.config.rewards.panel import SoundReward, SyncReward, TextVideoReward
from accord.errors import RewardError
from accord.types import Prompt, RewardScores, RolloutPlan, RolloutRequest, SampleGroup, ScoredGroup
from learner.algorithms.credit import assign_credit, ensembled, tabulate

REWARDS = (SyncReward(weight=1.0), SoundReward(weight=0.5), TextVideoReward(weight=1.5))
ROUTES = {"sync": ("video", "audio"), "sound": ("audio",), "text_video": ("video",)}
BOTH = ("video", "audio")


def scored(values: dict[str, list[list[float | None]]]) -> list[ScoredGroup]:
    """Groups from {reward: [P][G] values, None = invalid}."""
    prompts = len(next(iter(values.values())))
    groups = []
    for p in range(prompts):
        scores = {}
        for name, rows in values.items():
            row = rows[p]
            scores[name] = RewardScores(
                name, "1", tuple(math.nan if v is None else v for v in row),
                tuple("ok" if v is not None else "timeout" for v in row),
            )  # fmt: skip
        request = RolloutRequest(
            1, p, Prompt(f"p{p}", "av", "v", "a"), tuple(range(len(row))), 0, RolloutPlan("old", 8)
        )
        groups.append(ScoredGroup(SampleGroup(request, 0, None, None), scores))
    return groups


def random_values(seed: int, prompts: int = 4, size: int = 5) -> dict[str, list[list[float | None]]]:
    rng = random.Random(seed)
    return {
        reward.name: [
            [None if rng.random() < 0.25 else rng.gauss(p, 1 + p) for _ in range(size)] for p in range(prompts)
        ]
        for reward in REWARDS
    }


def mean(xs):
    return sum(xs) / len(xs)


def deviation(xs):
    m = mean(xs)
    return math.sqrt(sum((x - m) ** 2 for x in xs) / len(xs))


def summed(values, weights):
    """The weighted raw sum per sample; None where a score is missing."""
    prompts, size = len(values["sync"]), len(values["sync"][0])
    rows = [[[values[name][p][g] for name in weights] for g in range(size)] for p in range(prompts)]
    total = [
        [None if None in parts else sum(w * v for w, v in zip(weights.values(), parts, strict=True)) for parts in row]
        for row in rows
    ]
    return {"sum": total}, {"sum": 1.0}


def credit_of(row, everything, spec):
    """One reward, one prompt: advantages, None for who has none; None for a degenerate group."""
    good = [v for v in row if v is not None]
    if len(good) < 2 or deviation(good) <= spec.epsilon * deviation(everything):
        return None
    scale = deviation(good) if spec.std == "prompt" else deviation(everything)
    return [None if v is None else (v - mean(good)) / scale for v in row]


def reference(values, spec: CreditSpec):
    """Per-sample loops. Returns {modality: [P][G]} and the number of degenerate (reward, prompt) pairs."""
    weights = {reward.name: reward.weight for reward in REWARDS}
    prompts, size = len(values["sync"]), len(values["sync"][0])
    if spec.mode == "sum":
        values, weights = summed(values, weights)
    out = {m: [[0.0] * size for _ in range(prompts)] for m in BOTH}
    credited, degenerate = set(), 0
    for name, rows in values.items():
        everything = [v for row in rows for v in row if v is not None]
        targets = ROUTES[name] if spec.mode == "routed" else BOTH
        for p, row in enumerate(rows):
            earned = credit_of(row, everything, spec)
            degenerate += earned is None
            for g, a in enumerate(earned or ()):
                if a is not None:
                    credited.add((p, g))
                    for m in targets:
                        out[m][p][g] += weights[name] * a
    if spec.mode == "gdpo" and spec.batch_norm:
        for m in BOTH:
            pool = [out[m][p][g] for p, g in sorted(credited)]
            for p, g in credited:
                out[m][p][g] = (out[m][p][g] - mean(pool)) / deviation(pool)
    return out, degenerate


MODES = [("routed", False), ("sum", False), ("gdpo", False), ("gdpo", True)]


@pytest.mark.parametrize("std", ["prompt", "step"])
@pytest.mark.parametrize(("mode", "batch_norm"), MODES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(mode, batch_norm, std, seed):
    spec = CreditSpec(mode=mode, std=std, batch_norm=batch_norm)
    values = random_values(seed)
    expected, degenerate = reference(values, spec)
    credit = assign_credit(tabulate(scored(values), REWARDS), spec, BOTH)
    for modality in BOTH:
        wanted = torch.tensor(expected[modality], dtype=torch.float64)
        assert credit.advantages[modality].dtype == torch.float64
        torch.testing.assert_close(credit.advantages[modality], wanted, rtol=1e-6, atol=1e-12)
        assert wanted.abs().max() > 0.1
    assert credit.metrics["credit/degenerate_groups"] == degenerate


def test_the_second_normalisation_is_over_those_who_earned_credit():
    """By hand: +-1 in the first group and +-1 in the last, five of nine samples with credit, the middle one 0."""
    values = {"text_video": [[0.0, None, 2.0], [4.0, 4.0, 4.0], [1.0, 2.0, 3.0]]}
    spec = CreditSpec(mode="gdpo", std="prompt", batch_norm=True)
    found = assign_credit(tabulate(scored(values), (TextVideoReward(),)), spec, BOTH).advantages
    edge = 1.5**0.5  # of 1, 2, 3 in their own standard deviation
    spread = ((1 + 1 + 1.5 + 0 + 1.5) / 5) ** 0.5
    wanted = torch.tensor([[-1.0, 0, 1], [0, 0, 0], [-edge, 0, edge]], dtype=torch.float64) / spread
    for modality in BOTH:
        torch.testing.assert_close(found[modality], wanted)


@pytest.mark.parametrize("std", ["prompt", "step"])
@pytest.mark.parametrize(("mode", "batch_norm"), MODES)
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 7.0, 1e6])
def test_the_unit_of_a_reward_changes_nothing(mode, batch_norm, std, factor):
    spec = CreditSpec(mode=mode, std=std, batch_norm=batch_norm)
    values = random_values(1) | {"text_video": [[0.3, 0.3, 0.3, None, 0.3], *random_values(1)["text_video"][1:]]}
    factors = {"sync": factor, "text_video": factor, "sound": factor if mode == "sum" else 1 / factor}
    scaled = {
        name: [[None if v is None else v * factors[name] for v in row] for row in rows] for name, rows in values.items()
    }
    one, other = (assign_credit(tabulate(scored(table), REWARDS), spec, BOTH) for table in (values, scaled))
    for modality in BOTH:
        torch.testing.assert_close(other.advantages[modality], one.advantages[modality], rtol=1e-9, atol=1e-12)
        assert torch.equal(other.earned[modality], one.earned[modality])
        assert one.advantages[modality].abs().max() > 0.1
    degenerate = [credit.metrics["credit/degenerate_groups"] for credit in (one, other)]
    assert degenerate == ([0, 0] if mode == "sum" else [1, 1])


def test_the_unit_of_the_weights_changes_nothing_that_is_normalised_again():
    spec, values = CreditSpec(mode="gdpo", batch_norm=True), random_values(2)
    one = assign_credit(tabulate(scored(values), REWARDS), spec, BOTH).advantages["video"]
    light = [reward.model_copy(update={"weight": reward.weight * 1e-6}) for reward in REWARDS]
    other = assign_credit(tabulate(scored(values), light), spec, BOTH).advantages["video"]
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


OPPOSED = [[0.1, 0.7, 0.3, 1 / 3], [0.9, 0.2, 1 / 7, 0.5]]


@pytest.mark.parametrize("std", ["prompt", "step"])
@pytest.mark.parametrize(("mode", "batch_norm"), MODES)
def test_what_cancels_gives_nothing(mode, batch_norm, std):
    """The second reward is the opposite of the first in another unit: they cancel, but for rounding."""
    spec = CreditSpec(mode=mode, std=std, batch_norm=batch_norm)
    rewards = (SyncReward(weight=0.7), TextVideoReward(weight=0.7 / 3 if mode == "sum" else 0.7))
    offset = 0 if mode == "sum" else 2
    values = {"sync": OPPOSED, "text_video": [[offset - 3 * v for v in row] for row in OPPOSED]}
    credit = assign_credit(tabulate(scored(values), rewards), spec, BOTH)
    for modality in ("video",) if mode == "routed" else BOTH:
        assert credit.advantages[modality].tolist() == [[0.0] * 4] * 2
        assert not credit.earned[modality].any()
    if mode == "routed":
        assert credit.advantages["audio"].abs().min() > 0.01 and credit.earned["audio"].all()


@pytest.mark.parametrize(("mode", "batch_norm"), [("sum", False), ("gdpo", False), ("gdpo", True)])
def test_a_group_that_cancels_takes_no_part_in_the_others(mode, batch_norm):
    spec = CreditSpec(mode=mode, std="prompt", batch_norm=batch_norm)
    rewards = (SyncReward(weight=1.0), TextVideoReward(weight=1.0))
    rows = {"sync": [[0.1, 0.7, 0.3], [0.0, 1.0, 2.0]], "text_video": [[-0.1, -0.7, -0.3], [1.0, 0.0, 5.0]]}
    credit = assign_credit(tabulate(scored(rows), rewards), spec, BOTH)
    only = {name: [*table[1:], *table[1:]] for name, table in rows.items()}
    expected = assign_credit(tabulate(scored(only), rewards), spec, BOTH)
    assert credit.advantages["video"][0].tolist() == [0.0] * 3 and not credit.earned["video"][0].any()
    torch.testing.assert_close(credit.advantages["video"][1], expected.advantages["video"][1])


def test_rounding_of_float32_is_no_spread():
    """Scores that differ in their last place alone, in every group of the step."""
    row = torch.tensor([0.7, 0.7, 0.7]).nextafter(torch.tensor([1.0, 0.0, 0.7])).tolist()
    for std in ("prompt", "step"):
        credit = assign_credit(tabulate(scored({"text_video": [row, row]}), REWARDS[2:]), CreditSpec(std=std), BOTH)
        assert len(set(row)) == 3 and not credit.advantages["video"].any() and not credit.earned["video"].any()
        assert credit.metrics["credit/degenerate_groups"] == 2


def test_epsilon_is_a_share():
    with pytest.raises(ValueError, match="less than 1"):
        CreditSpec(epsilon=1.0)


def test_routing_keeps_branches_apart():
    values = {
        "sync": [[1.0, 1.0, 1.0]],
        "sound": [[0.0, 1.0, 2.0]],
        "text_video": [[5.0, 3.0, 1.0]],
    }
    credit = assign_credit(tabulate(scored(values), REWARDS), CreditSpec(mode="routed"), BOTH)
    assert torch.all(credit.advantages["audio"].diff(dim=1) > 0)
    assert torch.all(credit.advantages["video"].diff(dim=1) < 0)
    assert credit.metrics["credit/degenerate_groups"] == 1


def test_invalid_scores_change_nothing_for_the_others():
    short = {reward.name: [[0.1, 0.9, 0.4]] for reward in REWARDS}
    long = {reward.name: [[0.1, None, 0.9, 0.4]] for reward in REWARDS}
    for mode in ("routed", "sum", "gdpo"):
        spec = CreditSpec(mode=mode, std="prompt")
        a = assign_credit(tabulate(scored(short), REWARDS), spec, BOTH).advantages["video"]
        b = assign_credit(tabulate(scored(long), REWARDS), spec, BOTH).advantages["video"]
        assert b[0, 1] == 0
        torch.testing.assert_close(b[0, [0, 2, 3]], a[0])


@pytest.mark.parametrize("mode", ["routed", "sum", "gdpo"])
@pytest.mark.parametrize("std", ["prompt", "step"])
@pytest.mark.parametrize(
    "row",
    [
        [2.0, 2.0, 2.0], [2.0, 2.00001, 2.0], [0.0, 0.00001, 0.0], [None, None, None], [None, 2.0, None],
        [2.0, 2.0, None],
    ],
)  # fmt: skip
def test_degenerate_groups_earn_nothing(row, std, mode):
    values = {reward.name: [row, [0.0, 1.0, 3.0]] for reward in REWARDS}
    credit = assign_credit(tabulate(scored(values), REWARDS), CreditSpec(mode=mode, std=std), BOTH)
    for modality in BOTH:
        assert torch.equal(credit.advantages[modality][0], torch.zeros(3, dtype=torch.float64))
        assert credit.advantages[modality][1].abs().min() > 0
        assert credit.advantages[modality].isfinite().all()
        assert credit.earned[modality].tolist() == [[False] * 3, [True] * 3]
    assert credit.metrics["credit/degenerate_groups"] == (1 if mode == "sum" else 3)


def test_optional_reward_that_is_down_is_left_out_and_counted():
    rewards = (SyncReward(required=False), TextVideoReward())
    values = {"sync": [[None, None], [None, None]], "text_video": [[0.0, 1.0], [1.0, 0.0]]}
    for mode in ("routed", "sum", "gdpo"):
        credit = assign_credit(tabulate(scored(values), rewards), CreditSpec(mode=mode), BOTH)
        assert credit.advantages["video"].abs().min() > 0.5
        assert credit.metrics["credit/degenerate_groups"] == 2
        assert credit.metrics["reward/sync/mean"] is None
        assert credit.metrics["reward/sync/valid_ratio"] == 0
    assert torch.equal(
        assign_credit(tabulate(scored(values), rewards), CreditSpec(mode="routed"), BOTH).advantages["audio"],
        torch.zeros(2, 2, dtype=torch.float64),
    )


@pytest.mark.parametrize("mode", ["routed", "sum", "gdpo"])
def test_an_optional_reward_whose_server_fails_one_sample_is_dropped_for_the_whole_step(mode):
    """Bit for bit the step without it: also the samples, and the groups, that it did score do without."""
    spec = CreditSpec(mode=mode, batch_norm=mode == "gdpo")
    kept = {"text_video": [[0.0, 1.0, 4.0], [1.0, 0.0, 2.0]]}
    values = {"sync": [[0.3, 0.1, 0.9], [0.5, None, 0.2]], **kept}
    alone = assign_credit(tabulate(scored(kept), REWARDS[2:]), spec, BOTH)
    rewards = (SyncReward(required=False), REWARDS[2])
    beside = assign_credit(tabulate(scored(values), rewards), spec, BOTH)
    for modality in BOTH:
        assert torch.equal(alone.advantages[modality], beside.advantages[modality])
        assert torch.equal(alone.earned[modality], beside.earned[modality])
    assert beside.metrics["reward/sync/dropped"] == 1.0 and beside.metrics["reward/text_video/dropped"] == 0.0
    assert beside.metrics["reward/sync/invalid/timeout"] == 1.0
    assert beside.metrics["reward/sync/mean"] == pytest.approx((0.3 + 0.1 + 0.9 + 0.5 + 0.2) / 5)
    required = assign_credit(tabulate(scored(values), (SyncReward(), REWARDS[2])), spec, BOTH)
    assert required.metrics["reward/sync/dropped"] == 0.0
    assert not torch.equal(alone.advantages["video"], required.advantages["video"])


def test_what_a_clip_causes_drops_no_reward():
    groups = scored({"sync": [[0.3, 0.1, None]], "text_video": [[0.0, 1.0, 4.0]]})
    told = RewardScores("sync", "1", (0.3, 0.1, math.nan), ("ok", "ok", "too_short"))
    groups = [replace(group, scores={**group.scores, "sync": told}) for group in groups]
    credit = assign_credit(tabulate(groups, (SyncReward(required=False), REWARDS[2])), CreditSpec(), BOTH)
    assert credit.metrics["reward/sync/dropped"] == 0.0 and credit.metrics["reward/sync/invalid/too_short"] == 1.0
    assert credit.advantages["audio"].abs().max() > 0


def test_required_reward_that_is_down_stops_the_step():
    values = {reward.name: [[0.0, 1.0]] for reward in REWARDS} | {"sync": [[None, None]]}
    with pytest.raises(RewardError, match=r"'sync'.*timeout"):
        tabulate(scored(values), REWARDS)


def test_a_step_whose_prompts_ask_a_required_reward_nothing_goes_on_without_it():
    values = {"sync": [[0.0, 1.0, 3.0]], "text_video": [[0.0, 1.0, 2.0]]}

    def told(name, reasons):
        (group,) = scored(values)
        return replace(group, scores=group.scores | {name: RewardScores(name, "1", (math.nan,) * 3, reasons)})

    rewards = (SyncReward(), TextVideoReward())
    credit = assign_credit(tabulate([told("text_video", ("unverifiable",) * 3)], rewards), CreditSpec(), BOTH)
    alone = assign_credit(tabulate(scored(values), (SyncReward(),)), CreditSpec(), BOTH)
    assert torch.equal(credit.advantages["video"], alone.advantages["video"])
    assert credit.metrics["reward/text_video/invalid/unverifiable"] == 3.0
    for name, reasons in (("sync", ("unverifiable",) * 3), ("text_video", ("unverifiable", "timeout", "timeout"))):
        with pytest.raises(RewardError, match=f"'{name}'.*unverifiable"):
            tabulate([told(name, reasons)], rewards)


def test_infinite_scores_are_invalid_and_zero_weight_is_measured_only():
    rewards = (SyncReward(weight=0.0), TextVideoReward())
    values = {"sync": [[1.0, math.inf, 3.0]], "text_video": [[0.0, 1.0, 2.0]]}
    credit = assign_credit(tabulate(scored(values), rewards), CreditSpec(), BOTH)
    assert credit.metrics["reward/sync/mean"] == 2.0
    assert credit.metrics["reward/sync/valid_ratio"] == pytest.approx(2 / 3)
    assert torch.equal(credit.advantages["audio"], torch.zeros(1, 3, dtype=torch.float64))
    assert credit.metrics["advantage/audio/zero_ratio"] == 1.0


@pytest.mark.parametrize("mode", ["routed", "sum", "gdpo"])
def test_a_reward_without_weight_changes_nothing(mode):
    spec = CreditSpec(mode=mode, batch_norm=mode == "gdpo")
    trained = {"text_video": [[0.0, 1.0, 2.0], [1.0, None, 5.0]]}
    alone = assign_credit(tabulate(scored(trained), REWARDS[2:]), spec, BOTH)
    measured = trained | {"sync": [[None, 3.0, 3.0], [3.0, 3.0, 3.0]]}
    beside = assign_credit(tabulate(scored(measured), (SyncReward(weight=0.0), REWARDS[2])), spec, BOTH)
    for modality in BOTH:
        assert torch.equal(alone.advantages[modality], beside.advantages[modality])
        assert torch.equal(alone.earned[modality], beside.earned[modality])
    assert alone.metrics["credit/degenerate_groups"] == beside.metrics["credit/degenerate_groups"] == 0


def test_who_earned_credit_is_known_per_branch():
    values = {"text_video": [[0.0, None, 2.0]], "sound": [[None, 1.0, 1.5]], "sync": [[None] * 3]}
    rewards = (REWARDS[1], REWARDS[2], SyncReward(required=False))
    credit = assign_credit(tabulate(scored(values), rewards), CreditSpec(mode="routed"), BOTH)
    assert {m: earned.tolist() for m, earned in credit.earned.items()} == {
        "video": [[True, False, True]], "audio": [[False, True, True]],
    }  # fmt: skip


class TestShaping:
    def credit(self, reward, rows, spec=None):
        tables = tabulate(scored({reward.name: rows}), (reward,))
        return assign_credit(tables, spec or CreditSpec(), BOTH)

    def test_beyond_a_bound_nothing_more_is_earned(self):
        rows = [[0.0, 2.0, 9.0, 100.0]]
        found = self.credit(TextVideoReward(clip=(0.5, 2.0)), rows)
        plain = self.credit(TextVideoReward(), [[0.5, 2.0, 2.0, 2.0]])
        assert torch.equal(found.advantages["video"], plain.advantages["video"])
        assert found.metrics["reward/text_video/mean"] == mean(rows[0])

    def test_within_a_band_all_earn_alike_and_outside_by_distance(self):
        found = self.credit(TextVideoReward(band=(1.0, 2.0)), [[0.5, 1.0, 1.7, 2.0, 3.0, None]])
        plain = self.credit(TextVideoReward(), [[-0.5, 0.0, 0.0, 0.0, -1.0, None]])
        assert torch.equal(found.advantages["video"], plain.advantages["video"])

    def test_a_shadow_is_measured_and_earns_nothing_until_it_is_over(self):
        rows = random_values(3)["text_video"]
        shadow, plain = self.credit(TextVideoReward(shadow_steps=1), rows), self.credit(TextVideoReward(), rows)
        assert not shadow.advantages["video"].any() and plain.advantages["video"].any()
        assert shadow.metrics["reward/text_video/mean"] == plain.metrics["reward/text_video/mean"]

    def test_who_stands_at_the_end_of_the_range_and_which_groups_are_flat_is_counted(self):
        found = self.credit(TextVideoReward(), [[1.0, 0.996, 0.9, 0.2], [0.3, 0.3, 0.3, None]]).metrics
        assert found["reward/text_video/saturated"] == 2 / 7
        assert found["reward/text_video/flat_groups"] == 1.0

    def test_bounds_that_hold_nothing_are_refused(self):
        told = dict(TextVideoReward(clip=(1.0, 0.0)).problems(None, None))
        assert "lower bound first" in told["clip"]


class TestEnsembles:
    ROWS: ClassVar = {"a": [[0.0, 1.0, 2.0, 9.0]], "b": [[5.0, 7.0, 6.0, None]]}

    def combined(self, combine, k=1.0):
        rewards = [TextVideoReward.model_construct(**(TextVideoReward().model_dump() | {"name": n})) for n in "ab"]
        ensemble = EnsembleSpec(name="both", members=("a", "b"), combine=combine, k=k)
        (table,) = ensembled(tabulate(scored(self.ROWS), rewards), (ensemble,))
        assert table.reward == "both" and table.weight == 2.0 and table.valid_PG.tolist() == [[True, True, True, False]]
        return table.values_PG[0].tolist()

    def expected(self, fold):
        members = []
        for rows in self.ROWS.values():
            row = rows[0][:3]
            members.append([(value - mean(row)) / deviation(row) for value in row])
        return [*(fold(pair) for pair in zip(*members, strict=True)), 0.0]

    @pytest.mark.parametrize(
        ("combine", "fold"),
        [("mean", mean), ("min", min), ("lower_confidence", lambda pair: mean(pair) - 1.5 * deviation(pair))],
    )
    def test_members_are_combined_in_standard_deviations(self, combine, fold):
        assert self.combined(combine, 1.5) == pytest.approx(self.expected(fold))

    def test_ranks_are_those_within_the_prompt(self):
        # a: 0 < 1 < 2, b: 5 < 6 < 7; the sample without a score of b lies at the mean of either
        first, second, third, _ = self.combined("rank")
        assert first < second == third

    def test_the_credit_of_members_that_agree_is_that_of_one(self):
        rewards = [TextVideoReward.model_construct(**(TextVideoReward().model_dump() | {"name": n})) for n in "ab"]
        rows = [[0.0, 1.0, 2.0, 9.0], [4.0, 1.0, 1.0, 0.0]]
        spec = CreditSpec(std="prompt", ensembles=(EnsembleSpec(name="both", members=("a", "b")),))
        found = assign_credit(tabulate(scored({"a": rows, "b": rows}), rewards), spec, BOTH).advantages["video"]
        alone = assign_credit(tabulate(scored({"a": rows}), rewards[:1]), CreditSpec(std="prompt"), BOTH)
        assert found == pytest.approx(2 * alone.advantages["video"])
