"""OmniNFT and DiffusionNFT: negative-aware fine-tuning on clean samples, per modality (OmniNFT eq. 3-7, 10-12)."""

from __future__ import annotations

from torch import Tensor

from accord.config.forward import DiffusionNFTSpec, LossSpec, OmniNFTSpec
from learner.algorithms.base import Noised
from learner.algorithms.forward import ForwardRecipe, Part, distance, normaliser, token_mean, widened


def nft_loss(
    spec: LossSpec,
    noised: Noised,
    policy_BTC: Tensor,
    old_BTC: Tensor,
    advantage_B: Tensor,
    weights_BT: Tensor | None = None,
) -> Tensor:
    """One modality's loss per sample [B].

    With v* = eps - x0 and s = sigma (space x0) or 1 (space velocity), a velocity v lies d(v) = s (v - v*) from the
    sample; in x0 space that is x0 - x0hat(v), because x0hat(v) = x_sigma - sigma v.

        r    = 1/2 + 1/2 clip(A / advantage_clip, -1, 1)                                   (eq. 6)
        v+   = (1 - beta) v_old + beta v_theta                                             (eq. 4)
        v-   = (1 + beta) v_old - beta v_theta                                             (eq. 5)
        l_i  = r mean_C d(v+)_i^2 / n+  +  (1 - r) mean_C d(v-)_i^2 / n-      per token i  (eq. 3)
        n+-  = max(mean_TC |d(v+-)|, 1e-5), without gradient (detached), with it (attached), or 1 (none)
        loss = sum_i q_i l_i / sum_i q_i * (advantage_clip / beta if rescale)              (eq. 11, q = token weights)

    A sample with A = 0 has r = 1/2. Its gradient vanishes at v_theta = v_old and is a pull towards v_old elsewhere
    (without normaliser l = |d(v_old)|^2 + beta^2 |v_theta - v_old|^2 s^2), so it stays in the batch as a trust region.
    """
    policy, old = widened(policy_BTC), widened(old_BTC)
    r = 0.5 + 0.5 * (advantage_B.to(policy.dtype) / spec.advantage_clip).clamp(-1, 1)

    def matched(velocity: Tensor) -> Tensor:
        residual = distance(noised, velocity, spec.space)
        square_BT = residual.square().mean(2)
        if spec.normaliser == "none":
            return square_BT
        size_B = normaliser(residual)
        return square_BT / (size_B if spec.normaliser == "attached" else size_B.detach()).view(-1, 1)

    beta = spec.beta
    positive_BT = matched((1 - beta) * old + beta * policy)
    negative_BT = matched((1 + beta) * old - beta * policy)
    loss_B = token_mean(r.view(-1, 1) * positive_BT + (1 - r).view(-1, 1) * negative_BT, weights_BT)
    return loss_B * (spec.advantage_clip / beta) if spec.rescale else loss_B


class NFT(ForwardRecipe):
    """The algorithm of `OmniNFTSpec` and `DiffusionNFTSpec`: what the spec leaves out is off."""

    spec: DiffusionNFTSpec | OmniNFTSpec

    def modality_loss(self, part: Part) -> dict[str, Tensor]:
        """`nft_loss`."""
        policy, old = part.velocity["policy"], part.velocity["old"]
        return {"loss": nft_loss(self.spec.loss, part.noised, policy, old, part.advantage_B, part.weights_BT)}
