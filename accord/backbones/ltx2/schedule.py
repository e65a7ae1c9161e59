"""The LTX-2 sigma schedule, number for number what diffusers' pipeline makes of a scheduler config.

Plain Python on purpose: a job is checked against its schedule in processes that have no array library. Every
operation is rounded to float32 as the scheduler's arrays are, so the values are equal bit for bit.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from accord.errors import ModelError


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


def sigma_schedule(
    config: ScheduleConfig, num_steps: int, video_tokens: int, shift: float | None = None
) -> tuple[float, ...]:
    """Return `num_steps + 1` float32-exact sigmas from 1 down to 0.

    With dynamic shifting, mu grows linearly with the number of video tokens; `shift` replaces mu (or the static shift
    where the config has no dynamic shifting). Step by step: linspace(1, 1/N), time shift
    e^mu / (e^mu + 1/sigma - 1), stretch so that the last non-zero sigma is `shift_terminal`, append 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    sigmas = _linspace(1.0, 1.0 / num_steps, num_steps)
    if config.use_dynamic_shifting:
        mu = _dynamic_mu(config, video_tokens) if shift is None else shift
        strength = _f32(math.exp(mu) if config.time_shift_type == "exponential" else mu)
        sigmas = [_f32(strength / _f32(strength + _f32(_f32(1.0 / sigma) - 1.0))) for sigma in sigmas]
    else:
        static = config.shift if shift is None else shift
        factor, excess = _f32(static), _f32(static - 1.0)
        sigmas = [_f32(_f32(factor * sigma) / _f32(1.0 + _f32(excess * sigma))) for sigma in sigmas]
    if config.shift_terminal and num_steps > 1:  # one step has nothing to stretch
        scale = _f32(_f32(1.0 - sigmas[-1]) / _f32(1.0 - config.shift_terminal))
        sigmas = [_f32(1.0 - _f32(_f32(1.0 - sigma) / scale)) for sigma in sigmas]
    return (*sigmas, 0.0)


def _dynamic_mu(config: ScheduleConfig, video_tokens: int) -> float:
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return video_tokens * slope + (config.base_shift - slope * config.base_image_seq_len)


def _linspace(start: float, stop: float, count: int) -> list[float]:
    """Float64 points as numpy computes them, then rounded to float32."""
    if count == 1:
        return [_f32(start)]
    step = (stop - start) / (count - 1)
    return [_f32(index * step + start) for index in range(count - 1)] + [_f32(stop)]


def _f32(value: float) -> float:
    """Round to the nearest float32. One double operation rounded so equals the float32 operation."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
