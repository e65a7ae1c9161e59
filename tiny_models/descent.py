"""Gradient descent for so many minutes: the loop under every stage that trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

Say = Callable[[str], None]
"""Receives a line about how it goes."""
EVERY_S = 60.0


def descend(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    minutes: float,
    rate: float,
    *,
    warm_up: int,
    least: float,
    weight_decay: float = 0.0,
) -> Iterator[tuple[float, Tensor | None]]:
    """Minimise the sum of `loss()`: AdamW, gradients clipped to norm 1, cosine decay of the rate on the clock.

    Yields after each step the minutes that are left, and once a minute the mean of what `loss` returned since, else
    None.

    Args:
        parameters: what is trained.
        loss: draws a batch and returns its loss, whole or in parts [K].
        minutes: wall clock.
        rate: learning rate after the first `warm_up` steps.
        warm_up: steps over which the rate rises.
        least: share of the rate that is left at the end.
        weight_decay: of AdamW.
    """
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    started = spoken = time.monotonic()
    budget, steps, seen = 60.0 * minutes, 0, list[Tensor]()
    while (passed := time.monotonic() - started) < budget:
        decay = least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * passed / budget))
        for group in optimiser.param_groups:
            group["lr"] = rate * decay * min(1.0, (steps + 1) / warm_up)
        optimiser.zero_grad(set_to_none=True)
        parts = loss()
        parts.sum().backward()  # type: ignore[no-untyped-call]
        seen.append(parts.detach())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        steps += 1
        now, mean = time.monotonic(), None
        if now - spoken > EVERY_S:
            spoken, mean, seen = now, torch.stack(seen).mean(0), []
        yield (budget - (now - started)) / 60.0, mean
