"""What every reward promises, and a trial that holds one to it.

    accord rewards contract NAME --set path=DIR

or, in the tests of a package that has a reward of its own:

    from reward_servers.contract import hold
    assert [str(one) for one in hold(MyReward(path=...)) if one.breaches] == []

Each promise yields a line for each breach, with the clip and the offending value. A reward that compares clips (`scope`
other than `clip`) is not held to the promises about company.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from accord.canary import digest
from accord.config.contract import RewardSpec
from accord.types import Clip, Prompt
from reward_servers.declared import incoherent
from reward_servers.hard_clips import HardClip, measurable, unmeasurable
from reward_servers.trial import EMPTY, Answer, Asked, Trial

Breaches = Iterator[str]

TEXTS = {
    "no text": "",
    "a question mark": "?",
    "text that is no English": "ein Ball, der hüpft\n\x00🎈 球が跳ねる \u202eback",
    "5000 words": "a red ball bounces loudly " * 1000,
}

OTHER_SIZES = ("odd size", "wide", "shortest sound", "8 kHz")
"""Clips that share a batch with ordinary ones, by how their names begin."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing that every reward promises."""

    name: str
    says: str
    breaches: Callable[[Trial], Breaches]
    of_company: bool = False
    """True: not for a reward that compares clips."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a promise was kept."""

    promise: Promise
    breaches: tuple[str, ...]
    """Empty = kept."""
    seconds: float

    def __str__(self) -> str:
        return f"{self.promise.name}: {'; '.join(self.breaches) or 'kept'}"


def hold(spec: RewardSpec) -> Iterator[Verdict]:
    """Hold a reward to each of its promises in turn. Raises what building its model raises."""
    trial = Trial(spec)
    return (judged(trial, promise) for promise in PROMISES if promised(promise, spec))


def promised(promise: Promise, spec: RewardSpec) -> bool:
    """Whether a promise is for this reward."""
    return spec.scope == "clip" or not promise.of_company


def judged(trial: Trial, promise: Promise) -> Verdict:
    """Hold a reward to one promise. What a model raises past its guards is a breach, too."""
    started = time.monotonic()
    found: list[str] = []
    try:
        found.extend(promise.breaches(trial))
    except Exception as error:
        found.append(f"raised {error!r}")
    return Verdict(promise, tuple(found), time.monotonic() - started)


def _coherent(trial: Trial) -> Breaches:
    yield from incoherent(trial.spec)
    digests = trial.model.weights_digest
    if digests and (len(digests) != 64 or set(digests) - set("0123456789abcdef")):
        yield f"weights_digest {digests!r} is not 64 hexadecimal digits (SHA-256)"


def _answers_the_ordinary(trial: Trial) -> Breaches:
    answers = trial.together
    yield from _improper(trial.spec, answers, honest={"unverifiable"})
    if not any(answer.valid and answer.reason == "ok" for answer in answers):
        yield f"no ordinary clip gets a value, as {answers[0]}"


def _answers_the_unusual(trial: Trial) -> Breaches:
    hard = [one for one in measurable(trial.first.clip, trial.spec) if one.about in trial.spec.needs]
    answers = trial.ask([trial.of_first(one.name, one.clip) for one in hard])
    for one, answer in zip(hard, answers, strict=True):
        honest = {"unverifiable"} | ({"too_short"} if _lasts(one.clip) < _lasts(trial.first.clip) else set())
        yield from _improper(trial.spec, [answer], honest)
    by_name = {answer.clip: answer for answer in answers}
    silent = by_name.get("silence")
    if silent is not None and trial.spec.needs_sound and silent.value != trial.spec.floor:
        yield f"{silent}, although silence is empty for it (needs_sound) and its floor is {trial.spec.floor}"


def _refuses(trial: Trial) -> Breaches:
    hard = list(unmeasurable(trial.first.clip, trial.spec))
    reads = [one for one in hard if one.about in trial.spec.needs]
    for one, answer in zip(reads, trial.ask(_named(trial, reads)), strict=True):
        if answer.valid or answer.reason != one.reason:
            yield f"{answer}, and must be invalid ({one.reason})"


def _does_not_look_further(trial: Trial) -> Breaches:
    blind = [one for one in unmeasurable(trial.first.clip, trial.spec) if one.about not in trial.spec.needs][::6]
    if not blind:
        return
    answers, how = trial.ask(_named(trial, blind)), f"although it needs {', '.join(trial.spec.needs)} alone"
    for answer in answers:
        for breach in _moved(trial.together[:1], [answer], trial.spec.batch_tolerance, how):
            yield f"{answer.clip}: {breach}"


def _repeats(trial: Trial) -> Breaches:
    few = trial.ordinary[:2]
    before = trial.ask(few)
    yield from _moved(before, trial.ask(few), 0.0, "asked again")
    trial.rebuild()
    yield from _moved(before, trial.ask(few), 0.0, "from a model that is built anew")


def _batches(trial: Trial) -> Breaches:
    alone = [answer for one in trial.ordinary for answer in trial.ask([one])]
    yield from _moved(alone, trial.together, trial.spec.batch_tolerance, f"in a batch of {len(alone)}")


def _bears_company(trial: Trial) -> Breaches:
    hard = list(unmeasurable(trial.first.clip, trial.spec))
    sizes = [one for one in measurable(trial.first.clip, trial.spec) if one.name.startswith(OTHER_SIZES)]
    mixed: list[Asked] = []
    few = trial.ordinary[:3]
    for place, one in enumerate(few):
        mixed += [one, *_named(trial, hard[place :: len(few)]), *_named(trial, sizes[place :: len(few)])]
    names = [name for name, _, _ in few]
    kept = [answer for answer in trial.ask(mixed) if answer.clip in names]
    yield from _moved(
        trial.together[: len(few)], kept, trial.spec.batch_tolerance, "among clips of other sizes and bad ones"
    )


def _keeps_order(trial: Trial) -> Breaches:
    order = [2, 0, 3, 1]
    shuffled = trial.ask([trial.ordinary[place] for place in order])
    kept = [shuffled[order.index(place)] for place in range(len(order))]
    yield from _moved(trial.together[: len(order)], kept, trial.spec.batch_tolerance, "in another order")


def _reads_any_array(trial: Trial) -> Breaches:
    clip = trial.first.clip
    answers = trial.ask([trial.of_first(name, laid) for name, laid in _layouts(clip)])
    yield from _moved(
        trial.together[:1] * len(answers), answers, trial.spec.batch_tolerance, "as the same clip in plain arrays"
    )


def _writes_nothing(trial: Trial) -> Breaches:
    before = digest(canary.clip for canary in trial.canaries)
    trial.ask(trial.ordinary[:1])
    if digest(canary.clip for canary in trial.canaries) != before:
        yield "the clips are no longer what they were: it writes into their arrays"


def _answers_any_text(trial: Trial) -> Breaches:
    texts = [(name, Prompt(name, text, text, text)) for name, text in TEXTS.items()]
    answers = trial.ask([trial.of_first(name, trial.first.clip, prompt) for name, prompt in texts])
    yield from _improper(trial.spec, answers, honest={"unverifiable"})
    if not trial.spec.prompt_anchored:
        tolerance = trial.spec.batch_tolerance
        yield from _moved(trial.together[:1] * len(answers), answers, tolerance, "by its text alone")


def _is_anchored(trial: Trial) -> Breaches:
    """Ordinary clips under the prompts of other kinds of clips."""
    swaps = ((0, 4), (2, 6), (4, 0), (7, 1))
    own = trial.ask([trial.ordinary[place] for place, _ in swaps])
    swapped = [
        (trial.canaries[place].name, trial.canaries[of].prompt, trial.canaries[place].clip) for place, of in swaps
    ]
    same = [_same(*pair) for pair in zip(own, trial.ask(swapped), strict=True)]
    if trial.spec.prompt_anchored and all(same):
        yield "declares prompt_anchored, and other prompts change no score of the ordinary clips"
    if not trial.spec.prompt_anchored and not all(same):
        yield f"does not declare prompt_anchored, and another prompt moves {own[same.index(False)]}"


def _fails_as_invalid(trial: Trial) -> Breaches:
    """A prompt without texts stands for whatever makes a model fail."""
    torn: Prompt = replace(trial.first.prompt, prompt_av=None, prompt_v=None, prompt_a=None)  # type: ignore[arg-type]
    (answer,) = trial.ask([trial.of_first("torn", trial.first.clip, torn)])
    plain = trial.together[0]
    if answer.valid and (answer.reason != plain.reason or abs(answer.value - plain.value) > trial.spec.batch_tolerance):
        yield f"{answer} for a prompt without texts: a failure is invalid, and never a number"


def _declares_its_components(trial: Trial) -> Breaches:
    """Looks at every answer so far."""
    declared, told = trial.spec.components, set[str]()
    for answer in trial.answers:
        for name, value in answer.components.items():
            part = declared.get(name)
            if part is None and name not in told:
                yield f"{answer.clip}: component {name} = {value!r} is not declared in components"
            elif part is not None and not part.low <= value <= part.high and name not in told:
                yield f"{answer.clip}: component {name} = {value!r} is outside {part.low:g} to {part.high:g}"
            else:
                continue
            told.add(name)
    missing = set(declared) - {name for answer in trial.answers for name in answer.components}
    if missing and trial.answers:
        yield f"declared, and returned for no clip: {', '.join(sorted(missing))}"


def _draws_its_curves(trial: Trial) -> Breaches:
    _, prompt, clip = trial.ordinary[0]
    for curve in trial.model.curves(prompt, clip):
        times, values = np.asarray(curve.times_s), np.asarray(curve.values)
        if not curve.label or times.ndim != 1 or times.shape != values.shape:
            yield f"curve {curve.label!r}: label, times [N] and values [N], not {times.shape} and {values.shape}"
        elif (
            not np.isfinite(times).all() or (np.diff(times) < 0).any() or not (np.abs(times) <= 2 * _lasts(clip)).all()
        ):
            yield f"curve {curve.label!r}: its times are not rising seconds of the clip"


def _leaves_chance_alone(trial: Trial) -> Breaches:
    """A draw comes first, so that a model that seeds a generator, and has done so before, is found."""
    kept = random.getstate(), np.random.get_state()
    random.random(), np.random.random_sample()
    before = _chance()
    trial.ask(trial.ordinary[:1])
    after = _chance()
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    for name, state in after.items():
        if before.get(name, state) != state:
            yield f"the state of {name} is another after scoring; draw from a generator of its own"


def _chance() -> dict[str, str]:
    numpy, torch = np.random.get_state(legacy=False)["state"], sys.modules.get("torch")
    found = {"random": str(random.getstate()), "numpy.random": f"{numpy['pos']} {numpy['key'].tobytes()!r}"}
    return found | ({"torch": str(torch.get_rng_state().numpy().tobytes())} if torch is not None else {})


def _layouts(clip: Clip) -> Iterator[tuple[str, Clip]]:
    """The same clip in arrays of other kinds."""
    video, audio = clip.video_FHWC, clip.audio_CS
    frozen = video.copy(), audio.copy()
    for array in frozen:
        array.setflags(write=False)
    yield "read-only arrays", Clip(frozen[0], clip.fps, frozen[1], clip.sample_rate)
    turned = np.ascontiguousarray(video.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    yield "arrays with gaps", Clip(turned, clip.fps, np.repeat(audio, 2, axis=1)[:, ::2], clip.sample_rate)
    back = np.ascontiguousarray(video[::-1, :, ::-1])[::-1, :, ::-1], np.asfortranarray(audio)
    yield "arrays that run backwards", Clip(back[0], clip.fps, back[1], clip.sample_rate)


def _named(trial: Trial, hard: Sequence[HardClip]) -> list[Asked]:
    return [trial.of_first(one.name, one.clip) for one in hard]


def _lasts(clip: Clip) -> float:
    """Seconds that both picture and sound last."""
    return min(len(clip.video_FHWC) / clip.fps, clip.audio_CS.shape[1] / clip.sample_rate)


def _improper(spec: RewardSpec, answers: Iterable[Answer], honest: set[str]) -> Breaches:
    """Answers to clips that can be measured that are neither a value in range nor an honest refusal."""
    low, high = spec.range
    for answer in answers:
        if answer.valid and answer.reason not in {"ok", *EMPTY}:
            yield f"{answer} has a value and the reason of a failure"
        elif answer.valid and answer.reason in EMPTY and answer.value != spec.floor:
            yield f"{answer} is said to be empty, and the floor is {spec.floor}"
        elif answer.valid and not low <= answer.value <= high:
            yield f"{answer} is outside of the range, {low:g} to {high:g}"
        elif not answer.valid and answer.reason not in honest:
            yield f"{answer}, and can be measured (or is unverifiable)"


def _same(one: Answer, other: Answer) -> bool:
    same_value = one.value == other.value or not (one.valid or other.valid)
    return same_value and one.reason == other.reason and one.components == other.components


def _moved(firsts: Sequence[Answer], others: Sequence[Answer], tolerance: float, how: str) -> Breaches:
    """Pairs of answers to one clip that differ by more than the tolerance; by any bit where it is 0."""
    for first, other in zip(firsts, others, strict=True):
        if tolerance == 0.0 or not (first.valid and other.valid):
            kept = _same(first, other)
        else:
            kept = math.fabs(first.value - other.value) <= tolerance
        if not kept:
            parts = "" if first.value != other.value else f" with other components, {_differing(first, other)}"
            yield f"{first} becomes {other.value!r} ({other.reason}) {how}{parts}"


def _differing(first: Answer, other: Answer) -> str:
    names = sorted({*first.components, *other.components})
    return ", ".join(name for name in names if first.components.get(name) != other.components.get(name))


PROMISES: tuple[Promise, ...] = (
    Promise("facts", "what it declares is there and fits together", _coherent),
    Promise("ordinary", "ordinary clips get a value in range, or are said to be unverifiable", _answers_the_ordinary),
    Promise(
        "unusual", "silence, black frames, odd sizes, few frames, one to six channels, 8 to 48 kHz do, too",
        _answers_the_unusual,
    ),
    Promise("refusal", "what cannot be measured is invalid, for the right reason", _refuses),
    Promise("needs", "what it does not declare to need changes nothing", _does_not_look_further, of_company=True),
    Promise("batch", "a clip alone = the clip in a batch of eight, within batch_tolerance", _batches, of_company=True),
    Promise("company", "clips of other sizes and broken ones spoil nothing", _bears_company, of_company=True),
    Promise("order", "the order of clips does not matter", _keeps_order, of_company=True),
    Promise("arrays", "read-only and non-contiguous arrays score as plain ones", _reads_any_array, of_company=True),
    Promise("reading", "it writes into no clip", _writes_nothing),
    Promise("text", "no text, odd text and 5000 words are answered", _answers_any_text, of_company=True),
    Promise("anchoring", "the prompt's text counts exactly if it says so", _is_anchored, of_company=True),
    Promise("failure", "a failure is invalid, never a number", _fails_as_invalid),
    Promise("chance", "it leaves the process's random numbers alone", _leaves_chance_alone),
    Promise("curves", "its curves have a label, and values at rising times", _draws_its_curves),
    Promise("repetition", "asked again, and built anew, it gives the same bits", _repeats),
    Promise("components", "it returns what it declares, within what it declares", _declares_its_components),
)  # fmt: skip
"""In the order in which they are tried; the last looks at all answers to those before it."""
