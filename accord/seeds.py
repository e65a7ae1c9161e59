"""What a result depends on is derived, never drawn: a seed is a hash of what it is for. THE table of purposes is here.

A seed depends on (job seed, purpose, step, prompt index, sample index) alone, so it is the same on every worker, rank
and attempt. Two draws that share a purpose and its parts are the same draw; two purposes never meet.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum


class Purpose(StrEnum):
    """What a seed drives, with the parts that it is derived from. A name that ends in `/` is completed by `at`."""

    # which prompts, and how they are sampled
    PROMPT_ORDER = "prompt-order"
    """Order of the prompts in one pass over the file: (job seed, purpose, pass, index)."""
    SAMPLE = "train"
    """A sample of a training step: (job seed, purpose, step, prompt, sample). All noise of its sampling follows."""
    SHARED_START = "train-start"
    """The noise that a whole group starts from: (job seed, purpose, step, prompt)."""
    WINDOW = "sde-window"
    """Where the stochastic denoising steps of a training step begin: (job seed, purpose, step)."""
    HELD_OUT = "evaluate"
    """A sample of a held-out prompt, the same in every evaluation: (job seed, purpose, prompt, sample)."""

    # noise, from a sample's own seed
    START_NOISE = "init/"
    """Where denoising starts: (sample seed, purpose at modality)."""
    STEP_NOISE = "sde/"
    """Noise of a stochastic denoising step: (sample seed, purpose at modality and step)."""
    LOSS_NOISE = "train/"
    """Noise that clean latents are mixed with for the loss: (seed of LOSS_DRAW, purpose at modality)."""

    # what the learner draws
    ADAPTER = "lora"
    """The first values of an adapter layer: (job seed, purpose, path of the tensor)."""
    LOSS_SIGMA = "sigma"
    """Noise levels of a sample in the loss: (job seed, purpose, step, prompt, sample, level)."""
    LOSS_DRAW = "learn"
    """One draw of a sample in the loss: (job seed, purpose, step, prompt, sample, draw)."""

    # what an evaluation draws
    SHUFFLED_SOUND = "shuffle"
    """Whose sound a clip gets in the shuffled control: (job seed, purpose, sample)."""
    BOOTSTRAP = "bootstrap"
    """Prompts that are drawn again for a standard error: (purpose, job seed, name of the statistic)."""

    # what moves no bit of a run
    REWARD_PAUSE = "reward-pause"
    """Spread of the pauses before a reward is asked again: (purpose, reward, prompt id, attempt)."""

    def at(self, *place: int | str) -> str:
        """Complete a name that ends in `/`, for example `init/video`."""
        return self + "/".join(map(str, place))


def derive_seed(*parts: int | str) -> int:
    """Return 63 bits of BLAKE2b over the parts, one of them a purpose: a seed for a counter-based generator."""
    text = "\x1f".join(f"{'str' if isinstance(part, str) else type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
