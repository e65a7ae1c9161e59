"""One reward on trial: its model, the clips that it is asked about, and everything that it answered."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from accord.canary import Canary, canaries
from accord.config.contract import RewardSpec
from accord.types import Clip, Prompt, ScoreReason
from reward_servers.base import RewardModel, build, score_groups

EMPTY: frozenset[ScoreReason] = frozenset({"silent_audio", "no_events"})
"""Reasons of a clip that was measured and has nothing in it; its value is the floor."""
Asked = tuple[str, Prompt, Clip]
"""A name for the clip, its prompt, and the clip."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reward said of one clip."""

    clip: str
    value: float
    reason: ScoreReason
    components: Mapping[str, float]
    """Without those that this clip has not."""
    error: str = ""
    """What its model raised."""

    @property
    def valid(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.value)

    def __str__(self) -> str:
        said = f"{self.value!r}" if self.valid else "invalid"
        return f"{self.clip}: {said} ({self.reason}{': ' + self.error if self.error else ''})"


class Trial:
    """A reward's model and its answers. Raises what building the model raises."""

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self.model: RewardModel = build(spec)
        self.answers: list[Answer] = []

    def rebuild(self) -> None:
        """Put a fresh model in the place of this one; two are never held."""
        del self.model
        self.model = build(self.spec)
        self.__dict__.pop("together", None)

    @cached_property
    def canaries(self) -> tuple[Canary, ...]:
        """The ordinary clips."""
        return canaries(self.spec)

    @property
    def first(self) -> Canary:
        """The most ordinary of them: something is seen and heard in it, in step."""
        return self.canaries[0]

    @cached_property
    def ordinary(self) -> list[Asked]:
        """The ordinary clips, each with its own prompt."""
        return [(canary.name, canary.prompt, canary.clip) for canary in self.canaries]

    @cached_property
    def together(self) -> list[Answer]:
        """Answers to the ordinary clips in one call."""
        return self.ask(self.ordinary)

    def of_first(self, name: str, clip: Clip, prompt: Prompt | None = None) -> Asked:
        """A clip that stands for the first canary, by a name of its own."""
        return name, prompt or self.first.prompt, clip

    def ask(self, asked: Sequence[Asked]) -> list[Answer]:
        """Score clips in one call: a group each, or one group where the reward compares clips."""
        groups = [[one] for one in asked] if self.spec.scope == "clip" else [list(asked)] if asked else []
        prompts = [replace(group[0][1], id=group[0][0]) for group in groups]
        with _errors() as errors:
            scored = score_groups(self.model, prompts, [[clip for _, _, clip in group] for group in groups])
        answers = [
            Answer(
                name,
                scores.values[place],
                scores.reasons[place],
                {part: of[place] for part, of in scores.components.items() if not math.isnan(of[place])},
                errors.get(prompt.id, "") if scores.reasons[place] == "model_error" else "",
            )
            for prompt, group, scores in zip(prompts, groups, scored, strict=True)
            for place, (name, _, _) in enumerate(group)
        ]
        self.answers += answers
        return answers


@contextmanager
def _errors() -> Iterator[dict[str, str]]:
    """What models raise in the block, by the prompt's id; it is not logged besides."""
    found: dict[str, str] = {}

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and len(record.args) == 3:
                found[str(record.args[1])] = repr(record.args[2])

    log = logging.getLogger("reward_servers.base")
    keeps, propagates = Keeps(), log.propagate
    log.addHandler(keeps)
    log.propagate = False
    try:
        yield found
    finally:
        log.propagate = propagates
        log.removeHandler(keeps)
