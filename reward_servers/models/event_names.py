"""Which sounds a text names, among the labels of a tagger of sound: words held against words.

A label's names are its parts between commas (`Walk, footsteps` has two); what it says in parentheses qualifies it and
is no name. A text names a label when the stems of one of its names stand in the text next to each other and in this
order; small words (`a`, `the`, `of`) do not count. The longest name at a place wins and takes its words: "a car alarm"
names no car. A label may bear the name of another; they are one event. Some everyday words stand for a label's
(`SAME`). What begins within three words after "no" or "without" is unwanted, in the same sentence and before a "but",
"just" or "only"; a comma ends nothing ("no music, speech or wind"). Words in quotation marks are said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_servers.models.spoken import unspoken
from reward_servers.panel.prompt_rules import words

Stems = tuple[str, ...]
SMALL = frozenset(
    ("a", "an", "the", "of", "on", "in", "at", "to", "by", "with", "and", "or", "as", "is", "are", "was", "were", "be",
     "being", "its", "his", "her", "their", "some", "it", "that", "this")
)  # fmt: skip
AWAY = frozenset({"no", "without"})
REACH = 3
"""Words after one of `AWAY` within which a name begins that is unwanted."""
_APART = re.compile(r"[.;:!?\n]|\b(?:but|just|only)\b", re.IGNORECASE)
"""Where a part of a text ends, and with it what `AWAY` asks away."""
UNHEARD = frozenset({"Silence", "Field recording", "Blues", "Country", "Camera", "Hands", "Wood", "Keyboard (musical)"})
"""Labels that are no event, or whose one word mostly says something else in a text."""
_PLAIN_WORDS = {
    "speech": "speak speaks speaking say says saying talk talks talking tell tells voice voices",
    "laughter": "laugh laughs laughing", "applause": "applaud applauds applauding", "footsteps": "step steps",
    "telephone": "phone phones", "motorcycle": "motorbike motorbikes", "bicycle": "bike bikes", "ocean": "sea",
    "airplane": "plane planes aeroplane aeroplanes jet jets", "dog": "puppy puppies", "cat": "kitten kittens",
    "gunshot": "shot shots gun guns", "fireworks": "firework",
}  # fmt: skip


def stem(word: str) -> str:
    """What an English word in lower case shares, near enough, with its plural, its verb and the words of `SAME`."""
    return SAME.get(_stem(word), _stem(word))


def _stem(word: str) -> str:
    cut = word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
    for ending in ("ing", "ed"):
        if cut.endswith(ending) and len(cut) - len(ending) >= 3:
            cut = cut.removesuffix(ending)
            break
    cut = cut[:-1] if cut.endswith("e") and len(cut) > 3 else cut
    cut = f"{cut[:-1]}i" if cut.endswith("y") and len(cut) > 2 else cut
    return cut[:-1] if len(cut) > 3 and cut[-1] == cut[-2] else cut


SAME: Mapping[str, str] = {_stem(word): _stem(name) for name, listed in _PLAIN_WORDS.items() for word in listed.split()}
"""Stem of an everyday word: stem of the label that it stands for."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a text names, as classes of the labels."""

    wanted: tuple[frozenset[int], ...]
    """For each event the classes that it may be heard as."""
    unwanted: frozenset[int]


class EventNames:
    """The names of a list of labels."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._classes: dict[Stems, set[int]] = {}
        for place, label in enumerate(labels):
            for name in () if label in UNHEARD else re.sub(r"\(.*?\)", "", label).split(","):
                if stems := tuple(stem(word) for word in words(name) if word not in SMALL):
                    self._classes.setdefault(stems, set()).add(place)
        self._longest = max(map(len, self._classes), default=0)

    def of(self, text: str) -> Named:
        """The events that a text names, each once, in their order."""
        wanted: dict[frozenset[int], None] = {}
        unwanted: set[int] = set()
        for part in _APART.split(unspoken(text)):
            self._read(part, wanted, unwanted)
        return Named(tuple(wanted), frozenset(unwanted))

    def _read(self, part: str, wanted: dict[frozenset[int], None], unwanted: set[int]) -> None:
        """Add what a part of a text names."""
        said = [word for word in words(part) if word not in SMALL]
        stems = [stem(word) for word in said]
        place = 0
        while place < len(stems):
            name = self._at(stems, place)
            if name and AWAY.intersection(said[max(0, place - REACH) : place]):
                unwanted |= self._classes[name]
            elif name:
                wanted[frozenset(self._classes[name])] = None
            place += len(name) or 1

    def _at(self, stems: Sequence[str], place: int) -> Stems:
        """The longest name that begins at a place; () where none does."""
        for length in range(min(self._longest, len(stems) - place), 0, -1):
            if (name := tuple(stems[place : place + length])) in self._classes:
                return name
        return ()
