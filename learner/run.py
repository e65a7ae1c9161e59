"""What the page works with: one attempt's parts, and the run folder that it leaves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from accord.backbones.adapters import ADAPTER_ROLES, export_lora
from accord.config.job import JobSpec
from accord.disk import WAIT_S, patiently
from accord.errors import GuardError, RewardError, RolloutError
from accord.events import CheckpointSaved, Event, EventSink, Phase, Progress, StepCompleted, Warned
from accord.ids import PolicyVersion
from accord.requests import sampling_version
from accord.run_folder import ADAPTER, RunFolder
from accord.types import GroupSource, Modality, PolicyState, Prompt, ScoredGroup
from learner.algorithms.base import Algorithm, Credit
from learner.assembly import make_rank
from learner.checkpoint import Checkpoints
from learner.collectives import Ranks
from learner.drift import RewardWatch, Word
from learner.engine import Engine
from learner.evaluate import Evaluator
from learner.guarded_credit import guarded
from learner.guards import Controls, Verdict, Watch, feature_metrics
from learner.outcome import TrainResult
from learner.phase_clock import PhaseClock

_T = TypeVar("_T")


class Run:
    """One attempt at a job, on one rank. Every method is called on every rank, in the page's order."""

    def __init__(
        self,
        job: JobSpec,
        folder: RunFolder,
        source: GroupSource,
        events: EventSink | None,
        held_out: Sequence[Prompt],
        *,
        device: str = "cpu",
        guard: Callable[[], None] = lambda: None,
        epoch: int = 0,
        began: float | None = None,
        disk_wait_s: float = WAIT_S,
    ) -> None:
        """Only the first rank emits `events`. `guard` raises Fenced when the attempt lost the job.

        `began` is the Unix time at which the attempt began; what passed until the first publication is its start-up.
        A write to a run folder without room waits up to `disk_wait_s`.
        """
        self.disk_wait_s = disk_wait_s
        self.job, self.folder, self.source, self.events = job, folder, source, events
        self.rank = rank = make_rank(job, device)
        self.engine: Engine = rank.engine
        self.ranks: Ranks = rank.ranks
        self.algorithm: Algorithm[Any] = rank.algorithm
        self.modalities: tuple[Modality, ...] = rank.modalities
        self.checkpoints = Checkpoints(
            self.folder, job, self.ranks, epoch=epoch, layout=self.engine.layout,
            sharded=self.engine.sharded, guard=guard, warn=self._warn,
            write=self.patiently,
        )  # fmt: skip
        self.evaluator = Evaluator(job, self.folder, source, held_out, self._emit, self.patiently)
        self.states: deque[PolicyState] = deque(maxlen=job.cluster.policy_lag + 1)
        """The versions that groups in flight may be sampled with, oldest first: what the next steps measure from."""
        self.saved = 0
        """The step of the last checkpoint."""
        self.clock = PhaseClock(began)
        self.controls = Controls(job, source, self._warn) if job.guards.controls and self.ranks.first else None
        drifts = self.ranks.first and job.guards.drift.on_drift != "off"
        self.drift = RewardWatch(job, source, folder, self._warn, self.patiently) if drifts else None
        self._watch: Watch | None = None
        self._sampled: PolicyState | None = None
        self._best: PolicyState | None = None
        """The latest version whose samples were within the bands."""

    def restore(self) -> int:
        """Load the latest whole checkpoint and cut the run folder back to it. Returns its step, 0 = fresh."""
        found = self.checkpoints.latest()
        if found is None:
            self.states.append(policy_state(self.engine, 0))
        else:
            self.states.extend(found.states)
            self.engine.load_adapters(found.states[-1].adapters)
            self.engine.load_optimizer_state(found.optimizer)
        step = self.saved = found.step if found else 0
        if self.ranks.first:
            self.patiently(partial(self.folder.cut, step))
        return step

    def republish(self) -> None:
        """Publish every version that the next steps' samples may need, oldest first."""
        for state in self.states:
            if self.ranks.first:
                self.source.publish(_published(state))
        if self.clock.began is not None:
            self.clock.carry("startup", time.time() - self.clock.began)
            self._emit(Progress(phase="startup", step=0, done=1, total=1))
        self.ranks.barrier()  # a rank that takes before may get groups of the attempt's earlier life

    def judge_rewards(self, step: int) -> None:
        """Before a step: see whether the rewards judge as they did, and wait or stop where the job says so.

        Raises GuardError on every rank, once a checkpoint holds every step before this one.
        """
        if self.job.guards.drift.on_drift == "off":
            return
        started, word = time.monotonic(), Word.WAIT
        while word is Word.WAIT:  # each round within the deadline of a collective
            word = Word(self.ranks.from_first(self._word(step)))
        self.clock.carry("reward", time.monotonic() - started)
        if word is Word.GO:
            return
        if self.saved < step - 1:
            self.save(step - 1)
        if self.drift is None:
            raise GuardError("a reward is not what it was; the first rank says which")
        kept = "see its checkpoints"
        if self.drift.sound is not None:
            self.patiently(partial(self._export, self.drift.sound))
            kept = f"kept: {ADAPTER}, version {self.drift.sound.version}, the last whose rewards were what they were"
        raise GuardError(f"step {step} does not begin: {self.drift.why()}; {kept}")

    def _word(self, step: int) -> Word:
        if self.drift is None:
            return Word.GO
        word = self.drift.word(step, self.states[-1])
        for state in self.states if self.drift.waited else ():  # what was judged meanwhile is sampled and judged again
            self.source.publish(_published(state))
        return word

    def take(self, step: int) -> Sequence[ScoredGroup]:
        """Wait for the groups of a step. Raises RolloutError when they are not the ones the step must train on."""
        started = time.monotonic()
        taken = self.source.take(step)
        self.clock.next_step(time.monotonic() - started, taken.scoring_s)
        groups = taken.groups
        wanted = sampling_version(step, self.job.cluster.policy_lag)
        seen = [
            (group.group.request.step, group.group.request.prompt_index, group.group.policy_version) for group in groups
        ]
        if seen != [(step, index, wanted) for index in range(self.job.prompts.per_step)]:
            raise RolloutError(f"step {step} needs version {wanted} of each prompt; got (step, prompt, version) {seen}")
        # Before the update, which no rank leaves until all have come here: the lines are those of earlier steps.
        self._watch = self._watch or Watch(self.job, self.folder.steps())
        self._sampled = next(state for state in self.states if state.version == wanted)
        if self.controls is not None:
            self.controls.begin(groups)
        return groups

    def credit(self, step: int, groups: Sequence[ScoredGroup]) -> Credit:
        """Scores to advantages, and what guards make of them; says which reward the step does without.

        Raises RewardError when a required reward is down, once a checkpoint holds every step before this one.
        """
        try:
            credit = self.algorithm.credit(groups, self.job.rewards, self.modalities)
        except RewardError:
            if self.saved < step - 1:  # every rank has the same groups, so every rank comes here
                self.save(step - 1)
            raise
        assert self._watch is not None, "take comes before credit"
        credit = guarded(groups, self.job, credit, self._watch)
        for reward in self.job.rewards:
            if credit.metrics.get(f"reward/{reward.name}/dropped"):
                why = ", ".join(_reasons(credit.metrics, reward.name))
                self._warn("reward_dropped", f"step {step} is trained without reward {reward.name!r}: {why}")
        return credit

    def update(self, step: int, groups: Sequence[ScoredGroup], credit: Credit) -> dict[str, float]:
        """One optimizer step, measured from the version that sampled the groups."""
        states = {state.version: state.adapters["old"] for state in self.states}
        sampled, latest = groups[0].group.policy_version, self.states[-1].version
        with self.clock.timed("learn"):
            return self.rank.update(
                step, groups, credit, self.source.fetch, lambda done, total: self._progress("learn", step, done, total),
                sampler=None if sampled == latest else states[sampled],
            )  # fmt: skip

    def publish(self, step: int) -> None:
        """Make version `step` available to the workers."""
        with self.clock.timed("publish"):
            self.states.append(policy_state(self.engine, step))
            if self.ranks.first:
                self.source.publish(_published(self.states[-1]))

    def record(self, step: int, groups: Sequence[ScoredGroup], metrics: Mapping[str, float | None]) -> None:
        """Write the step's line and emit it. Raises GuardError when a guard stops the run."""
        assert self._watch is not None, "take comes before record"
        numbers = {**metrics, **feature_metrics(groups)}
        verdict = self._watch.see(numbers)
        if not verdict.outside:
            self._best = self._sampled
        elif self._watch.streak and self.ranks.first and self._best is not None:
            self.patiently(partial(self._export, self._best))
        beside = self.controls.gaps() if self.controls is not None else {}
        beside |= self.drift.metrics() if self.drift is not None else {}
        event = StepCompleted(
            step=step, policy_version=step, metrics=numbers | beside, phase_seconds=self.clock.seconds,
            samples=sum(len(group.group.request.seeds) for group in groups),
        )  # fmt: skip
        if self.ranks.first:
            self.patiently(partial(self.folder.append_step, event))
        self._emit(event)
        self._heed(step, self._watch, verdict)

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        saved = self.checkpoints.save(step, list(self.states), self.engine.optimizer_state())
        self.saved = step
        self.clock.carry("checkpoint", saved.seconds)
        self._emit(CheckpointSaved(step=step, path=str(saved.path), bytes=saved.bytes, seconds=round(saved.seconds, 4)))

    def evaluate(self, step: int) -> None:
        """Score held-out prompts with version `step`, unless the run folder has it already."""
        if self.ranks.first and not self.evaluator.done(step):
            self._emit(self.evaluator.evaluate(step))
        self.ranks.barrier()

    def finish(self) -> TrainResult:
        """Export the adapter in the form that diffusers loads."""
        state, digest = self.states[-1], ""
        if self.ranks.first:
            self.patiently(partial(self._export, state))
            digest = self.folder.sha256(ADAPTER)
        return TrainResult(state.version, digest, self.job.steps)

    def patiently(self, write: Callable[[], _T]) -> _T:
        """Do a write, waiting while the run folder has no room. Raises VolumeFull when it stays so."""
        return patiently(write, warn=self._warn, wait_s=self.disk_wait_s)

    def _export(self, state: PolicyState) -> None:
        with self.folder.writing(ADAPTER) as draft:
            export_lora(state.adapters["policy"], self.job.backbone, draft)

    def _heed(self, step: int, watch: Watch, verdict: Verdict) -> None:
        if not watch.raised:
            return
        told = watch.told(step, verdict)
        if self.job.guards.divergence.action == "stop":
            kept = f"kept: {ADAPTER}, version {self._best.version}" if self._best is not None else f"see {ADAPTER}"
            raise GuardError(f"{told}; {kept}")
        if watch.streak == self.job.guards.divergence.patience:
            self._warn("divergence", told)

    def _progress(self, phase: Phase, step: int, done: int, total: int) -> None:
        if self.clock.due(done, total):
            self._emit(Progress(phase=phase, step=step, done=done, total=total))

    def _warn(self, code: str, message: str) -> None:
        self._emit(Warned(code=code, message=message))

    def _emit(self, event: Event) -> None:
        if self.ranks.first and self.events is not None:
            self.events.emit(event)


def _reasons(metrics: Mapping[str, float | None], reward: str) -> list[str]:
    prefix = f"reward/{reward}/invalid/"
    return [f"{value:g} × {key.removeprefix(prefix)}" for key, value in metrics.items() if key.startswith(prefix)]


def policy_state(engine: Engine, version: int) -> PolicyState:
    """Copy the roles out of the engine. Called on every rank, because ZeRO-3 gathers."""
    return PolicyState(PolicyVersion(version), {role: engine.adapter_state(role) for role in engine.roles})


def _published(state: PolicyState) -> PolicyState:
    """What workers sample with: all but the reference."""
    return replace(state, adapters={role: state.adapters[role] for role in ADAPTER_ROLES})
