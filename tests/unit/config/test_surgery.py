"""What a surgery schedule leaves of the gradient at each block, for models of any depth."""

import pytest

from accord.config.algorithm_parts import BlockScale, SurgerySpec
from accord.config.forward import OmniNFTSpec


def factors(preset: str, depth: int) -> list[float]:
    return OmniNFTSpec.model_validate({"preset": preset}).surgery.factors(depth)


def test_the_presets_at_full_depth_are_exact():
    assert factors("published", 48) == [0.0] + [0.1] * 10 + [1.0] * 29 + [0.3] * 8
    assert factors("paper", 48) == [0.9] * 10 + [1.0] * 38
    assert factors("accord", 48) == [0.0] + [0.1] * 10 + [1.0] * 37


def test_a_schedule_in_fractions_takes_the_same_from_a_model_of_any_depth():
    # A quarter of the depth is 12 of 48 blocks: one kept 0, ten kept 0.1, one kept 1, so their mean is 2 / 12.
    assert factors("accord", 4) == pytest.approx([1 / 6, 1, 1, 1])
    assert factors("accord", 8) == pytest.approx([0.5 / 6, 1 / 6 + 1 / 12, *[1] * 6])
    for depth in (1, 2, 3, 5, 7, 24, 28, 60):
        assert sum(factors("accord", depth)) / depth == pytest.approx((0 + 10 * 0.1 + 37) / 48), depth


def test_later_runs_win_and_whole_blocks_keep_exactly_what_is_written():
    runs = (BlockScale(start=0.0, stop=0.5, keep=0.3), BlockScale(start=0.25, stop=0.5, keep=0.1))
    spec = SurgerySpec(schedule=runs)
    assert spec.factors(4) == [0.3, 0.1, 1.0, 1.0]
    assert spec.factors(1) == pytest.approx([0.25 * 0.3 + 0.25 * 0.1 + 0.5])
    assert SurgerySpec(schedule=runs, enabled=False).factors(2) == [1.0, 1.0]
    third = SurgerySpec(schedule=(BlockScale(start=1 / 3, stop=2 / 3, keep=0.7),))
    assert third.factors(6) == [1.0, 1.0, 0.7, 0.7, 1.0, 1.0]


def test_a_block_number_beyond_the_depth_is_refused():
    deep = SurgerySpec(schedule=(BlockScale(start=40, stop=48, keep=0.3, unit="block"),))
    assert deep.factors(48)[39:41] == [1.0, 0.3]
    with pytest.raises(ValueError, match="/schedule/0/stop: 48 is beyond the model's 4 blocks"):
        deep.factors(4)
