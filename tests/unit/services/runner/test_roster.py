"""What the first attempt noted of the rewards holds for every later one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from accord.errors import SpecError
from accord.run_folder import ROSTER, RunFolder
from accord.types import RewardIdentity
from services.runner.roster import hold_roster
from tests.unit.services.runner.test_local import job

FIRST = {"sync": RewardIdentity("3", "aa")}


def test_the_first_attempt_notes_and_a_later_one_with_the_same_goes_on(tmp_path):
    folder = RunFolder(tmp_path)
    hold_roster(job(), folder, FIRST)
    assert json.loads(folder.read(ROSTER)) == {"sync": {"version": "3", "weights_digest": "aa"}}
    hold_roster(job(), folder, dict(FIRST))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "4"}, r"sync: version '3' when the job began, '4' now; .*submit a new job"),
        ({"weights_digest": "bb"}, r"sync: weights aa when the job began, bb now; put the old ones back"),
        ({"weights_digest": ""}, r"sync: weights aa when the job began, none now"),
    ],
)
def test_a_silent_change_is_refused_and_the_note_stays(tmp_path, change, said):
    folder = RunFolder(tmp_path)
    hold_roster(job(), folder, FIRST)
    with pytest.raises(SpecError, match=said) as caught:
        hold_roster(job(), folder, {"sync": replace(FIRST["sync"], **change)})
    assert [pointer for pointer, _ in caught.value.problems] == ["/rewards/0"]
    hold_roster(job(), folder, FIRST)
