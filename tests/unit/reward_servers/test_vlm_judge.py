"""A judge behind a real server: its verdict by hand, what is sent, each wrong answer, where it may ask."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from accord.config.contract import ModelFacts
from accord.config.rewards.judges import VLMJudgeReward
from accord.errors import UserError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from tests.unit.reward_servers.judge_server import completion, running
from tests.unit.reward_servers.wrong_answers import WRONG

PROMPT = Prompt("p", "av", "a red ball bouncing", "a")
RATED = [
    ("I think. Visual quality is good.\n(1) visual quality: ", {}), ("4", {"4": 0.5, "5": 0.3, "3": 0.1, "good": 0.1}),
    ("\n(2) text-to-video alignment: ", {}), ("2", {"2": 0.8, "1": 0.2}),
    ("\n(3) physical consistency: ", {}), (" 5", {" 5": 0.6, "5": 0.2, " 3": 0.2}),
]  # fmt: skip


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
    with running() as server:
        yield server


def model(judge, **fields):
    return build(VLMJudgeReward(**{"url": judge.url, "model": "judge", "call_s": 5.0, **fields}))


def clip(seed: int = 0, frames: int = 48) -> Clip:
    video = np.random.default_rng(seed).integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8)
    return Clip(video, 24.0, np.zeros((1, 16_000), np.float32), 16_000)


def scored(reward, clips):
    (scores,) = score_groups(reward, [PROMPT], [clips])
    return scores


# ------------------------------------------------ verdicts, by hand


def test_a_rating_is_the_expectation_over_what_could_have_stood_there(judge):
    judge.say(RATED)
    scores = scored(model(judge, preset="videoscore2"), [clip()])
    quality, alignment, physics = 3.8 / 0.9, 2 * 0.8 + 1 * 0.2, (5 * 0.8 + 3 * 0.2) / 1.0
    assert scores.components["quality"][0] == pytest.approx(quality)
    assert scores.components["alignment"][0] == pytest.approx(alignment)
    assert scores.components["physics"][0] == pytest.approx(physics)
    assert scores.values[0] == pytest.approx((quality + alignment + physics) / 3)
    assert scores.components["mass"][0] == pytest.approx(0.9)


def test_the_last_of_two_ratings_counts_and_decimals_are_as_written(judge):
    judge.say([
        ("**Alignment Score (1-5)**: ", {}), ("1", {"1": 1.0}), ("\nBut no.\nAlignment Score (1-5): ", {}),
        ("5", {"5": 0.75, "4": 0.25}), ("\nPhysics Score: ", {}), ("3", {"3": 1.0}), (".5", {".5": 1.0}),
        ("\nStyle Score: **", {}), ("2", {"2": 1.0}), ("**", {}),
    ])  # fmt: skip
    scores = scored(model(judge, preset="unified_reward"), [clip()])
    assert scores.values[0] == pytest.approx((4.75 + 3.5 + 2.0) / 3)


def test_yes_is_held_against_no(judge):
    judge.say([("Yes", {"Yes": 0.6, " yes": 0.1, "No": 0.2, "The": 0.1})])
    scores = scored(model(judge), [clip()])
    assert scores.values[0] == pytest.approx(0.7 / 0.9)
    assert scores.components["mass"][0] == pytest.approx(0.9)
    judge.say([("No", {"No": 0.9})])
    assert scored(model(judge), [clip()]).values == (0.0,)


def test_frames_and_prompt_count_and_company_does_not(judge):
    reward = model(judge)
    clips = [clip(seed) for seed in range(6)]
    alone = tuple(scored(reward, [one]).values[0] for one in clips)
    assert scored(reward, clips).values == alone == scored(reward, clips[::-1]).values[::-1]
    assert len(set(alone)) > 3
    other = score_groups(reward, [dataclasses.replace(PROMPT, prompt_v="a blue cube")], [clips])[0].values
    assert other != alone


def test_what_is_sent(judge, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCORD_TOKEN_JUDGE", "s3cret")
    (tmp_path / "question.txt").write_text("Is this {text_prompt}? Yes or No.")
    reward = model(judge, token_env="ACCORD_TOKEN_JUDGE", template=str(tmp_path / "question.txt"))
    shown = clip()
    assert scored(reward, [shown]).reasons == ("ok",)
    (asked,), (headers,), (path,) = judge.requests, judge.headers, judge.paths
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer s3cret"
    assert (asked["model"], asked["temperature"], asked["logprobs"], asked["max_tokens"]) == ("judge", 0, True, 1)
    *images, question = asked["messages"][0]["content"]
    assert question["text"] == "Is this a red ball bouncing? Yes or No."
    sent = [image["image_url"]["url"].removeprefix("data:image/png;base64,") for image in images]
    frames = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in sent]
    np.testing.assert_array_equal(frames, shown.video_FHWC[[0, 16, 31, 47]])  # 2 a second
    assert "s3cret" not in reward.spec.model_dump_json()


# ------------------------------------------------ answers that are none


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_no_number_and_spoils_no_other(judge, kind):
    wrong, reason = WRONG[kind]
    usual = judge.answer
    bad = clip(1)
    reward = model(judge, call_s=0.5 if reason == "timeout" else 5.0, max_answer_bytes=1_000_000)
    probe = scored(reward, [bad]).values  # what the bad clip's question looks like
    mark = judge.requests[-1]["messages"]
    assert np.isfinite(probe[0])
    judge.requests.clear()
    judge.answer = lambda handler, asked: (wrong if asked["messages"] == mark else usual)(handler, asked)
    scores = scored(reward, [clip(0), bad, clip(2)])
    assert scores.reasons == ("ok", reason, "ok")
    assert np.isnan(scores.values[1]) and np.isfinite([scores.values[0], scores.values[2]]).all()
    tries = sum(asked["messages"] == mark for asked in judge.requests)
    assert tries == (3 if reason in {"unreachable", "backpressure"} else 1)
    assert set(judge.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize("text", ["no rating at all", "visual quality: 9", "visual quality: 10", "alignment: 3"])
def test_an_answer_without_its_ratings_is_none(judge, text):
    judge.say([(text, {text: 1.0})])
    assert scored(model(judge, preset="videoscore2"), [clip()]).reasons == ("bad_answer",)


@pytest.mark.parametrize("field", ["token", "logprob"])
def test_what_is_said_of_an_answer_is_short_however_long_it_is(judge, field, caplog):
    """A list, and digits that no number holds."""
    answer = completion([("Yes", {"Yes": 0.9, "No": 0.1})])
    likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]
    likeliest[field] = {"token": [7] * 1000, "logprob": -(10**4000)}[field]
    judge.answer = lambda handler, asked: handler.give(answer)
    assert scored(model(judge), [clip()]).reasons == ("bad_answer",)
    assert caplog.text and max(len(record.getMessage()) for record in caplog.records) < 500


def test_a_server_that_is_gone_is_unreachable(judge):
    reward = model(judge)
    judge.shutdown()
    judge.server_close()
    assert scored(reward, [clip()]).reasons == ("unreachable",)


# ------------------------------------------------ where it may ask


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/v1", "is not allowed"),
        ("http://localhost:6379/v1", "is not allowed"),
        ("http://127.0.0.1.example.org/v1", "is not allowed"),
        ("http://127.0.0.1@10.0.0.1/v1", "holds no user"),
        ("http://user:pass@127.0.0.1/v1", "holds no user"),
        ("http://127.0.0.1/v1?x=1", "holds no user, password, query"),
        ("file:///etc/passwd", "is no address of http"),
        ("gopher://127.0.0.1/", "is no address of http"),
        ("http://127.0.0.1:99999/v1", "is no address"),
        ("http://", "is no address"),
        ("http://127.0.0.1 /v1", "is no address"),
    ],
)
def test_only_hosts_of_the_operators_list_are_asked(judge, url, words):
    spec = VLMJudgeReward(url=url, model="judge")
    ((where, what),) = spec.problems(None, ModelFacts())
    assert where == "url" and words in what
    with pytest.raises(UserError, match=words):
        build(spec)


def test_without_a_list_nothing_is_asked_and_a_port_can_be_named(judge, monkeypatch):
    monkeypatch.delenv("ACCORD_REWARD_HOSTS")
    with pytest.raises(UserError, match="ACCORD_REWARD_HOSTS"):
        model(judge)
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "elsewhere, 127.0.0.1:80")
    with pytest.raises(UserError, match="ACCORD_REWARD_HOSTS"):
        model(judge)
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", f"127.0.0.1:{judge.server_address[1]}")
    assert scored(model(judge), [clip()]).reasons == ("ok",)


def test_a_token_has_a_name_of_its_own_kind_and_may_stand_in_a_file(judge, monkeypatch, tmp_path):
    for name in ("AWS_SECRET_ACCESS_KEY", "ACCORD_API_KEY", "accord_token_x"):
        with pytest.raises(ValidationError, match="token_env"):
            VLMJudgeReward(url=judge.url, model="judge", token_env=name)
    with pytest.raises(UserError, match="ACCORD_TOKEN_JUDGE is not set"):
        model(judge, token_env="ACCORD_TOKEN_JUDGE")
    (tmp_path / "token").write_text("from-a-file\n")
    monkeypatch.setenv("ACCORD_TOKEN_JUDGE_FILE", str(tmp_path / "token"))
    scored(model(judge, token_env="ACCORD_TOKEN_JUDGE"), [clip()])
    assert judge.headers[-1]["authorization"] == "Bearer from-a-file"


def test_a_question_needs_a_place_for_the_prompt(judge, tmp_path):
    (tmp_path / "question.txt").write_text("Is it good?")
    spec = VLMJudgeReward(url=judge.url, model="judge", template=str(tmp_path / "question.txt"))
    assert [where for where, _ in spec.problems(None, ModelFacts())] == ["template"]
    with pytest.raises(UserError, match=r"holds \{text_prompt\} 0 times"):
        build(spec)
    assert json.loads(spec.model_dump_json())["retries"] == 2
