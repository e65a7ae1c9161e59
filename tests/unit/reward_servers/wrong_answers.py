"""Answers of a judge that are none, and the reason that each gives; they plug into `JudgeServer.answer`."""

from __future__ import annotations

import threading
import time

from tests.unit.reward_servers.judge_server import completion


def gives(tree, status=200, **headers):
    return lambda handler, asked: handler.give(tree, status, **headers)


def cut(handler, asked):
    handler.close_connection = True
    handler.connection.close()


def hang(handler, asked):
    threading.Event().wait(3.0)


def drip(handler, asked):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def endless(handler, asked):
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    try:
        for _ in range(2000):
            handler.wfile.write(b" " * 65_536)
    except OSError:
        return


def logprobs_of(number: float):
    tree = completion([("Yes", {"Yes": 0.5})])
    tree["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = number
    return tree


def without_logprobs():
    tree = completion([("Yes", {"Yes": 0.5})])
    tree["choices"][0]["logprobs"] = None
    return tree


WRONG = {
    "html": (gives(b"<html>It works</html>", Content_Type="text/html"), "model_error"),
    "500": (gives({"error": "x"}, 500), "model_error"),
    "404": (gives({"error": "no such model"}, 404), "model_error"),
    "429": (gives({}, 429), "backpressure"),
    "503": (gives(b"", 503), "backpressure"),
    "redirect": (gives(b"", 307, Location="/v1/elsewhere"), "model_error"),
    "empty": (gives(b""), "model_error"),
    "a list": (gives([]), "model_error"),
    "no choices": (gives({"model": "judge", "choices": []}), "model_error"),
    "other model": (gives(completion([("Yes", {"Yes": 0.5})], "stub")), "model_error"),
    "no log-probabilities": (gives(without_logprobs()), "model_error"),
    "not a number": (gives(logprobs_of(float("nan"))), "model_error"),
    "infinite": (gives(logprobs_of(float("inf"))), "model_error"),
    "text for a number": (gives(logprobs_of("-0.1")), "model_error"),
    "neither yes nor no": (gives(completion([("Well", {"Well": 0.9})])), "model_error"),
    "compressed": (gives(b"\x1f\x8b", Content_Encoding="gzip"), "model_error"),
    "too long": (endless, "model_error"),
    "cut": (cut, "unreachable"),
    "hang": (hang, "timeout"),
    "drip": (drip, "timeout"),
}
