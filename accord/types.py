"""The nouns that cross rooms. Arrays are numpy and named with shape suffixes (docs/notation.md).

Light by design: numpy arrays appear in annotations only, so the control plane imports this without any array library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from accord.errors import RolloutError
from accord.ids import PolicyVersion

if TYPE_CHECKING:
    import numpy as np

    from accord.backbones.base import Conditions

Modality = Literal["video", "audio"]
MODALITIES: tuple[Modality, ...] = ("video", "audio")
Route = Literal["video", "audio", "both"]
Role = Literal["policy", "old", "ref"]
"""`policy` is trained, `old` samples (a blend that follows policy), `ref` is the base with adapters off;
in a learner whose guard resets the reference it is a policy of before."""

ScoreReason = Literal[
    "ok", "non_finite", "no_events", "silent_audio", "too_short", "bad_media", "timeout", "backpressure", "model_error",
    "unreachable", "circuit_open", "unverifiable", "out_of_range", "too_long", "too_large", "too_small", "wrong_rate",
    "too_few", "refused", "bad_answer", "wrong_version",
]  # fmt: skip

SERVERS_FAULT: frozenset[ScoreReason] = frozenset({
    "timeout", "unreachable", "backpressure", "circuit_open", "model_error", "refused", "bad_answer", "wrong_version",
})  # fmt: skip
"""Why a clip has no score through no fault of its own."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompt file. Generation uses `prompt_av`; rewards read the one for their modality."""

    id: str
    prompt_av: str
    prompt_v: str
    prompt_a: str


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """One decoded clip: what a person sees and hears, and all that a reward may look at."""

    video_FHWC: np.ndarray
    """uint8 RGB [F, H, W, 3]"""
    fps: float
    audio_CS: np.ndarray
    """float32 in [-1, 1], [channels, S]"""
    sample_rate: int


Term = Literal["text", "stg", "modality"]
"""What guides besides the prompt: classifier-free, spatio-temporal, and modality guidance."""
Scales = Mapping[Modality, float]
"""Strength of one term of guidance by modality; one that is missing is not guided by it."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """How strongly each term guides each modality (rollout_workers/guidance.py)."""

    text: Scales = field(default_factory=dict)
    """Classifier-free; 1 = off."""
    stg: Scales = field(default_factory=dict)
    """0 = off."""
    modality: Scales = field(default_factory=dict)
    """1 = off."""
    rescale: Scales = field(default_factory=dict)
    """Share of the guided estimate that is brought back to the conditional one's standard deviation; 0 = off."""
    blocks: tuple[int, ...] = ()
    """Blocks whose self-attention the perturbed pass skips."""

    @property
    def reads_empty_prompt(self) -> bool:
        """Classifier-free guidance is on for some modality."""
        return any(scale > 1.0 for scale in self.text.values())


@dataclass(frozen=True, slots=True)
class StochasticSteps:
    """Denoising steps that are drawn from a Gaussian and recorded (rollout_workers/stochastic.py)."""

    kind: Literal["flow", "dance"]
    """Which noise rate."""
    eta: float
    """How much noise."""
    steps: tuple[int, ...]
    """0-based, ascending, at least one."""


@dataclass(frozen=True, slots=True)
class Capture:
    """Which attention from sound to picture is read while sampling, and how it becomes token weights."""

    formula: Literal["minmax", "frame_sigmoid"]
    strength: float
    """That of the training step the group is for."""
    first_block: float
    last_block: float
    """Fractions of the depth between which attention is read."""
    first_step: float
    last_step: float
    """Fractions of the denoising steps between which attention is read."""


@dataclass(frozen=True, slots=True)
class Fork:
    """From `step` on, sample `sample` goes on from the state of sample `parent`, with noise of its own."""

    sample: int
    parent: int
    step: int
    """Denoising step (0-based) before which the state is taken over; 0 = both start from the parent's noise."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How every group of a training step is sampled. Made by `plan` of an algorithm's spec, or for an evaluation."""

    role: Role
    num_steps: int
    """Denoising steps."""
    guidance: Guidance = field(default_factory=Guidance)
    stochastic: StochasticSteps | None = None
    """The steps that are drawn; the others follow the ODE. None: all do."""
    initial_noise: Literal["independent", "shared"] = "independent"
    """`shared`: the samples of a group start from the noise of the request's `start_seed`, else of their own seeds."""
    capture: Capture | None = None
    """None: no token weights."""
    forks: tuple[Fork, ...] = ()
    """Samples that share a prefix with another sample of their group. None: all are independent."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Everything that determines a group bit for bit, given the model and the weights of `policy_version`.

    Example:
        Two samples along the ODE, from version 3 of the policy that is trained:

            plan = RolloutPlan(role="policy", num_steps=8, guidance=Guidance(text={"video": 3.0, "audio": 2.0}))
            prompt = Prompt("red", "a red ball bouncing with a bell sound", "a red ball bouncing", "a bell sound")
            RolloutRequest(0, 0, prompt, seeds=(1, 2), policy_version=PolicyVersion(3), plan=plan)
    """

    step: int
    """Training step the group is for (1-based); 0 for evaluation."""
    prompt_index: int
    """Position inside the step, 0-based."""
    prompt: Prompt
    seeds: tuple[int, ...]
    """One 63-bit seed per sample [G]; all of a sample's noise is derived from its seed."""
    policy_version: PolicyVersion
    plan: RolloutPlan
    start_seed: int = 0
    """Seed of the noise that the whole group starts from, where the plan says so."""

    def __post_init__(self) -> None:
        """Raises RolloutError for a fork that has no place in the group."""
        forked = {fork.sample: fork.step for fork in self.plan.forks}
        if len(forked) < len(self.plan.forks):
            raise RolloutError("a sample forks more than once; it has one parent")
        for fork in self.plan.forks:
            reason = self._misfit(fork, forked)
            if reason:
                raise RolloutError(f"sample {fork.sample} cannot fork from {fork.parent} at step {fork.step}: {reason}")

    def _misfit(self, fork: Fork, forked: Mapping[int, int]) -> str:
        samples = range(len(self.seeds))
        if fork.sample not in samples or fork.parent not in samples:
            return f"the group has {len(samples)} samples, counted from 0"
        if fork.sample == fork.parent:
            return "that is itself"
        if not 0 <= fork.step < self.plan.num_steps:
            return f"there are {self.plan.num_steps} steps, counted from 0"
        if forked.get(fork.parent, -1) >= fork.step:
            return f"the parent itself forks at step {forked[fork.parent]}; a parent forks before its children"
        if self.plan.stochastic is None or self.plan.stochastic.steps[-1] < fork.step:
            return "no stochastic step follows, so both would end alike"
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """One modality of a group at its stochastic denoising steps, in the order of the plan's `stochastic.steps`."""

    before_KGTC: np.ndarray
    """The state that the step started from, float32."""
    after_KGTC: np.ndarray
    """The state that was drawn, float32."""
    log_prob_KG: np.ndarray
    """Its log-density under the sampling policy, mean over elements, float32."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupData:
    """The heavy half of a SampleGroup for the learner; it lives in the object store."""

    latents: Mapping[Modality, np.ndarray]
    """Clean latents as the transformer sees them: float32 [G, T, C] per modality."""
    conditions: Conditions
    """The prompt as it was encoded for sampling, one row in host memory: the learner needs no text encoder."""
    token_weights_GT: np.ndarray | None = None
    """Region weights at the strength of the step, float32 [G, T_video]; the loss takes a weighted mean. None when not
    captured."""
    transitions: Mapping[Modality, Transitions] | None = None
    """What happened at the stochastic steps; None when the whole group followed the ODE."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleGroup:
    """The samples of one prompt: the unit that is sampled, scored, queued, dropped and normalised.

    Example:
        As a worker answers in one process; in a cluster `data` and `clips` are object references:

            SampleGroup(request, request.policy_version, GroupData({"video": latents_GTC}, conditions), [clip, clip])
    """

    request: RolloutRequest
    policy_version: PolicyVersion
    """Stamped by the worker that sampled, from the weights it really held."""
    data: Any
    """Handle to GroupData: an object reference in a cluster, the object itself in one process."""
    clips: Any
    """Handle to list[Clip], length G."""
    features: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What the clips look and sound like, by name [G], see accord/clip_features.py."""


@dataclass(frozen=True, slots=True)
class RewardScores:
    """One reward's view of one group. `values[i]` means something only where `valid[i]`.

    Example:
        Of two clips the second has no sound, so it has no score:

            RewardScores("sync", "1", (0.7, math.nan), ("ok", "too_short"), 0.4, {"f1": (0.8, math.nan)})
    """

    reward: str
    version: str
    values: tuple[float, ...]
    """Raw value times direction, so higher is better; NaN where invalid [G]"""
    reasons: tuple[ScoreReason, ...]
    seconds: float = 0.0
    components: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What the value was made of, for reports (for example `offset_s`, `f1`, `chance`); NaN where undefined [G]"""

    @property
    def valid(self) -> tuple[bool, ...]:
        """Which values are numbers [G]."""
        return tuple(math.isfinite(value) for value in self.values)

    def known(self) -> list[float | None]:
        """Values, None where invalid [G]."""
        return [value if math.isfinite(value) else None for value in self.values]

    @classmethod
    def failed(cls, reward: str, count: int, reason: ScoreReason, seconds: float = 0.0) -> RewardScores:
        """All `count` scores invalid for one reason. A failure is never a number."""
        return cls(reward, "", (math.nan,) * count, (reason,) * count, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A group with the scores of every reward of the job, keyed by reward name."""

    group: SampleGroup
    scores: Mapping[str, RewardScores]


@dataclass(frozen=True, slots=True, eq=False)
class StepGroups:
    """What a training step trains on, and how long it took to make."""

    groups: Sequence[ScoredGroup]
    """In prompt order."""
    sampling_s: float
    """Wall time from the first sample's start to the last sample's end."""
    scoring_s: float
    """What scoring took beyond that."""


@dataclass(frozen=True, slots=True, eq=False)
class PolicyState:
    """What is published after a step: LoRA tensors by role. Keys are module paths of the transformer."""

    version: PolicyVersion
    adapters: Mapping[Role, Mapping[str, np.ndarray]]
    """float32 arrays for `policy` and `old`, and in the checkpoints of a learner that resets its reference `ref`."""


@dataclass(frozen=True, slots=True)
class RewardIdentity:
    """What decides, beside clip and prompt, which score a reward gives."""

    version: str
    weights_digest: str
    """"" = it has no weights."""


class RewardScorer(Protocol):
    """Scores one group with one reward. Never raises for a bad clip: that sample comes back invalid."""

    async def score(self, reward: str, prompt: Prompt, clips: Any, count: int) -> RewardScores:
        """Score `count` clips behind the handle `clips` within the reward's deadline."""

    async def score_step(
        self, reward: str, prompts: Sequence[Prompt], clips: Sequence[Any], counts: Sequence[int]
    ) -> Sequence[RewardScores]:
        """Score all groups of a step together, for a reward whose scope is the step. One handle for each group."""


class GroupSource(Protocol):
    """Where the learner gets its groups from; see rollout_workers/stream.py for the real one."""

    def publish(self, state: PolicyState) -> None:
        """Make a version available to the workers and start sampling what it unblocks."""

    def take(self, step: int) -> StepGroups:
        """Return what `step` trains on; blocks until its deadline."""

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> Sequence[ScoredGroup]:
        """Sample and score held-out requests with a published version."""

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """Score clips that were put together elsewhere, such as a shuffled-pair control.

        A source that asks no reward, as one of saved groups, has no scores for a canary.
        """

    def fetch(self, handle: Any) -> Any:
        """Resolve a handle of a group this source produced. Default: handles are the things themselves."""
        return handle
