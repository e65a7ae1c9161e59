"""How an attempt's errors travel, and how the run folder is cut back."""

import json
import math
from pathlib import Path

import pytest

from accord.errors import AccordError, NonFiniteError, RewardError, SpecError
from learner.group import Attempt, _note_failure, _raise_failure, rank_main
from learner.rank import _require_finite
from learner.ranks import Ranks
from learner.run import _cut_metrics


def attempt(directory: Path) -> Attempt:
    found = Attempt(None, directory, [], None, None, None, 3)
    found.failure.parent.mkdir(parents=True, exist_ok=True)
    return found


@pytest.mark.parametrize(
    "error", [RewardError("sync is down"), NonFiniteError("step 3"), SpecError([("/algorithm/sigmas", "none left")])]
)
def test_an_error_of_ours_comes_back_as_itself(tmp_path, error):
    _note_failure(attempt(tmp_path), error)
    with pytest.raises(type(error)) as caught:
        _raise_failure(attempt(tmp_path))
    assert str(caught.value) == str(error)


def test_the_first_error_has_the_word_and_the_restarted_group_returns_at_once(tmp_path):
    one = attempt(tmp_path)
    _raise_failure(one)  # nothing noted, nothing raised
    _note_failure(one, RewardError("first"))
    _note_failure(one, AccordError("consequence"))
    assert rank_main(one) is None
    with pytest.raises(RewardError, match="first"):
        _raise_failure(one)


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _cut_metrics(path, 0)
    assert not path.exists()
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "met')
    _cut_metrics(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_names_step_and_modality(value):
    with pytest.raises(NonFiniteError, match=r"step 7: loss/audio is"):
        _require_finite(7, {"loss/video": 1.0, "loss/audio": value})


def test_groups_divide_contiguously():
    ranks = Ranks()
    ranks.count, ranks.index = 3, 1
    assert list(ranks.share(6)) == [2, 3]
    with pytest.raises(ValueError, match="do not divide"):
        ranks.share(7)
