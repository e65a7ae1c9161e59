"""The nouns that cross rooms. Arrays are numpy and named with shape suffixes (docs/notation.md).

Light by design: numpy arrays appear in annotations only, so the control plane imports this without any array library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from accord.ids import PolicyVersion

if TYPE_CHECKING:
    import numpy as np

Modality = Literal["video", "audio"]
MODALITIES: tuple[Modality, ...] = ("video", "audio")
Route = Literal["video", "audio", "both"]
Role = Literal["policy", "old", "ref"]
"""`policy` is trained, `old` samples (a blend that follows policy), `ref` is the base with adapters off."""

ScoreReason = Literal[
    "ok", "non_finite", "no_events", "silent_audio", "too_short", "bad_media", "timeout", "backpressure", "model_error",
    "unreachable", "unverifiable",
]  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Everything that determines a group bit for bit, given the weights of `policy_version`."""

    step: int
    """Training step the group is for (1-based); 0 for evaluation."""
    prompt_index: int
    """Position inside the step, 0-based."""
    prompt: Prompt
    seeds: tuple[int, ...]
    """One 63-bit seed per sample [G]; all of a sample's noise is derived from its seed."""
    policy_version: PolicyVersion
    role: Role = "old"
    capture_token_weights: bool = False
    sde_steps: tuple[int, ...] = ()
    """Denoising steps (0-based) that are stochastic and recorded; the others follow the ODE."""
    initial_seed: int | None = None
    """Seed of the noise that the whole group starts from; None: every sample starts from its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """One modality of a group at its stochastic denoising steps, in the order of `RolloutRequest.sde_steps`."""

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
    token_weights_GT: np.ndarray | None = None
    """Region weights at the strength of the step, float32 [G, T_video]; the loss takes a weighted mean. None when not
    captured."""
    transitions: Mapping[Modality, Transitions] | None = None
    """What happened at the stochastic steps; None when the whole group followed the ODE."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleGroup:
    """The samples of one prompt: the unit that is sampled, scored, queued, dropped and normalised."""

    request: RolloutRequest
    policy_version: PolicyVersion
    """Stamped by the worker that sampled, from the weights it really held."""
    data: Any
    """Handle to GroupData: an object reference in a cluster, the object itself in one process."""
    clips: Any
    """Handle to list[Clip], length G."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time spent per phase: encode, denoise, decode."""


@dataclass(frozen=True, slots=True)
class RewardScores:
    """One reward's view of one group. `values[i]` means something only where `valid[i]`."""

    reward: str
    version: str
    values: tuple[float, ...]
    """Raw value times direction, so higher is better; NaN where invalid [G]"""
    valid: tuple[bool, ...]
    reasons: tuple[ScoreReason, ...]
    seconds: float = 0.0
    components: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What the value was made of, for reports (for example `offset_s`, `f1`, `chance`); NaN where undefined [G]"""

    @classmethod
    def failed(cls, reward: str, count: int, reason: ScoreReason, seconds: float = 0.0) -> RewardScores:
        """All `count` scores invalid for one reason. A failure is never a number."""
        return cls(reward, "", (float("nan"),) * count, (False,) * count, (reason,) * count, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A group with the scores of every reward of the job, keyed by reward name."""

    group: SampleGroup
    scores: Mapping[str, RewardScores]


@dataclass(frozen=True, slots=True, eq=False)
class PolicyState:
    """What is published after a step: LoRA tensors by role. Keys are module paths of the transformer."""

    version: PolicyVersion
    adapters: Mapping[Role, Mapping[str, np.ndarray]]
    """float32 arrays for `policy` and `old`."""


class RewardScorer(Protocol):
    """Scores one group with one reward. Never raises for a bad clip: that sample comes back invalid."""

    async def score(self, reward: str, prompt: Prompt, clips: Any, count: int) -> RewardScores:
        """Score `count` clips behind the handle `clips` within the reward's deadline."""
        ...


class GroupSource(Protocol):
    """Where the learner gets its groups from; see rollout_workers/stream.py for the real one."""

    def publish(self, state: PolicyState) -> None:
        """Make a version available to the workers and start sampling what it unblocks."""
        ...

    def take(self, step: int) -> Sequence[ScoredGroup]:
        """Return the scored groups of `step`, in prompt order; blocks until its deadline."""
        ...

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> Sequence[ScoredGroup]:
        """Sample and score held-out requests with a published version."""
        ...

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """Score clips that were put together elsewhere, such as a shuffled-pair control."""
        ...

    def fetch(self, handle: Any) -> Any:
        """Resolve a handle of a group this source produced."""
        ...

    def phase_seconds(self, step: int) -> Mapping[Any, float]:
        """Wall time of a step that was taken: sampling, and what scoring took beyond it."""
        ...
