"""The control plane's benchmark: every arm answers, every row has its numbers, and refusals are not speed."""

from __future__ import annotations

import pytest

from benchmarks import api
from services.cli.job_file import read_job

TINY = api.Plan(rounds=1, seconds=0.3, connections=2, clients=4, jobs=2, rate=40, streams=3)
JOB = api.ROOT / "examples" / "tiny_omninft.toml"


@pytest.fixture(scope="module")
def measured() -> tuple[api.Measured, list[str]]:
    TINY.spec = read_job(JOB, [])
    return api.compare(TINY, None)


def test_every_row_has_a_number_of_every_arm_it_names(measured: tuple[api.Measured, list[str]]) -> None:
    rows, arms = measured
    assert arms == [api.NOTHING, api.KEY, api.ROUTE, api.OURS]
    for row in ("POST rate", "POST p50", "POST p99"):
        assert {arm: len(values) for arm, values in rows[row].items()} == dict.fromkeys(arms, 1)
    assert set(rows["SSE p99"]) == {api.NOTHING, api.OURS}
    for row in ("list of 100 rate", "RSS MiB", "/metrics p50", "POST beside 3 streams p50"):
        assert set(rows[row]) == {api.OURS}
    assert all(value > 0 for by_arm in rows.values() for values in by_arm.values() for value in values)


def test_the_table_has_all_rows_and_the_ratios(measured: tuple[api.Measured, list[str]]) -> None:
    rows, arms = measured
    text = api.table(rows, arms)
    assert all(row in text for row in rows)
    ratio = rows["POST rate"][api.OURS][0] / rows["POST rate"][api.KEY][0]
    assert f"POST rate: accord ÷ one key = {ratio:.3f}  ({ratio:.3f} to {ratio:.3f}, 1 rounds)" in text


def test_ratios_are_taken_within_rounds() -> None:
    rates = {api.NOTHING: [10.0, 100.0], api.KEY: [2.0, 4.0], api.ROUTE: [1.0, 2.0], api.OURS: [1.0, 4.0]}
    rows: api.Measured = {"POST rate": rates, "SSE p99": {api.OURS: [3.0], api.NOTHING: [1.0]}}
    text = api.table(rows, list(rates))
    assert "POST rate: accord ÷ one key = 0.750  (0.500 to 1.000, 2 rounds)" in text
    assert "SSE p99: accord ÷ nothing = 3.000" in text


def test_refusals_are_no_speed() -> None:
    class Counted:
        def communicate(self, timeout: float) -> tuple[str, None]:
            return '{"count": 9, "rate": 1.0, "refused": {"429": 9}, "lost": 0}', None

    with pytest.raises(SystemExit, match="429"):
        api.result(Counted(), api.Arm("accord", 1, None))  # type: ignore[arg-type]
