"""Answers of a judge that are none, and the reason that each gives; they plug into `JudgeServer.answer`."""

from __future__ import annotations

from tests.unit.reward_servers.bad_servers import cut, drip, endless, gives, hang
from tests.unit.reward_servers.judge_server import completion


def logprobs_of(number: float):
    tree = completion([("Yes", {"Yes": 0.5})])
    tree["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = number
    return tree


def without_logprobs():
    tree = completion([("Yes", {"Yes": 0.5})])
    tree["choices"][0]["logprobs"] = None
    return tree


WRONG = {
    "html": (gives(b"<html>It works</html>", Content_Type="text/html"), "bad_answer"),
    "500": (gives({"error": "x"}, 500), "bad_answer"),
    "404": (gives({"error": "no such model"}, 404), "refused"),
    "429": (gives({}, 429), "backpressure"),
    "503": (gives(b"", 503), "backpressure"),
    "redirect": (gives(b"", 307, Location="/v1/elsewhere"), "bad_answer"),
    "empty": (gives(b""), "bad_answer"),
    "a list": (gives([]), "bad_answer"),
    "no choices": (gives({"model": "judge", "choices": []}), "bad_answer"),
    "other model": (gives(completion([("Yes", {"Yes": 0.5})], "stub")), "wrong_version"),
    "no log-probabilities": (gives(without_logprobs()), "bad_answer"),
    "not a number": (gives(logprobs_of(float("nan"))), "bad_answer"),
    "infinite": (gives(logprobs_of(float("inf"))), "bad_answer"),
    "text for a number": (gives(logprobs_of("-0.1")), "bad_answer"),
    "neither yes nor no": (gives(completion([("Well", {"Well": 0.9})])), "bad_answer"),
    "compressed": (gives(b"\x1f\x8b", Content_Encoding="gzip"), "bad_answer"),
    "too long": (endless, "bad_answer"),
    "cut": (cut, "unreachable"),
    "hang": (hang, "timeout"),
    "drip": (drip, "timeout"),
}
