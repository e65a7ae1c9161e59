"""Prompt files: JSON lines with `id`, `prompt_av`, `prompt_v` and `prompt_a`."""

from __future__ import annotations

import json
from pathlib import Path

from accord.errors import PromptError
from accord.types import Prompt

FIELDS = ("id", "prompt_av", "prompt_v", "prompt_a")
MAX_CHARACTERS = 8192
"""Longest text of one field; text encoders cut off far earlier."""


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read a prompt file; blank lines are skipped and fields other than the four are ignored.

    Raises:
        PromptError: the file is missing, not text, empty, or a line is bad; names the file and the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror or error}; give a file of JSON lines") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(line, f"{path}, line {number}")
        if prompt.id in seen:
            raise PromptError(f"{path}, line {number}: id {prompt.id!r} is taken by line {seen[prompt.id]}")
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{path}: holds no prompt; each line is {{{', '.join(FIELDS)}}}")
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        tree = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(tree, dict):
        raise PromptError(f"{where}: holds {type(tree).__name__}, not an object with {', '.join(FIELDS)}")
    texts = []
    for field in FIELDS:
        text = tree.get(field)
        if not isinstance(text, str) or not text.strip():
            state = "missing" if field not in tree else f"{text!r}"[:60]
            raise PromptError(f"{where}: {field} is {state}; it must be a text that is not empty")
        if len(text) > MAX_CHARACTERS:
            raise PromptError(f"{where}: {field} has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        texts.append(text)
    return Prompt(*texts)
