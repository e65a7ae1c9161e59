"""Gradient surgery by measured gradients on every edge; region weights against a brute-force full softmax."""

import math
from contextlib import ExitStack
from inspect import getclosurevars

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import apply_split_rotary_emb
from torch import nn

from accord.backbones.adapters import adapter_parameters
from accord.backbones.region import RegionCapture, capture_region, region_weights
from accord.backbones.surgery import audio_to_video, gradient_surgery, scale_gradient, watch_audio_from_video
from accord.config.algorithm_parts import BlockScale, RegionSpec, SurgerySpec
from accord.config.forward import OmniNFTSpec
from accord.errors import SpecError
from accord.types import Guidance, RolloutPlan
from rollout_workers.sampler import denoise

SCHEDULE = (BlockScale(start=0, stop=1, keep=0.0, unit="block"), BlockScale(start=1, stop=2, keep=0.25, unit="block"))
OFF = SurgerySpec(enabled=False, schedule=SCHEDULE)


def inputs(backbone):
    generator = torch.Generator().manual_seed(1)
    latents = {m: torch.randn(2, *s, generator=generator) for m, s in backbone.latent_shapes().items()}
    return latents, {m: torch.tensor([0.3, 0.9]) for m in latents}, backbone.encode(["a red ball", "a bell"])


class Edges:
    """Records, per block, the gradient that leaves the audio-to-video attention towards the audio stream."""

    def __init__(self, backbone) -> None:
        self.context, self.kv, self.handles = {}, {}, []
        for index, block in enumerate(backbone.velocity_model.transformer.transformer_blocks):
            attention = block.audio_to_video_attn
            self.handles.append(attention.register_forward_pre_hook(self.watch(index), with_kwargs=True, prepend=True))
            for name in ("to_k", "to_v"):
                self.handles.append(
                    getattr(attention, name).register_forward_hook(self.output(index, name), prepend=True)
                )

    def watch(self, index):
        def hook(_module, args, kwargs):
            tapped = kwargs["encoder_hidden_states"].view_as(kwargs["encoder_hidden_states"])
            tapped.register_hook(lambda gradient: self.context.__setitem__(index, gradient.clone()))
            return args, {**kwargs, "encoder_hidden_states": tapped}

        return hook

    def output(self, index, name):
        def hook(_module, _args, output):
            tapped = output.view_as(output)
            tapped.register_hook(lambda gradient: self.kv.__setitem__((index, name), gradient.clone()))
            return tapped

        return hook


def video_loss(backbone, spec, wrap=lambda module: module):
    """Gradients of the video loss alone, and its value, with surgery as the spec says."""
    for parameter in backbone.velocity_model.parameters():
        parameter.grad = None
    edges = Edges(backbone)
    with gradient_surgery(audio_to_video(wrap(backbone.velocity_model)), spec):
        output = backbone.velocity(*inputs(backbone))
        output["video"].square().mean().backward()
    for handle in edges.handles:
        handle.remove()
    return edges, output


@pytest.fixture
def tuned(model_dir, load, perturb):
    backbone = load(model_dir)
    perturb(backbone.velocity_model, "policy", 3)
    return backbone


def last_edge_only(backbone):
    """Cut the audio stream between blocks, so that each edge's gradient comes from its own block alone."""
    for block in backbone.velocity_model.transformer.transformer_blocks:
        block.register_forward_hook(lambda _module, _args, output: (output[0], output[1].detach()))


def test_surgery_scales_each_edge_by_its_factor_and_no_forward_value(tuned):
    last_edge_only(tuned)
    off, plain = video_loss(tuned, OFF)
    on, output = video_loss(tuned, SurgerySpec(schedule=SCHEDULE))
    assert all(torch.equal(plain[modality], output[modality]) for modality in plain)
    assert 0 not in on.context  # nothing flows at all
    torch.testing.assert_close(on.context[1], 0.25 * off.context[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(on.context[2], off.context[2], rtol=0, atol=0)
    assert off.context[1].abs().max() > 0
    for key, gradient in off.kv.items():  # the projections' own weights keep the full gradient
        torch.testing.assert_close(on.kv[key], gradient, rtol=1e-6, atol=0)


def test_surgery_on_keys_and_values_scales_behind_the_projections(tuned):
    last_edge_only(tuned)
    off, plain = video_loss(tuned, OFF)
    on, output = video_loss(tuned, SurgerySpec(schedule=SCHEDULE, tensor="kv"))
    assert all(torch.equal(plain[modality], output[modality]) for modality in plain)
    for name in ("to_k", "to_v"):
        assert (0, name) not in on.kv
        torch.testing.assert_close(on.kv[1, name], 0.25 * off.kv[1, name], rtol=1e-6, atol=0)
        torch.testing.assert_close(on.kv[2, name], off.kv[2, name], rtol=0, atol=0)


@pytest.mark.parametrize("tensor", ["context", "kv"])
@pytest.mark.parametrize("watch_first", [True, False])
def test_what_arrives_in_the_sound_follows_the_schedule(tuned, tensor, watch_first):
    last_edge_only(tuned)
    off, plain = video_loss(tuned, OFF)
    arrived: dict[int, torch.Tensor] = {}
    watch = watch_audio_from_video(audio_to_video(tuned.velocity_model), arrived.__setitem__)
    surgery = gradient_surgery(audio_to_video(tuned.velocity_model), SurgerySpec(schedule=SCHEDULE, tensor=tensor))
    with ExitStack() as stack:
        for part in (watch, surgery) if watch_first else (surgery, watch):
            stack.enter_context(part)
        with torch.no_grad():
            tuned.velocity(*inputs(tuned))  # an anchor's forward leads to no gradient
        output = tuned.velocity(*inputs(tuned))
        output["video"].square().mean().backward()
    assert all(torch.equal(plain[modality], output[modality]) for modality in plain)
    assert arrived.keys() == {1, 2}  # block 0 lets nothing through
    torch.testing.assert_close(arrived[1], 0.25 * off.context[1], rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(arrived[2], off.context[2], rtol=1e-5, atol=1e-10)
    video_loss(tuned, OFF)
    torch.testing.assert_close(arrived[2], off.context[2], rtol=1e-5, atol=1e-10)  # and nothing stays attached


def test_queries_and_the_other_direction_keep_their_gradient(tuned):
    def gradients(spec):
        for parameter in tuned.velocity_model.parameters():
            parameter.grad = None
        with gradient_surgery(audio_to_video(tuned.velocity_model), spec):
            output = tuned.velocity(*inputs(tuned))
            output["audio"].square().mean().backward()
        return {key: p.grad for key, p in adapter_parameters(tuned.velocity_model, "policy").items()}

    off, on = gradients(OFF), gradients(SurgerySpec(schedule=SCHEDULE))
    touched = [key for key in off if "video_to_audio_attn.to_k" in key and off[key] is not None]
    assert touched
    last = [key for key in touched if key.startswith("transformer_blocks.2.")]
    assert all(torch.equal(off[key], on[key]) for key in last)


def test_surgery_finds_its_blocks_inside_any_wrapper(tuned):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

    last_edge_only(tuned)
    plain, _ = video_loss(tuned, SurgerySpec(schedule=SCHEDULE))
    wrapped, _ = video_loss(tuned, SurgerySpec(schedule=SCHEDULE), wrap=lambda module: Wrapper(Wrapper(module)))
    assert plain.context.keys() == wrapped.context.keys()
    assert all(torch.equal(plain.context[key], wrapped.context[key]) for key in plain.context)


def test_surgery_leaves_nothing_behind(tuned):
    last_edge_only(tuned)
    before, _ = video_loss(tuned, OFF)
    with gradient_surgery(audio_to_video(tuned.velocity_model), SurgerySpec(schedule=SCHEDULE)):
        pass
    after, _ = video_loss(tuned, OFF)
    assert all(torch.equal(before.context[key], after.context[key]) for key in before.context)


def test_surgery_holds_under_gradient_checkpointing(model_dir, load, perturb):
    results = []
    for checkpointing in (False, True):
        backbone = load(model_dir, gradient_checkpointing=checkpointing)
        perturb(backbone.velocity_model, "policy", 3)
        with gradient_surgery(audio_to_video(backbone.velocity_model), SurgerySpec(schedule=SCHEDULE)):
            backbone.velocity(*inputs(backbone))["video"].square().mean().backward()
        results.append({key: p.grad for key, p in adapter_parameters(backbone.velocity_model, "policy").items()})
    plain, checkpointed = results
    assert all(torch.equal(plain[k], checkpointed[k]) for k in plain if plain[k] is not None)


class ToyBlock(nn.Module):
    """One audio-to-video cross-attention in float64, a single head and no rotation."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_k, self.to_v = (nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(3))

        def forward(self, picture, encoder_hidden_states):
            key, value = self.to_k(encoder_hidden_states), self.to_v(encoder_hidden_states)
            return torch.softmax(self.to_q(picture) @ key.T, dim=-1) @ value

    def __init__(self):
        super().__init__()
        self.audio_to_video_attn = self.Attention()


def attention_loops(attention, picture, sound) -> float:
    """The sum of squares of the attention's output, number by number."""
    q, k, v = ([row.tolist() for row in layer.weight] for layer in (attention.to_q, attention.to_k, attention.to_v))

    def project(weight, x):
        return [sum(w * value for w, value in zip(row, x, strict=True)) for row in weight]

    total = 0.0
    for token in picture:
        query, keys = project(q, token), [project(k, heard) for heard in sound]
        powers = [math.exp(sum(a * b for a, b in zip(query, key, strict=True))) for key in keys]
        shares = [power / sum(powers) for power in powers]
        values = [project(v, heard) for heard in sound]
        total += sum(sum(share * value[c] for share, value in zip(shares, values, strict=True)) ** 2 for c in range(2))
    return total


@pytest.mark.parametrize("tensor", ["context", "kv"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_what_surgery_leaves_equals_loops_in_float64(tensor, keep):
    generator = torch.Generator().manual_seed(2)
    blocks = nn.ModuleList([ToyBlock()])
    for parameter in blocks.parameters():
        parameter.data = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    picture, sound = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (3, 4))
    sound.requires_grad_()
    spec = SurgerySpec(tensor=tensor, schedule=(BlockScale(start=0.0, stop=1.0, keep=keep),))
    with gradient_surgery([block.audio_to_video_attn for block in blocks], spec):
        loss = blocks[0].audio_to_video_attn(picture, encoder_hidden_states=sound).square().sum()
        (grad,) = torch.autograd.grad(loss, sound, allow_unused=True)
    attention, rows = blocks[0].audio_to_video_attn, sound.tolist()
    assert loss.item() == pytest.approx(attention_loops(attention, picture.tolist(), rows), rel=1e-12)
    for i in range(4):
        for c in range(2):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [list(row) for row in rows]
                moved[i][c] += step
                ends.append(attention_loops(attention, picture.tolist(), moved))
            expected = keep * (ends[0] - ends[1]) / 2e-5
            assert (0.0 if grad is None else float(grad[i, c])) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_scaled_gradient_of_identity_is_exact():
    x = torch.tensor([-0.0, 1.5, float("inf")], requires_grad=True)
    y = scale_gradient(x, 0.1)
    assert torch.equal(torch.signbit(y), torch.signbit(x)) and torch.equal(y, x)
    y.backward(torch.ones(3))
    torch.testing.assert_close(x.grad, torch.full((3,), 0.1))


def test_block_numbers_are_checked_where_surgery_is_done():
    deep = SurgerySpec(schedule=(BlockScale(start=40, stop=48, keep=0.3, unit="block"),))
    with (
        pytest.raises(SpecError, match="/algorithm/surgery/schedule/0/stop: 48 is beyond"),
        gradient_surgery([nn.Linear(2, 2)] * 4, deep),
    ):
        pass


def test_a_model_without_the_edge_is_refused():
    assert audio_to_video(nn.Linear(2, 2)) == []
    with pytest.raises(SpecError, match="/algorithm/surgery"), gradient_surgery([], SurgerySpec()):
        pass
    with pytest.raises(SpecError, match="/algorithm/region"):
        capture_region(nn.Linear(2, 2), RegionSpec().capture(1), 4)


# ---- region -------------------------------------------------------------------------------------------------------


class BruteForce:
    """Full softmax maps from the attention's own inputs and weights, kept whole; reduced at the end."""

    def __init__(self, backbone, blocks) -> None:
        self.rows = []
        for index in blocks:
            attention = backbone.velocity_model.transformer.transformer_blocks[index].video_to_audio_attn
            attention.register_forward_hook(self.hook, with_kwargs=True)

    def hook(self, attention, args, kwargs, _output):
        sound, picture = args[0].double(), kwargs["encoder_hidden_states"].double()

        def project(layer, x):
            return layer(x.float()).double()

        query = attention.norm_q(project(attention.to_q, sound).float())
        key = attention.norm_k(project(attention.to_k, picture).float())
        query = apply_split_rotary_emb(query, kwargs["query_rotary_emb"])
        key = apply_split_rotary_emb(key, kwargs["key_rotary_emb"])
        split = [x.double().unflatten(2, (attention.heads, -1)).transpose(1, 2) for x in (query, key)]
        full = torch.softmax(split[0] @ split[1].transpose(2, 3) / split[0].shape[-1] ** 0.5, dim=-1)  # [B, H, A, V]
        if attention.to_gate_logits is not None:
            full = full * (2 * torch.sigmoid(attention.to_gate_logits(args[0]).double())).transpose(1, 2)[..., None]
        self.rows.append(full.mean(1).sum(1))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_region_scores_equal_brute_force_on_the_chosen_blocks_and_steps(model_dir, load, perturb, guidance):
    spec = RegionSpec(first_block=0.34, last_block=1.0, first_step=0.5, last_step=0.75)
    steps, seeds, blocks = 8, (5, 6, 7), (1, 2)
    backbone = load(model_dir)
    perturb(backbone.velocity_model, "policy", 3)
    prompt, empty = backbone.encode(["a red ball"]), backbone.encode([""])
    region = capture_region(backbone.velocity_model, spec.capture(1), steps)
    assert region.blocks == list(blocks) and sorted(region.steps) == [4, 5, 6]
    plan = RolloutPlan("policy", steps, Guidance({"video": guidance, "audio": guidance}))
    with_capture = denoise(backbone, prompt, empty, seeds, plan, region=region).latents
    brute = BruteForce(backbone, blocks)
    without = denoise(backbone, prompt, empty, seeds, plan).latents
    assert all(torch.equal(with_capture[modality], without[modality]) for modality in without)

    passes = 2 if guidance > 1 else 1
    per_step = passes * len(blocks)
    assert len(brute.rows) == steps * per_step
    conditional = [brute.rows[step * per_step + block] for step in sorted(region.steps) for block in range(len(blocks))]
    expected = torch.stack(conditional).mean(0)
    assert region.scores().shape == (3, backbone.latent_shapes()["video"][0])
    assert (region.scores().double() - expected).abs().max() <= 1e-6 * expected.max()
    assert expected.std() > 1e-3


def test_capture_attaches_nothing_outside_its_steps(ltx2_dir, load):
    backbone = load(ltx2_dir)
    attention = backbone.velocity_model.transformer.transformer_blocks[2].video_to_audio_attn
    region = capture_region(backbone.velocity_model, RegionSpec().capture(1), 8)
    with region.during(0):
        assert not attention._forward_hooks
    with region.during(7):
        assert attention._forward_hooks
        with torch.no_grad():
            backbone.velocity(*inputs(backbone))
        kept = [getclosurevars(hook).nonlocals["seen"] for hook in attention._forward_hooks.values()]
        assert kept == [{}]  # no map is kept
    assert not attention._forward_hooks and not attention.norm_k._forward_hooks


class DepthOf48(nn.Module):
    depth = 48


def test_published_steps():
    region = RegionCapture(DepthOf48(), RegionSpec(first_block=0.0, first_step=0.5, last_step=0.9).capture(1), 20)
    assert sorted(region.steps) == list(range(10, 19)) and region.blocks == list(range(48))


@pytest.mark.parametrize("formula", ["minmax", "frame_sigmoid"])
@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_weights_equal_loops(formula, strength):
    frames, per_frame = 3, 4
    scores = torch.rand(2, frames * per_frame, generator=torch.Generator().manual_seed(4)) * 5
    weights = region_weights(scores, formula, strength, frames)
    for row, got in zip(scores.tolist(), weights.tolist(), strict=True):
        for i, score in enumerate(row):
            if formula == "minmax":
                expected = 1 + strength * (score - min(row)) / (max(row) - min(row))
            else:
                frame = row[i // per_frame * per_frame : (i // per_frame + 1) * per_frame]
                mean = sum(frame) / per_frame
                spread = math.sqrt(sum((x - mean) ** 2 for x in frame) / (per_frame - 1))
                expected = 1 + strength / (1 + math.exp(-strength * (score - mean) / spread))
            assert got[i] == pytest.approx(expected, rel=1e-6)


def test_minmax_weights():
    scores = torch.tensor([[1.0, 3.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    weights = region_weights(scores, "minmax", 1.5, frames=2)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 2.5, 1.75, 1.0], [1.0] * 4]))


def test_frame_sigmoid_weights():
    scores = torch.tensor([[1.0, 3.0, 7.0, 7.0]])
    weights = region_weights(scores, "frame_sigmoid", 0.5, frames=2)
    z = torch.tensor([-1.0, 1.0]) / 2**0.5  # unbiased deviation of (1, 3) is sqrt(2)
    expected = torch.cat([1 + 0.5 * torch.sigmoid(0.5 * z), torch.full((2,), 1.25)])
    torch.testing.assert_close(weights[0], expected)
    one_token = region_weights(torch.tensor([[1.0, 2.0]]), "frame_sigmoid", 0.5, frames=2)
    assert torch.isfinite(one_token).all()


def test_published_weights_grow_flatter_than_they_grow_small():
    """w = 1 + (W - 1) sigmoid((W - 1) z), W growing from 1 to 1.5 over 400 steps; one frame of scores (0, 2, 4)."""
    region = OmniNFTSpec(preset="published").region

    def weights(step: int) -> torch.Tensor:
        capture = RegionCapture(DepthOf48(), region.capture(step), 20)
        capture._add(torch.tensor([[0.0, 2.0, 4.0]]))  # z = (-1, 0, 1): the unbiased deviation is 2
        return capture.weights(1)[0]

    by_hand = {
        1: [1.0, 1.0, 1.0],
        2: [1.00062461, 1.000625, 1.00062539],  # W - 1 = 0.00125: 0.00125 / (1 + e^0.00125) and so on
        41: [1.02437513, 1.025, 1.02562487],  # 0.05
        201: [1.10945591, 1.125, 1.14054409],  # 0.25
        401: [1.18877033, 1.25, 1.31122967],  # 0.5
        900: [1.18877033, 1.25, 1.31122967],
    }
    for step, expected in by_hand.items():
        assert weights(step).tolist() == pytest.approx(expected, abs=2e-7), step
    contrast = [float(weights(step).max() - weights(step).min()) for step in (41, 401)]
    assert contrast[0] == pytest.approx(
        contrast[1] / 98, rel=0.01
    )  # a tenth of the strength, a hundredth of the contrast
