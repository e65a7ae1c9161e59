"""Scores that a server gave lately, so that the same clip is not judged twice by the same reward for the same prompt.

The same clip comes again when a step is sampled anew after a kill, when samples of a group share all their noise, when
jobs begin from one base, and when a call is repeated. What a score depends on is its key: name, version and weights of
the reward, the prompt's texts, and the digest of what it looks at. A canary is judged anew whenever it comes, and where
its score is another one than before, all scores are forgotten: they are not what the reward says now. A failure that is
not the clip's own is not kept.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from accord.canary import is_canary
from accord.types import SERVERS_FAULT, Clip, Modality, Prompt, RewardScores
from reward_servers.base import RewardModel, Score, pack

log = logging.getLogger(__name__)

Key = tuple[str, ...]


class ClipDigest:
    """Digests of one clip by modality, each taken once, when the first reward asks for it."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._found: dict[Modality, str] = {}

    def of(self, modalities: Sequence[Modality]) -> tuple[str, ...]:
        """Of the arrays and rates of these modalities. Raises what arrays that are none raise."""
        return tuple(self._one(modality) for modality in modalities)

    def _one(self, modality: Modality) -> str:
        if modality not in self._found:
            seen = modality == "video"
            array, rate = (
                (self._clip.video_FHWC, self._clip.fps) if seen else (self._clip.audio_CS, self._clip.sample_rate)
            )
            state = hashlib.sha256(f"{array.dtype.str} {array.shape} {rate!r}".encode())
            state.update(np.ascontiguousarray(array).data)
            self._found[modality] = state.hexdigest()
        return self._found[modality]


class Results:
    """The last `capacity` scores, by key; those asked for longest ago go first. For one thread at a time."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Key, Score] = OrderedDict()
        self.found = 0
        """Scores that did not have to be made."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Score | None:
        """The score, if it is kept."""
        score = self._kept.get(key)
        if score is not None:
            self._kept.move_to_end(key)
        return score

    def forget(self) -> None:
        """Keep none of them any more."""
        self._kept.clear()

    def keep(self, key: Key, score: Score) -> None:
        """Keep a score, unless it tells of a failure that is not the clip's."""
        if score.reason not in SERVERS_FAULT:
            self._kept[key] = score
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)


def score_once(
    model: RewardModel,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Clip]],
    digests: Sequence[Sequence[ClipDigest]],
    results: Results,
) -> list[RewardScores]:
    """Score groups as `score_groups` does, each clip once for each prompt, and none that is in `results`.

    A reward that compares clips is given all of them: its score is not one clip's.
    """
    started = time.monotonic()
    keys = [[_key(model, prompt, digest) for digest in group] for prompt, group in zip(prompts, digests, strict=True)]
    known: dict[Key, Score] = {}
    asked: list[list[int]] = []
    for prompt, group in zip(prompts, keys, strict=True):
        anew = is_canary(prompt)
        asked.append([place for place, key in enumerate(group) if anew or _unknown(key, known, results)])
    scores = model.score(
        prompts, [[group[place] for place in places] for group, places in zip(groups, asked, strict=True)]
    )
    found = []
    for group, places, made in zip(keys, asked, scores, strict=True):
        fresh = dict(zip(places, made, strict=True))
        for place, score in fresh.items():
            key = group[place]
            if key is not None:
                if _otherwise(results.get(key), score, 2 * model.spec.batch_tolerance):
                    log.warning("reward %s judges a canary otherwise than before; its scores are forgotten", key[0])
                    results.forget()
                known[key] = score
                results.keep(key, score)
        found.append(fresh)
    seconds = time.monotonic() - started
    results.found += sum(len(group) for group in keys) - sum(len(places) for places in asked)
    return [
        pack(model.spec.name, model.spec.version, _whole(group, fresh, known), seconds)
        for group, fresh in zip(keys, found, strict=True)
    ]


def _otherwise(kept: Score | None, score: Score, most: float) -> bool:
    """Whether a clip that was judged anew, as canaries are, is further than `most` from the score that is kept."""
    return kept is not None and kept.valid and score.valid and abs(kept.value - score.value) > most


def _unknown(key: Key | None, known: dict[Key, Score], results: Results) -> bool:
    """Whether a clip is to be scored. What is kept is taken over; what is to be scored is marked."""
    if key is None:
        return True
    if key in known:
        return False
    kept = results.get(key)
    known[key] = kept if kept is not None else _PENDING
    return kept is None


_PENDING = Score.invalid("model_error")
"""Stands for a score that this batch is about to make."""


def _whole(keys: Sequence[Key | None], fresh: Mapping[int, Score], known: Mapping[Key, Score]) -> list[Score]:
    return [fresh[place] if key is None or place in fresh else known[key] for place, key in enumerate(keys)]


def _key(model: RewardModel, prompt: Prompt, digest: ClipDigest) -> Key | None:
    """What the score depends on; None where that cannot be said."""
    spec = model.spec
    if spec.scope != "clip":
        return None
    try:
        looked_at = digest.of(spec.needs)
    except (AttributeError, TypeError, ValueError, BufferError) as error:
        log.info("a clip of prompt %s has no digest: %s", prompt.id, error)
        return None
    texts = (prompt.prompt_av, prompt.prompt_v, prompt.prompt_a)
    return (spec.name, spec.version, model.weights_digest, *texts, *looked_at)
