"""What a text has somebody say, and how many words are wrong in what was heard.

Said is what stands in quotation marks: "…", “…”, „…“, «…», 「…」, 『…』, ‘…’, and '…' where the first mark does not
follow a letter and the last does not precede one, so that an apostrophe is none. Words are compared after normalising:
Unicode NFKC, no case, no apostrophes, and every other mark that is no letter and no digit parts two words. Numbers stay
as they are written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_QUOTED = re.compile(
    r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|「([^」]+)」|『([^』]+)』|‘((?:[^‘’]|(?<=\w)’(?=\w))+)’|'
    r"(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)"
)


def spoken(text: str) -> str:
    """What is to be said, in order; "" = nothing."""
    return " ".join(next(filter(None, match.groups())) for match in _QUOTED.finditer(text))


def unspoken(text: str) -> str:
    """The text without what is to be said."""
    return _QUOTED.sub(" ", text)


def normalised(text: str) -> list[str]:
    """The words of a text as they are compared."""
    plain = re.sub(r"['’‘`]", "", unicodedata.normalize("NFKC", text).casefold())
    return re.findall(r"[^\W_]+", plain)


def wrong_words(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest words to change, leave out or add, that make one sequence of the other (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for above, word in enumerate(wanted, 1):
        before, row[0] = row[0], above
        for place, other in enumerate(heard, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
    return row[-1]
