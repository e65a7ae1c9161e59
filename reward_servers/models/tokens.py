"""How models of pictures read a text: by the checkpoint's own `tokenizer.json`, cut at its length."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from accord.config.clip_dir import inspect_tokenizer
from accord.errors import ModelError


def read_tokenizer(file: Path, rows: int, limit: int) -> Tokenizer:
    """The tokenizer, cutting at `limit` tokens and filling up none.

    Raises:
        ModelError: it is not there, not readable, has more than `rows` tokens, or puts no start and end around a text.
    """
    try:
        tokenizer = Tokenizer.from_file(str(inspect_tokenizer(file.parent)))
    except ModelError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise ModelError(f"{file}: not readable as a tokenizer ({error}); copy it again") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    ends = tokenizer.encode("").ids
    if tokenizer.get_vocab_size() > rows or len(ends) != 2:
        raise ModelError(
            f"{file}: has {tokenizer.get_vocab_size()} tokens and makes {ends} of no text; the checkpoint has {rows}, "
            "and wants a start and an end; name the directory of the model that it was made from"
        )
    return tokenizer
