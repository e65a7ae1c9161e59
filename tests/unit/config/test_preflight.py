"""Every mismatch between a spec and its files comes back with the JSON pointer of its field."""

import json
from pathlib import Path

import pytest

from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.errors import SpecError


def check(tree) -> list[tuple[str, str]]:
    try:
        preflight(JobSpec.parse(json.dumps(tree)))
    except SpecError as error:
        return error.problems
    return []


def test_a_job_that_fits_passes(job_tree):
    assert check(job_tree) == []


@pytest.mark.parametrize(
    ("path", "value", "pointer", "message"),
    [
        ("backbone.path", "/nowhere", "/backbone/path", "no such directory"),
        ("sampling.frames", 24, "/sampling/frames", "8 k + 1, as 17 or 25"),
        ("sampling.height", 40, "/sampling/height", "multiple of 32, as 32"),
        ("sampling.width", 90, "/sampling/width", "multiple of 32, as 96"),
        ("prompts.train", "/nowhere.jsonl", "/prompts/train", "No such file"),
        ("prompts.held_out", "/nowhere.jsonl", "/prompts/held_out", "No such file"),
        ("algorithm.preset", "published", "/algorithm/surgery/schedule/1/stop", "11 is beyond the model's 3 blocks"),
        ("algorithm.sigmas", {"low": 0.01, "high": 0.02}, "/algorithm/sigmas/low", "no sigma of the schedule"),
        ("backbone.lora", {"targets": ["attn1", "attn7"]}, "/backbone/lora/targets", "attn7: no such part"),
    ],
)
def test_a_misfit_names_its_field(job_tree, path, value, pointer, message):
    *parents, last = path.split(".")
    place = job_tree
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    problems = dict(check(job_tree))
    assert message in problems[pointer]


def test_all_problems_come_at_once(job_tree):
    job_tree["sampling"] |= {"frames": 24, "height": 33}
    job_tree["prompts"]["train"] = "/nowhere"
    assert {pointer for pointer, _ in check(job_tree)} == {"/sampling/frames", "/sampling/height", "/prompts/train"}


def test_surgery_that_is_off_is_not_checked(job_tree):
    job_tree["algorithm"] = {"name": "omninft", "preset": "published", "surgery": {"enabled": False}}
    assert check(job_tree) == []
    job_tree["algorithm"] = {"name": "diffusion_nft"}
    assert check(job_tree) == []


def test_block_numbers_must_be_whole(job_tree):
    run = {"start": 0.5, "stop": 2, "keep": 0.1, "unit": "block"}
    job_tree["algorithm"]["surgery"] = {"schedule": [run]}
    assert check(job_tree) == [("/algorithm/surgery/schedule/0/start", "0.5 is not a whole block number")]


def test_held_out_prompts_must_not_be_trained_on(job_tree):
    train = Path(job_tree["prompts"]["train"])
    line = {"id": "again", "prompt_av": "A  blue BALL", "prompt_v": "x", "prompt_a": "x"}
    train.write_text(train.read_text() + json.dumps(line) + "\n")
    ((pointer, message),) = check(job_tree)
    assert pointer == "/prompts/held_out" and message.startswith("blue: also in the training prompts")


def test_a_schedule_of_another_kind_is_the_models_fault(job_tree):
    config = Path(job_tree["backbone"]["path"]) / "scheduler" / "scheduler_config.json"
    config.write_text('{"use_karras_sigmas": true}')
    ((pointer, message),) = check(job_tree)
    assert pointer == "/backbone/path" and "use_karras_sigmas" in message
