"""Which rewards share a server, and what is asked of Ray for it."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from accord.config.rewards.panel import DynamicDegreeReward, SyncReward, TemporalFlickerReward
from accord.config.rewards.sound import ClapReward
from accord.errors import SpecError
from reward_servers.environments import environments
from reward_servers.placement import Application, app_name, applications, by_reward


def names(*specs):
    return {application.name: [spec.name for spec in application.specs] for application in applications(specs)}


def test_rewards_of_a_pack_share_an_application_and_the_others_do_not():
    sync, flicker = SyncReward(pack="a"), TemporalFlickerReward(pack="a")
    found = names(sync, ClapReward(pack=""), flicker)
    (pack,) = (name for name in found if name.startswith("pack-a-"))
    assert found == {pack: ["sync", "temporal_flicker"], "clap": ["clap"]}
    assert by_reward([sync, flicker])["temporal_flicker"].name == pack
    assert list(names(flicker, sync, DynamicDegreeReward(pack="a"))) != [pack], "another company is another pack"
    assert pack in names(SyncReward(pack="a", weight=3.0), flicker), "what only concerns a job changes nothing"
    assert names(sync) == {"sync": ["sync"]}, "a pack of one is no pack"


def test_what_is_to_run_elsewhere_shares_no_process():
    sync, flicker = SyncReward(pack="a"), TemporalFlickerReward(pack="a", env="old")
    found = names(sync, flicker)
    assert list(found.values()) == [["sync"], ["temporal_flicker"]]
    places = [{"env": "old"}, {"num_gpus": 0.5}, {"accelerator_type": "L4"}, {"node_labels": {"pool": "rewards"}}]
    assert len({app_name(SyncReward(**place)) for place in [{}, *places]}) == 5


def test_a_pack_asks_for_the_gpus_of_all_and_the_cpu_of_the_widest():
    members = (SyncReward(num_cpus=0.5, num_gpus=0.25), TemporalFlickerReward(num_cpus=2.0, num_gpus=0.5))
    assert Application("p", members).actor_options(None) == {"num_cpus": 2.0, "num_gpus": 0.75}
    wide = (SyncReward(num_gpus=0.5), TemporalFlickerReward(num_gpus=1.0))
    assert Application("p", wide).actor_options(None)["num_gpus"] == 2, "Ray gives whole GPUs above one"


def test_the_place_of_a_reward_is_what_ray_is_asked_for():
    spec = SyncReward(accelerator_type="H100", node_labels={"pool": "rewards"}, num_gpus=1.0)
    options = Application("sync", (spec,)).actor_options({"uv": ["a==1"]})
    assert options["accelerator_type"] == "H100" and options["label_selector"] == {"pool": "rewards"}
    assert options["runtime_env"] == {"uv": ["a==1"]}


@pytest.mark.parametrize("labels", [{"": "x"}, {"pool": ""}, {"pool": "a b"}, {"a b": "x"}, {"pool": "in()"}])
def test_labels_that_are_none_are_refused_in_the_job(labels):
    with pytest.raises(ValidationError, match="node_labels"):
        SyncReward(node_labels=labels)
    assert SyncReward(node_labels={"pool": "!in(a,b)", "ray.io/zone": "eu-1"})


def test_scaling_is_quick_up_and_slow_down_by_default():
    (application,) = applications([SyncReward(max_batch_groups=8, min_replicas=0)])
    scaling = application.autoscaling(*application.bounds)
    assert 2 <= scaling["upscale_delay_s"] <= 5 and 5 <= scaling["look_back_period_s"] <= 10
    assert (scaling["min_replicas"], scaling["initial_replicas"], scaling["target_ongoing_requests"]) == (0, 0, 16)
    assert SyncReward(max_queued=7).queue_bound == 7
    assert application.queue_bound == 4 * 8 * 4


def test_environments_are_those_of_whoever_runs_the_cluster(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"env_vars": {"A": "1"}}))
    (tmp_path / "torn.json").write_text("[1")
    specs = [SyncReward(), ClapReward(env="old")]
    assert environments(specs, tmp_path) == {"old": {"env_vars": {"A": "1"}}}
    assert environments([SyncReward()], None) == {}
    for name, folder, said in (("new", tmp_path, "there are: old, torn"), ("torn", tmp_path, "'torn'"),
                               ("old", None, "ACCORD_REWARD_ENVS")):  # fmt: skip
        with pytest.raises(SpecError, match=said) as caught:
            environments([SyncReward(), ClapReward(env=name)], folder)
        assert [pointer for pointer, _ in caught.value.problems] == ["/rewards/1/env"]
