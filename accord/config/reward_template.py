"""The words that a vision-language reward was trained with, as its authors published them.

A reward's score depends on every word around the prompt, and the words belong to the checkpoint, so they are read from
a file and never written anew here. Two forms will do: a text with `{text_prompt}` where the prompt goes, or the
authors' own Python file, of which only the texts at its top level are read; nothing in it is run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from accord.config.qwen_dir import read_text
from accord.errors import ModelError

PLACE = "{text_prompt}"
BESIDE = "prompt_template.txt"
"""What the file is called where it lies beside the weights."""


def read_template(path: Path, tokens: Sequence[str]) -> str:
    """Read a template that holds `{text_prompt}` and each of `tokens` once, in order.

    Raises:
        ModelError: no such file, no such text in it, or one with other braces.
    """
    text = read_text(path)
    return sound_template(path, _published(path, text, tokens) if path.suffix == ".py" else text, tokens)


def sound_template(path: Path, text: str, tokens: Sequence[str]) -> str:
    """Return the text, which stands in `path`, if it is a template. Raises ModelError that says what it lacks."""
    for part in (PLACE, *tokens):
        if text.count(part) != 1:
            raise ModelError(f"{path}: holds {part} {text.count(part)} times; the published template holds it once")
    if [text.index(token) for token in tokens] != sorted(text.index(token) for token in tokens):
        raise ModelError(f"{path}: holds {', '.join(tokens)} in another order, which the heads are read in")
    if re.search(r"[{}]", text.replace(PLACE, "")):
        raise ModelError(f"{path}: holds braces besides {PLACE}; write each of the others out")
    return text


def _published(path: Path, source: str, tokens: Sequence[str]) -> str:
    """The template in a Python file: the text that holds all, or that with the prompt and then that with the tokens.

    Where a file has several that would do, that is an error: which one was trained with cannot be told.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path}: not readable as Python ({error})") from error
    texts = [
        node.value.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    marked = [text for text in texts if all(token in text for token in tokens)]
    if len(marked) == 1 and PLACE in marked[0]:
        return marked[0]
    placed = [text for text in texts if PLACE in text and not any(token in text for token in tokens)]
    if len(marked) == 1 and len(placed) == 1:
        return placed[0] + marked[0]
    raise ModelError(
        f"{path}: {len(marked)} of its texts hold {', '.join(tokens)} and {len(placed)} others {PLACE}; "
        "write the one that the checkpoint was trained with into a text file"
    )
