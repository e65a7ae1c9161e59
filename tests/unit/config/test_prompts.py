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
