"""What the verifiers of prompts share: words, counts, and the soft share of predicates that hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")
TIMES: Mapping[str, int] = {"once": 1, "twice": 2, "thrice": 3}
NUMBERS: Mapping[str, int] = {
    name: number
    for number, name in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1)
}


def words(text: str) -> list[str]:
    """Words and whole numbers of a text, lower case. What stands in quotation marks is said, not described."""
    return re.findall(r"[a-z]+|\d+", re.sub(r'"[^"]*"|“[^”]*”', " ", text.lower()))


def lexicon(entries: Mapping[Value, str]) -> dict[str, Value]:
    """What each word stands for, from the words that stand for the same, with spaces between."""
    return {word: value for value, listed in entries.items() for word in listed.split()}


def wanted_count(found: Sequence[str]) -> int | None:
    """The number of events that a text asks for: "twice", "three times", "4 times"; None = it names none."""
    for place, word in enumerate(found):
        if word in TIMES:
            return TIMES[word]
        if word == "times" and place:
            before = found[place - 1]
            return int(before) if before.isdigit() and len(before) < 4 else NUMBERS.get(before)
    return None


def counted(wanted: int, found: int) -> float:
    """1 when as many events were found as wanted, falling with their ratio."""
    return math.exp(-2.0 * abs(math.log((found + 0.25) / (wanted + 0.25))))


def logistic(x: float) -> float:
    """0..1, a half at 0."""
    return 1.0 / (1.0 + math.exp(-max(min(x, 60.0), -60.0)))


def share(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean of the predicates' evidence; a weight that is not named is 1."""
    total = sum(weights.get(name, 1.0) for name in parts)
    return sum(weights.get(name, 1.0) * value for name, value in parts.items()) / total
