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
        ("backbone.path", "/nowhere", "/backbone/path", "/nowhere: No such file"),
        ("sampling.frames", 24, "/sampling/frames", "8 k + 1, as 17 or 25"),
        ("sampling.height", 40, "/sampling/height", "multiple of 32, as 32"),
        ("sampling.width", 90, "/sampling/width", "multiple of 32, as 96"),
        ("sampling.stg_blocks", [1, 3, 28], "/sampling/stg_blocks", "3, 28: beyond the model's 3 blocks; use 0 to 2"),
        ("prompts.train", "/nowhere.jsonl", "/prompts/train", "No such file"),
        ("prompts.held_out", "/nowhere.jsonl", "/prompts/held_out", "No such file"),
        ("algorithm.preset", "published", "/algorithm/surgery/schedule/1/stop", "11 is beyond the model's 3 blocks"),
        ("algorithm.sigmas", {"low": 0.01, "high": 0.02}, "/algorithm/sigmas/low", "no sigma of the schedule"),
        ("algorithm.preset", "published", "/algorithm/surgery/schedule/2/start", "schedule of preset 'published'"),
        ("algorithm.preset", "paper", "/algorithm/surgery/schedule/0/stop", "10 is beyond the model's 3 blocks"),
        ("algorithm.preset", "published", "/sampling/stg_blocks", "this is the sampling of preset 'published'"),
        ("backbone.lora", {"targets": ["attn1", "attn7"]}, "/backbone/lora/targets", "attn7: no such part"),
        ("backbone.lora", {"targets": ["scale_shift_table"]}, "/backbone/lora/targets", "the model has attn1, attn2"),
        ("backbone.lora", {"targets": [""]}, "/backbone/lora/targets", "no such part"),
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


def test_a_block_beyond_the_depth_that_the_user_wrote_is_the_users(job_tree):
    run = {"start": 3, "stop": 4, "keep": 0.1, "unit": "block"}
    job_tree["algorithm"] |= {"preset": "published", "surgery": {"schedule": [run]}}
    job_tree["sampling"]["stg_scale"] = 0.0
    problems = dict(check(job_tree))
    assert problems.keys() == {f"/algorithm/surgery/schedule/0/{end}" for end in ("start", "stop")}
    assert not any("preset" in message for message in problems.values())


@pytest.mark.parametrize(
    ("missing", "technique"), [("audio_to_video_attn", "surgery"), ("video_to_audio_attn", "region")]
)
@pytest.mark.parametrize("name", ["omninft", "awm"])
def test_a_technique_without_its_attention_names_its_switch(job_tree, missing, technique, name):
    weights = Path(job_tree["backbone"]["path"]) / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(missing.encode(), b"x" * len(missing)))
    job_tree["backbone"]["lora"] = {"targets": ["attn1"]}
    job_tree["algorithm"] = {"name": name, "surgery": {"enabled": True}, "region": {"enabled": True}}
    ((pointer, message),) = check(job_tree)
    assert pointer == f"/algorithm/{technique}/enabled"
    assert "set it to false" in message
    job_tree["algorithm"][technique]["enabled"] = False
    assert check(job_tree) == []


def test_all_problems_come_at_once(job_tree):
    job_tree["sampling"] |= {"frames": 24, "height": 33}
    job_tree["prompts"]["train"] = "/nowhere"
    assert {pointer for pointer, _ in check(job_tree)} == {"/sampling/frames", "/sampling/height", "/prompts/train"}


def test_surgery_that_is_off_is_not_checked(job_tree):
    job_tree["algorithm"] = {"name": "omninft", "preset": "published", "surgery": {"enabled": False}}
    job_tree["sampling"]["stg_scale"] = 0.0
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


def test_letters_composed_in_two_ways_are_the_same_prompt(job_tree):
    for name, text in (("train", "a caf\u00e9 with a bell"), ("held_out", "A cafe\u0301 with  a bell")):
        line = {"id": "cafe", "prompt_av": text, "prompt_v": "x", "prompt_a": "x"}
        Path(job_tree["prompts"][name]).write_text(json.dumps(line) + "\n")
    ((pointer, message),) = check(job_tree)
    assert pointer == "/prompts/held_out" and message.startswith("cafe: also in the training prompts")


def test_a_schedule_of_another_kind_is_the_models_fault(job_tree):
    config = Path(job_tree["backbone"]["path"]) / "scheduler" / "scheduler_config.json"
    config.write_text('{"use_karras_sigmas": true}')
    ((pointer, message),) = check(job_tree)
    assert pointer == "/backbone/path" and "use_karras_sigmas" in message


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"shift": 50.0}, "/sampling/shift", "50 leaves no schedule"),
        ({"shift": 1e300}, "/sampling/shift", "1e+300 leaves no schedule"),
        (
            {"frames": 2049, "height": 4096, "width": 4096},
            "/sampling/height",
            "tokens, for which the scheduler's shift",
        ),
        ({"frames": 9, "fps": 1e-9}, "/sampling/fps", "9 frames at 1e-09 a second last 9e+09 s"),
        ({"fps": 5e-324}, "/sampling/fps", "last inf s"),
        ({"frames": 9, "fps": 0.0025}, "", ""),
    ],
)
def test_numbers_that_make_no_clip_are_told_at_their_field(job_tree, changes, pointer, message):
    path = Path(job_tree["backbone"]["path"]) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": True, "shift_terminal": 0.1}))
    job_tree["sampling"] |= changes
    problems = dict(check(job_tree))
    assert problems.keys() == ({pointer} if pointer else set()) and message in problems.get(pointer, "")


@pytest.mark.parametrize(
    ("frames", "fps", "reward", "message"),
    [
        (1, 120.0, "sync", "1 frame at 120 a second make no audio token; use more frames, or a lower sampling.fps"),
        (1, 5.0, "sync", "1 frame at 5 a second are too few to be scored by sync; use 3 or more"),
        (1, 12.0, "picture", "too few to be scored by picture"),
        (9, 120.0, "sync", "9 frames at 120 a second make 0.05 s of sound; sync need 0.1 s: use more frames, or a"),
        (9, 120.0, "clap", "clap need 0.1 s"),
        (1, 6.0, "clap", ""),
        (9, 120.0, "motion_smoothness", ""),
        (17, 120.0, "sync", ""),
    ],
)
def test_a_clip_that_is_too_short_for_the_model_or_a_reward(job_tree, frames, fps, reward, message):
    job_tree["sampling"] |= {"frames": frames, "fps": fps}
    job_tree["rewards"] = [{"name": reward, "route": "both"}]
    problems = dict(check(job_tree))
    assert message in problems.get("/sampling/frames", "") and bool(problems) == bool(message)
