"""The LTX-2 sigma schedule: which scheduler configs are read, and about what sigmas one makes.

Light, for the check of a job; what is sampled with are the sigmas of diffusers' own scheduler (`model.exact_sigmas`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from accord.errors import ModelError

_LARGEST, _EPSILON = 3.4e38, 1e-7
"""Of float32, which the scheduler computes in."""


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """The fields of `scheduler_config.json` that decide the sigmas."""

    use_dynamic_shifting: bool = False
    shift: float = 1.0
    base_shift: float = 0.95
    max_shift: float = 2.05
    base_image_seq_len: int = 1024
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    time_shift_type: Literal["exponential", "linear"] = "exponential"

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        """Read a scheduler config. Raises ModelError for a schedule of another kind."""
        for flag in (
            "invert_sigmas", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
        ):  # fmt: skip
            if config.get(flag):
                raise ModelError(f"scheduler config: {flag} is set; only the shifted linear schedule of LTX-2 is known")
        kind = config.get("time_shift_type", "exponential")
        if kind not in ("exponential", "linear"):
            raise ModelError(f"scheduler config: time_shift_type {kind!r}; known: exponential, linear")
        known = {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        return cls(**known)

    def mu(self, video_tokens: int, shift: float | None = None) -> float:
        """What dynamic shifting shifts by: grows linearly with the number of video tokens, unless the job says."""
        if shift is not None:
            return shift
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return video_tokens * slope + (self.base_shift - slope * self.base_image_seq_len)


def sigma_schedule(
    config: ScheduleConfig, num_steps: int, video_tokens: int, shift: float | None = None
) -> tuple[float, ...]:
    """Return `num_steps + 1` sigmas from 1 down to 0, those of the scheduler but for rounding (they are float32).

    With dynamic shifting, `shift` replaces mu, else the static shift. Step by step: linspace(1, 1/N), time shift
    e^mu / (e^mu + 1/sigma - 1), stretch so that the last non-zero sigma is `shift_terminal`, append 0.

    Raises ArithmeticError for a shift that leaves no sigma but 1 in float32.
    """
    sigmas = [1.0 - index / num_steps for index in range(num_steps)]
    if config.use_dynamic_shifting:
        mu = config.mu(video_tokens, shift)
        strength = math.exp(mu) if config.time_shift_type == "exponential" else mu
    else:
        strength = config.shift if shift is None else shift
    if strength > _LARGEST:
        raise OverflowError(f"the time shift is {strength:g}")
    sigmas = [strength / (strength + (1.0 / sigma - 1.0)) for sigma in sigmas]
    if config.shift_terminal and num_steps > 1:  # one step has nothing to stretch
        if 1.0 - sigmas[-1] < _EPSILON:
            raise ZeroDivisionError("all sigmas are 1")
        scale = (1.0 - sigmas[-1]) / (1.0 - config.shift_terminal)
        sigmas = [1.0 - (1.0 - sigma) / scale for sigma in sigmas]
    return (*sigmas, 0.0)
