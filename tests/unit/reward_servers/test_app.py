"""Names and messages of the servers; what needs no cluster."""

from __future__ import annotations

import pytest

from accord.config.rewards.panel import SyncReward
from accord.config.rewards.sound import ClapReward
from reward_servers import app
from reward_servers.placement import app_name


def test_jobs_share_a_server_unless_their_models_differ():
    assert app_name(SyncReward()) == "sync"
    assert app_name(SyncReward(weight=3.0, route="video", required=False, deadline_s=5.0, max_replicas=9)) == "sync"
    assert app_name(ClapReward()) == "clap"
    other = app_name(ClapReward(path="/models/clap"))
    assert other.startswith("clap-") and other == app_name(ClapReward(path="/models/clap", weight=2.0))
    assert other != app_name(ClapReward(path="/models/other"))


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (
            "The deployment failed to start 2 times in a row. Error:\nTraceback (most recent call last):\n"
            '  File "base.py", line 3, in build\n    raise ModelError("x")\n'
            "accord.errors.ModelError: CLAP checkpoint '/tmp' lacks config.json; save it again\n",
            "accord.errors.ModelError: CLAP checkpoint '/tmp' lacks config.json; save it again",
        ),
        ("Failed to update the deployments ['RewardServer'].", "Failed to update the deployments ['RewardServer']."),
    ],
)
def test_a_failed_start_is_told_by_its_last_exception(message, cause):
    assert app._cause(message) == cause
