"""How an attempt's errors travel, and what a rank refuses."""

import math
import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from accord.errors import AccordError, ModelError, NonFiniteError, RewardError, SpecError, VolumeFull
from learner.collectives import Ranks
from learner.rank import _require_finite
from learner.trainer import would_repeat
from learner.workers import _page_error

OURS = [
    RewardError("sync is down"), NonFiniteError("step 3"), SpecError([("/algorithm/sigmas", "none left")]),
    ModelError("no such directory"), VolumeFull("no space"),
]  # fmt: skip


def across(error: Exception) -> Exception:
    """An error as it arrives from a task of a task: two of Ray's layers around it."""
    layer = error
    for _ in range(2):
        layer = RayTaskError("take", "traceback", layer, "", 1, "127.0.0.1").as_instanceof_cause()
    return layer


def ended_with(*failures: Exception) -> Exception:
    return WorkerGroupError("text", dict(enumerate(failures)))


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_comes_back_as_itself_from_wherever_it_arose(error):
    for arrived in (error, across(error)):
        found = pickle.loads(pickle.dumps(_page_error(ended_with(RuntimeError("a peer is gone"), arrived))))
        assert type(found) is type(error) and found.args == error.args and str(found) == str(error)
        assert would_repeat(arrived)


def test_what_restarts_the_ranks_and_what_does_not():
    deaths = [RuntimeError("gloo: connection closed by peer"), ConnectionResetError(), TimeoutError(), MemoryError()]
    for error in (*deaths, ActorDiedError(), WorkerHealthCheckFailedError("gone", failure=ActorDiedError())):
        assert not would_repeat(error), repr(error)
    for error in (OSError(36, "File name too long"), TypeError("x"), KeyError("x")):
        assert would_repeat(error), repr(error)
    assert type(_page_error(ended_with(KeyError("x")))) is AccordError


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
