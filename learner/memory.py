"""What one learner rank keeps in memory per ZeRO stage, as an estimate in bytes.

With W the frozen weights of the trained component, P the numbers of one adapter role, N ranks, everything float32:

    stage  weights  adapters (policy, old)  gradients  moments  master copy  buffers
    0      W        8 P                     4 P        8 P      -            one bucket
    1      W        8 P                     4 P + 4 P/N  8 P/N  4 P/N        one bucket
    2      W        8 P                     4 P/N      8 P/N    4 P/N        one bucket
    3      W/N      8 P/N                   4 P/N      8 P/N    4 P/N        one bucket, gathered weights

A reference with tensors of its own (`guards.reference_reset`) is a third adapter: 12 P, 12 P/N.
(Rajbhandari et al., ZeRO, arXiv 1910.02054, for an optimizer in float32 whose weights are float32 already.)
"""

from __future__ import annotations

from typing import Literal

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
BUCKET = 50_000_000
"""Most numbers reduced at once. DeepSpeed's own default reserves a buffer of 2 GB whatever the adapter's size."""
GATHERED = 1_000_000_000
"""Most numbers that ZeRO-3 holds gathered at a time: DeepSpeed's `stage3_max_live_parameters`."""


def rank_bytes(stage: Stage, ranks: int, *, weights: int, frozen: int, adapter: int, roles: int = 2) -> dict[str, int]:
    """Bytes of one of `ranks` ranks by what they are for, without activations.

    Args:
        stage: ZeRO stage; the plain torch engine is stage 0 with one rank.
        ranks: learner ranks.
        weights: bytes of the frozen weights of the trained component.
        frozen: how many numbers those are.
        adapter: numbers in one adapter role.
        roles: how many roles have tensors.
    """
    share = -(-adapter // ranks)
    gathered = min(frozen, GATHERED) * weights // max(frozen, 1) if stage == 3 and ranks > 1 else 0
    bucket = 4 * min(adapter, BUCKET) if ranks > 1 or stage > 0 else 0
    return {
        "weights": weights if stage < 3 else -(-weights // ranks),
        "adapters": 4 * roles * (adapter if stage < 3 else share),
        "gradients": {0: 4 * adapter, 1: 4 * adapter + 4 * share}.get(stage, 4 * share),
        "optimizer": 8 * adapter if stage == 0 else 12 * share,
        "buffers": bucket + gathered,
    }
