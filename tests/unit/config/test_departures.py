"""A preset carries the sampler it was made with, and a job that overrides it says so."""

import json

import pytest

from accord.config.departures import departures
from accord.config.job import JobSpec
from accord.errors import SpecError


def job(algorithm: dict, sampling: dict | None = None) -> JobSpec:
    tree = {
        "steps": 2, "backbone": {"name": "ltx2"}, "prompts": {"train": "t", "held_out": "h"},
        "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}], "algorithm": algorithm,
    }  # fmt: skip
    return JobSpec.parse(json.dumps(tree | ({} if sampling is None else {"sampling": sampling})))


PUBLISHED = {"name": "omninft", "preset": "published"}


def test_a_preset_brings_its_sampler():
    found = job(PUBLISHED, {"frames": 121, "fps": 24.0}).sampling
    assert (found.num_steps, found.shift, found.frames, found.fps) == (20, 2.05, 121, 24.0)
    assert (found.scales("guidance"), found.scales("stg_scale")) == (
        {"video": 1.5, "audio": 3.0}, {"video": 1.0, "audio": 1.0}
    )  # fmt: skip
    assert (found.stg_blocks, found.passes) == ((29,), 3)
    assert job(PUBLISHED).sampling.num_steps == 20
    assert job({"name": "flow_grpo", "preset": "dance_grpo"}).sampling.num_steps == 16


def test_a_job_without_a_claim_keeps_the_defaults_and_departs_from_nothing():
    plain = job({"name": "omninft", "loss": {"beta": 0.5}}, {"num_steps": 5})
    assert job({"name": "omninft"}).sampling == type(plain.sampling)()
    assert departures(plain) == [] == departures(job({"name": "awm"}))
    assert departures(job(PUBLISHED)) == []


def test_each_overridden_field_is_a_departure():
    changed = job({**PUBLISHED, "loss": {"normaliser": "detached"}, "surgery": {"enabled": False}},
                  {"num_steps": 8, "guidance": 1.0, "stg_scale": 0.0, "modality_scale": 3.0, "frames": 9})  # fmt: skip
    assert departures(changed) == [
        '/algorithm/loss/normaliser: "detached", and preset \'published\' has "attached"',
        "/algorithm/surgery/enabled: false, and preset 'published' has true",
        "/sampling/guidance: 1.0, and preset 'published' has 1.5",
        "/sampling/stg_scale: 0.0, and preset 'published' has 1.0",
        "/sampling/modality_scale: 3.0, and preset 'published' has 1.0",
        "/sampling/num_steps: 8, and preset 'published' has 20",
    ]


def test_a_resolved_spec_is_read_back_as_it_is():
    for spec in (job(PUBLISHED), job(PUBLISHED, {"num_steps": 8, "stg_scale": 0.0})):
        again = JobSpec.parse(spec.model_dump_json())
        assert again == spec and departures(again) == departures(spec)


def test_what_contradicts_the_presets_sampler_names_the_field_and_the_preset():
    with pytest.raises(SpecError) as caught:
        job(PUBLISHED, {"stg_blocks": []})
    ((pointer, message),) = caught.value.problems
    assert pointer == "/sampling/stg_blocks" and "what the job leaves out is that of preset 'published'" in message


def test_diffusion_nft_as_published_normalises_the_weighted_sum():
    assert job({"name": "diffusion_nft", "preset": "published"}).algorithm.credit.mode == "sum"
    assert job({"name": "diffusion_nft"}).algorithm.credit.mode == "gdpo"
