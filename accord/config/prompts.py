"""Prompt files: JSON Lines with `id`, `prompt_av`, `prompt_v` and `prompt_a`.

Records end at a line feed and nowhere else: a text may hold any other separator of lines. An id is data; nothing is
named after it.
"""

from __future__ import annotations

import codecs
import json
from functools import partial
from pathlib import Path

from accord.config.files import read_bytes
from accord.config.paths import PROMPT_BYTES
from accord.errors import InputError, PromptError
from accord.types import Prompt

FIELDS = ("id", "prompt_av", "prompt_v", "prompt_a")
MAX_CHARACTERS = 8192
"""Longest text of one field; text encoders cut off far earlier."""
_BLANK = " \t\r"


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read a prompt file; blank lines, a byte-order mark and fields other than the four are passed over.

    Raises:
        PromptError: the file cannot be read, is not text, empty, or a line is bad; names the file and the line.
    """
    try:
        content = read_bytes(path, PROMPT_BYTES)
        lines = content.removeprefix(codecs.BOM_UTF8).decode("utf-8").split("\n")
    except InputError as error:
        raise PromptError(str(error)) from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip(_BLANK):
            continue
        prompt = _parse(line, f"{path}, line {number}")
        if prompt.id in seen:
            raise PromptError(f"{path}, line {number}: id {_shown(prompt.id)} is taken by line {seen[prompt.id]}")
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{path}: holds no prompt; each line is {{{', '.join(FIELDS)}}}")
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        tree = json.loads(line, object_pairs_hook=partial(_once, where))
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise PromptError(f"{where}: not a flat object with {', '.join(FIELDS)}") from error
    if not isinstance(tree, dict):
        raise PromptError(f"{where}: holds {type(tree).__name__}, not an object with {', '.join(FIELDS)}")
    return Prompt(*(_text(tree, field, where) for field in FIELDS))


def _once(where: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A record says everything once: of two texts under one name, readers take different ones."""
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in tree if names.count(name) > 1)
        raise PromptError(f"{where}: {_shown(twice)} stands more than once in one record; keep one")
    return tree


def _text(tree: dict[str, object], field: str, where: str) -> str:
    text = tree.get(field)
    if not isinstance(text, str) or not text.strip():
        state = "missing" if field not in tree else _shown(text)
        raise PromptError(f"{where}: {field} is {state}; it must be a text that is not empty")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"{where}: {field} has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise PromptError(
            f"{where}: {field} has half a surrogate pair ({half}) at character {error.start}, which is no text; write "
            "the character itself, or both halves"
        ) from error
    return text


def _shown(value: object) -> str:
    """A value as ASCII, cut short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
