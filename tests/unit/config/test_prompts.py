import json

import pytest

from accord.config.prompts import MAX_CHARACTERS, load_prompts
from accord.errors import PromptError
from accord.types import Prompt

GOOD = {"id": "a", "prompt_av": "a red ball with a bell", "prompt_v": "a red ball", "prompt_a": "a bell"}


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_reads_prompts_skipping_blank_lines_and_other_fields(tmp_path):
    path = write(tmp_path, GOOD, "", {**GOOD, "id": "b", "note": "kept out"})
    assert load_prompts(path) == [Prompt(*GOOD.values()), Prompt("b", *list(GOOD.values())[1:])]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "holds no prompt"),
        (("", "  "), "holds no prompt"),
        ((GOOD, "{not json"), "line 2: not JSON"),
        ((GOOD, "[1]"), "line 2: holds list"),
        ((GOOD, "", {**GOOD}), "line 3: id 'a' is taken by line 1"),
        (({key: value for key, value in GOOD.items() if key != "prompt_a"},), "line 1: prompt_a is missing"),
        (({**GOOD, "prompt_v": ""},), "line 1: prompt_v is ''"),
        (({**GOOD, "id": 7},), "line 1: id is 7"),
        ((GOOD, '{"id": "b", "id": "c"}'), "line 2: 'id' stands more than once in one record"),
        (
            ({**GOOD, "prompt_av": "x" * (MAX_CHARACTERS + 1)},),
            f"line 1: prompt_av has {MAX_CHARACTERS + 1} characters",
        ),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, lines, message):
    path = write(tmp_path, *lines)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(PromptError, match="No such file"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(PromptError, match="not a regular file"):
        load_prompts(tmp_path)
    path = tmp_path / "binary"
    path.write_bytes(b'{"id": "\xff\xfe"}')
    with pytest.raises(PromptError, match="not UTF-8"):
        load_prompts(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_record_ends_at_a_line_feed_and_nowhere_else(tmp_path, separator, end):
    """JSON forbids control characters in a text, so those of ASCII come escaped."""
    text = f"a kitchen{separator}a pan sizzles"
    lines = [json.dumps({**GOOD, "id": str(n), "prompt_av": text}, ensure_ascii=separator < " ") for n in range(3)]
    path = tmp_path / "p.jsonl"
    path.write_bytes(end.join([lines[0], " \t", *lines[1:]]).encode())
    assert [prompt.prompt_av for prompt in load_prompts(path)] == [text] * 3
    path.write_bytes(end.join([*lines, "{"]).encode())
    with pytest.raises(PromptError, match="line 4"):
        load_prompts(path)


def test_a_mark_at_the_start_of_the_file_is_no_text(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert load_prompts(path) == [Prompt(*GOOD.values())]
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xef\xbb\xbf" + json.dumps({**GOOD, "id": "b"}).encode())
    with pytest.raises(PromptError, match="line 2: not JSON"):
        load_prompts(path)
    path.write_bytes(json.dumps(GOOD).encode("utf-16"))
    with pytest.raises(PromptError, match="not UTF-8"):
        load_prompts(path)


@pytest.mark.parametrize("field", list(GOOD))
@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ude00\\ud83d"])
def test_half_a_surrogate_pair_is_no_text(tmp_path, field, half):
    path = write(tmp_path, GOOD, json.dumps({**GOOD, "id": "b"}).replace(f'"{field}": "', f'"{field}": "x{half}'))
    with pytest.raises(PromptError, match=rf"line 2: {field} has half a surrogate pair .* at character 1") as caught:
        load_prompts(path)
    str(caught.value).encode()


def test_both_halves_are_one_character(tmp_path):
    path = write(tmp_path, json.dumps({**GOOD, "prompt_v": "\U0001f600"}))
    assert "\\ud83d\\ude00" in path.read_text() and load_prompts(path)[0].prompt_v == "\U0001f600"


@pytest.mark.parametrize("ids", [(".", ".."), ("x" * 300, "x" * 300 + "y"), ("a b", "a_b"), ("../../a", "/a")])
def test_an_id_is_data(tmp_path, ids):
    path = write(tmp_path, *({**GOOD, "id": one} for one in ids))
    assert tuple(prompt.id for prompt in load_prompts(path)) == ids


def test_a_line_that_is_deeply_nested_or_has_a_huge_number_is_refused(tmp_path):
    for line in ("[" * 100_000, '{"id": ' + "9" * 5000 + "}"):
        with pytest.raises(PromptError, match="line 1"):
            load_prompts(write(tmp_path, line))
