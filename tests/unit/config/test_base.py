"""What a document can be made of costs no more than its length, and an answer repeats no more than a glimpse of it."""

from __future__ import annotations

import json

import pytest

from accord.config.base import MAX_FIELDS, MAX_REPORTED
from accord.config.job import JobSpec
from accord.errors import SpecError


def problems(body: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(body)
    return caught.value.problems


BIG = {
    "not json": "x" * 1_000_000,
    "a word": json.dumps({"name": "x" * 1_000_000}),
    "a tag": json.dumps({"algorithm": {"name": "x" * 1_000_000}}),
    "a key": json.dumps({"x" * 1_000_000: 1}),
    "a key twice": '{"%s": 1, "%s": 2}' % (("x" * 400_000,) * 2),
    "many fields": json.dumps({f"f{n}": n for n in range(24_000)}),
    "fewer fields": json.dumps({f"f{n}": n for n in range(MAX_FIELDS - 10)}),
    "a long list": json.dumps({"sampling": {"stg_blocks": ["x"] * 300_000}}),
    "a deep list": "[" * 500_000,
    "a deep object": '{"a":' * 900 + "1" + "}" * 900,
    "a long number": '{"steps": ' + "9" * 4000 + "}",
    "a longer number": '{"steps": ' + "9" * 5000 + "}",
    "half a character": '{"\\ud800": 1}',
    "other bytes": b"\xff" * 100_000,
}


@pytest.mark.parametrize("kind", BIG)
def test_a_big_document_is_refused_with_a_short_answer(kind: str) -> None:
    found = problems(BIG[kind])
    assert 1 <= len(found) <= MAX_REPORTED + 1
    assert sum(len(where) + len(message) for where, message in found) < 10_000
    assert all(message for _, message in found)


def test_the_work_is_linear_in_the_number_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: what is done per error must not grow with the errors."""
    import accord.config.base as base

    told = []
    monkeypatch.setattr(base, "_problem", lambda item, tags: told.append(item) or ("", "wrong"))
    found = problems(json.dumps({f"f{n}": n for n in range(5000)}))
    assert len(told) == MAX_REPORTED
    assert found[-1][1] == f"and {5000 + 5 - MAX_REPORTED} more problems"


def test_a_field_that_stands_twice_is_named() -> None:
    assert problems('{"steps": 1, "name": "a", "steps": 2}') == [
        ("/steps", "'steps' stands more than once in one object; keep one")
    ]


def test_text_that_is_no_json_is_told_by_its_place() -> None:
    assert problems('{"steps": 1,}') == [
        ("", "not JSON: Expecting property name enclosed in double quotes (line 1, column 13)")
    ]


def test_a_list_that_is_short_because_its_members_are_wrong_is_told_by_its_members() -> None:
    told = [where for where, _ in problems(json.dumps({"rewards": [{"name": "sync", "nope": 1}]}))]
    assert "/rewards/0/nope" in told and "/rewards" not in told
    assert "/rewards" in [where for where, _ in problems(json.dumps({"rewards": []}))]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("/labels/a", {"labels": {"a": "x" * 256}}),
        ("/labels", {"labels": {f"l{n}": "" for n in range(17)}}),
        ("/labels/" + "x" * 64, {"labels": {"x" * 64: "a"}}),
        ("/sampling/stg_blocks", {"sampling": {"stg_blocks": [1] * 1001}}),
        ("/backbone/lora/targets", {"backbone": {"name": "ltx2", "lora": {"targets": ["to_q"] * 101}}}),
        ("/backbone/lora/targets/0", {"backbone": {"name": "ltx2", "lora": {"targets": ["x" * 201]}}}),
        ("/rewards", {"rewards": [{"name": "sync"}] * 65}),
    ],
)
def test_lists_and_names_are_bounded(where: str, value: dict[str, object]) -> None:
    told = [place.replace("/[key]", "") for place, _ in problems(json.dumps(value))]
    assert where in told, told


def test_no_list_or_map_of_a_job_is_unbounded() -> None:
    """Read from the schema, so that a field of tomorrow is looked at, too."""
    schema = JobSpec.model_json_schema()
    loose, left = [], [("job", schema), *schema["$defs"].items()]
    while left:
        where, node = left.pop()
        if isinstance(node, dict):
            if node.get("type") == "array" and "maxItems" not in node:
                loose.append(where)
            if (
                "additionalProperties" in node
                and node["additionalProperties"] is not False
                and "maxProperties" not in node
            ):
                loose.append(where)
            left.extend((f"{where}/{name}", inner) for name, inner in node.items())
        elif isinstance(node, list):
            left.extend((where, inner) for inner in node)
    assert loose == []
