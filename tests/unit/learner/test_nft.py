"""The NFT loss against loops over plain floats, and against what the equations promise on-policy."""

import math

import pytest
import torch

from accord.config.algorithm_parts import OldPolicySpec
from accord.config.forward import DiffusionNFTSpec, LossSpec, OmniNFTSpec
from learner.algorithms.base import ForwardBatch, Noised
from learner.algorithms.forward import mean_square, scale_of
from learner.algorithms.nft import NFT, nft_loss

B, T, C = 3, 4, 2


def setting(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise, policy, old, ref = (torch.randn(B, T, C, generator=generator, dtype=torch.float64) for _ in range(5))
    sigma = torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64)
    advantage = torch.tensor([1.3, -7.0, 0.0], dtype=torch.float64)
    weights = 1 + torch.rand(B, T, generator=generator, dtype=torch.float64)
    return Noised(x0, noise, sigma), policy, old, ref, advantage, weights


def reference(spec: LossSpec, noised: Noised, policy, old, ref, advantage, weights):
    """The equations as printed, number by number; x0 predictions are formed from x_sigma."""
    losses, references = [], []
    for b in range(B):
        s, a = float(noised.sigma_B[b]), float(advantage[b])
        r = 0.5 + 0.5 * max(-1.0, min(1.0, a / spec.advantage_clip))

        def point(v, t, c, b=b, s=s):
            """(prediction, what it should be) in the loss space."""
            x0, eps = float(noised.x0_BTC[b, t, c]), float(noised.noise_BTC[b, t, c])
            x = (1 - s) * x0 + s * eps
            return (x - s * v, x0) if spec.space == "x0" else (v, eps - x0)

        plus = [[[0.0, 0.0] for _ in range(C)] for _ in range(T)]
        for t in range(T):
            for c in range(C):
                vt, vo = float(policy[b, t, c]), float(old[b, t, c])
                for k, v in enumerate(((1 - spec.beta) * vo + spec.beta * vt, (1 + spec.beta) * vo - spec.beta * vt)):
                    got, want = point(v, t, c)
                    plus[t][c][k] = got - want
        size = [1.0, 1.0]
        if spec.normaliser != "none":
            size = [max(sum(abs(plus[t][c][k]) for t in range(T) for c in range(C)) / (T * C), 1e-5) for k in (0, 1)]
        numerator = denominator = 0.0
        for t in range(T):
            squares = [sum(plus[t][c][k] ** 2 for c in range(C)) / C for k in (0, 1)]
            q = 1.0 if weights is None else float(weights[b, t])
            numerator += q * (r * squares[0] / size[0] + (1 - r) * squares[1] / size[1])
            denominator += q
        losses.append(numerator / denominator * (spec.advantage_clip / spec.beta if spec.rescale else 1.0))
        scale = s if spec.reference_space == "x0" else 1.0
        references.append(
            sum((scale * float(policy[b, t, c] - ref[b, t, c])) ** 2 for t in range(T) for c in range(C)) / (T * C)
        )
    return losses, references


@pytest.mark.parametrize("space", ["x0", "velocity"])
@pytest.mark.parametrize("normaliser", ["detached", "attached", "none"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_loops(space, normaliser, beta, rescale, weighted):
    for reference_space, clip in (("x0", 5.0), ("velocity", 1.0)):
        spec = LossSpec(
            space=space, normaliser=normaliser, beta=beta, rescale=rescale, advantage_clip=clip,
            reference_space=reference_space,
        )  # fmt: skip
        noised, policy, old, ref, advantage, weights = setting()
        weights = weights if weighted else None
        losses, references = reference(spec, noised, policy, old, ref, advantage, weights)
        loss = nft_loss(spec, noised, policy, old, advantage, weights)
        torch.testing.assert_close(loss, torch.tensor(losses, dtype=torch.float64), rtol=1e-6, atol=0)
        away = mean_square(policy, ref, scale_of(noised, reference_space))
        torch.testing.assert_close(away, torch.tensor(references, dtype=torch.float64), rtol=1e-6, atol=0)


def gradient_loops(spec: LossSpec, noised: Noised, policy, old, advantage, weights):
    """The derivative of the summed loss by every element of the policy's velocity, normalisers held fixed."""
    rows = torch.zeros(B, T, C, dtype=torch.float64)
    for b in range(B):
        s = float(noised.sigma_B[b]) if spec.space == "x0" else 1.0
        r = 0.5 + 0.5 * max(-1.0, min(1.0, float(advantage[b]) / spec.advantage_clip))
        share = [1 / T] * T if weights is None else [float(weights[b, t]) / float(weights[b].sum()) for t in range(T)]
        for mixed, part in ((spec.beta, r), (-spec.beta, 1 - r)):  # v+ moves with beta, v- against it
            gap = [
                [
                    s * (
                        (1 - mixed) * float(old[b, t, c]) + mixed * float(policy[b, t, c])
                        - float(noised.noise_BTC[b, t, c]) + float(noised.x0_BTC[b, t, c])
                    )
                    for c in range(C)
                ]
                for t in range(T)
            ]  # fmt: skip
            size = 1.0
            if spec.normaliser != "none":
                size = max(sum(abs(gap[t][c]) for t in range(T) for c in range(C)) / (T * C), 1e-5)
            for t in range(T):
                for c in range(C):
                    rows[b, t, c] += part * share[t] * 2 * gap[t][c] / C * s * mixed / size
    return rows * (spec.advantage_clip / spec.beta if spec.rescale else 1.0)


@pytest.mark.parametrize("space", ["x0", "velocity"])
@pytest.mark.parametrize("normaliser", ["detached", "none"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_equals_loops_off_policy(space, normaliser, beta, weighted):
    spec = LossSpec(space=space, normaliser=normaliser, beta=beta)
    noised, policy, old, _, advantage, weights = setting()
    weights = weights if weighted else None
    leaf = policy.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nft_loss(spec, noised, leaf, old, advantage, weights).sum(), leaf)
    expected = gradient_loops(spec, noised, policy, old, advantage, weights)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-14)
    assert grad.abs().min() > 1e-6


def gradient(spec: LossSpec, policy, *, on_policy: bool = False, advantage=None):
    noised, drawn, old, _, given, _ = setting()
    policy = (old.clone() if on_policy else drawn).requires_grad_()
    loss = nft_loss(spec, noised, policy, old, given if advantage is None else advantage)
    (grad,) = torch.autograd.grad(loss.sum(), policy)
    return grad, policy.detach(), noised


@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("space", ["x0", "velocity"])
def test_on_policy_gradient_is_advantage_times_matching_gradient(space, beta):
    spec = LossSpec(space=space, normaliser="none", beta=beta, advantage_clip=5.0, rescale=True)
    advantage = torch.tensor([1.3, -4.0, 0.0], dtype=torch.float64)
    grad, policy, noised = gradient(spec, None, on_policy=True, advantage=advantage)
    probe = policy.clone().requires_grad_()
    scale = noised.sigma_B.view(-1, 1, 1) if space == "x0" else 1.0
    matching = (scale * (probe - noised.target_BTC)).square().mean((1, 2))
    (expected,) = torch.autograd.grad((advantage * matching).sum(), probe)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-14)


def test_normaliser_carries_gradient_only_when_attached():
    finite = {}
    for normaliser in ("detached", "attached"):
        spec = LossSpec(normaliser=normaliser)
        grad, policy, _ = gradient(spec, None)
        noised, _, old, _, advantage, _ = setting()
        step = torch.zeros_like(policy)
        step[0, 1, 1] = 1e-6
        up, down = (nft_loss(spec, noised, policy + d, old, advantage).sum() for d in (step, -step))
        finite[normaliser] = (float(grad[0, 1, 1]), float((up - down) / 2e-6))
    assert finite["attached"][0] == pytest.approx(finite["attached"][1], rel=1e-6)
    assert not math.isclose(finite["detached"][0], finite["detached"][1], rel_tol=1e-2)


def test_zero_credit_pulls_to_the_old_policy_and_nowhere_else():
    zero = torch.zeros(B, dtype=torch.float64)
    for normaliser in ("detached", "none"):
        grad, _, _ = gradient(LossSpec(normaliser=normaliser), None, on_policy=True, advantage=zero)
        assert grad.abs().max() < 1e-12
    spec = LossSpec(normaliser="none", space="velocity", beta=0.5, rescale=False)
    noised, policy, old, _, _, _ = setting()
    loss = nft_loss(spec, noised, policy, old, zero)
    expected = (old - noised.target_BTC).square().mean((1, 2)) + 0.25 * (policy - old).square().mean((1, 2))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("normaliser", ["detached", "attached"])
def test_an_exact_prediction_has_no_loss_and_a_finite_gradient(normaliser):
    noised, _, _, _, advantage, _ = setting()
    exact = noised.target_BTC.clone().requires_grad_()
    loss = nft_loss(LossSpec(normaliser=normaliser), noised, exact, noised.target_BTC, advantage)
    (grad,) = torch.autograd.grad(loss.sum(), exact)
    assert torch.equal(loss, torch.zeros_like(loss)) and grad.isfinite().all()


def test_half_precision_predictions_are_not_rounded_again():
    noised, policy, old, _, advantage, _ = setting()
    noised = Noised(noised.x0_BTC.float(), noised.noise_BTC.float(), noised.sigma_B.float())
    half = [tensor.bfloat16() for tensor in (policy, old)]
    loose = nft_loss(LossSpec(), noised, *half, advantage.float())
    exact = nft_loss(LossSpec(), noised, *(tensor.float() for tensor in half), advantage.float())
    assert loose.dtype == torch.float32
    assert torch.equal(loose, exact)


def batch_of(modalities=("video", "audio")):
    noised, policy, old, ref, advantage, weights = setting()
    noised_all = dict.fromkeys(modalities, noised)
    predictions = {
        role: dict.fromkeys(modalities, value) for role, value in (("policy", policy), ("old", old), ("ref", ref))
    }
    return ForwardBatch(noised_all, dict.fromkeys(modalities, advantage), {"video": weights}), predictions


def test_modalities_combine_and_reference_penalty_is_weighted():
    batch, predictions = batch_of()
    for reduction, factor in (("sum", 2.0), ("mean", 1.0)):
        algorithm = NFT(OmniNFTSpec(loss=LossSpec(reduction=reduction, reference_penalty=0.1)))
        terms = algorithm.loss(batch, predictions)
        parts = [
            terms.metrics_B[f"loss/{m}"] + 0.1 * terms.metrics_B[f"loss/reference/{m}"] for m in ("video", "audio")
        ]
        torch.testing.assert_close(terms.loss_B, (parts[0] + parts[1]) / 2 * factor)
        assert not torch.allclose(*(terms.metrics_B[f"loss/{m}"] for m in ("video", "audio")))  # only video is weighted
        assert all(not value.requires_grad and value.shape == (B,) for value in terms.metrics_B.values())


def test_reference_is_not_read_when_it_has_no_weight():
    algorithm = NFT(DiffusionNFTSpec(loss=LossSpec(reference_penalty=0.0)))
    assert algorithm.anchors == ("old",)
    batch, predictions = batch_of()
    terms = algorithm.loss(batch, {role: value for role, value in predictions.items() if role != "ref"})
    assert "loss/reference/video" not in terms.metrics_B


def test_techniques_switch_off_by_themselves():
    assert NFT(DiffusionNFTSpec()).surgery is None
    assert NFT(DiffusionNFTSpec()).region is None
    spec = OmniNFTSpec.model_validate({"surgery": {"enabled": False}})
    assert NFT(spec).surgery is None
    assert NFT(spec).region is spec.region


def test_old_policy_schedule():
    algorithm = NFT(DiffusionNFTSpec(old_policy=OldPolicySpec(start=0.1, rate=0.01, maximum=0.5)))
    assert [algorithm.eta(step) for step in (1, 10, 40, 400)] == pytest.approx([0.11, 0.2, 0.5, 0.5])
