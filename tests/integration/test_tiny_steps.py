"""Whole optimizer steps on the tiny model in one process: every forward recipe trains, and where the gradient is."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from accord.backbones.adapters import adapter_parameters, adapter_state, blend_, load_adapter_state, role
from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.backbones.ltx2.streams import branch_of
from accord.backbones.surgery import audio_to_video, gradient_surgery
from accord.config.job import JobSpec
from accord.config.sampling import SamplingSpec
from accord.errors import NonFiniteError
from accord.plugins import load_impl
from accord.requests import step_requests
from learner.collectives import Ranks
from learner.rank import Rank
from learner.torch_engine import TorchEngine
from learner.views.base import Share
from learner.views.forward import ForwardView
from tests.integration.learner_job import PROMPTS, ReplaySource

BRANCHES = {
    "video": ("attn1", "attn2", "ff", "audio_to_video_attn"),
    "audio": ("audio_attn1", "audio_attn2", "audio_ff", "video_to_audio_attn"),
}
SCHEDULE = [
    {"start": 0, "stop": 1, "keep": 0.0, "unit": "block"},
    {"start": 1, "stop": 2, "keep": 0.25, "unit": "block"},
]
SURGERY = {"enabled": True, "schedule": SCHEDULE}


def job_of(algorithm: dict, micro_batch: int = 6, **optimizer) -> JobSpec:
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "seed": 3,
                "steps": 2,
                "backbone": {"name": "ltx2", "lora": {"rank": 4, "alpha": 8.0}},
                "sampling": {"frames": 9, "num_steps": 4},
                "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 3},
                "rewards": [{"name": "text_video"}, {"name": "sound"}],
                "algorithm": {"sigmas": {"per_sample": 1}, **algorithm},
                "optimizer": {"learning_rate": 1e-3, "micro_batch": micro_batch, **optimizer},
                "cluster": {"engine": "torch", "learner_ranks": 1},
            }
        )
    )


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    sampling = SamplingSpec(frames=9, num_steps=4)
    backbone = LTX2Backbone.load(LTX2Spec(lora=LoRASpec(rank=4, alpha=8.0)), sampling, without=("decoders",), seed=3)
    return backbone, adapter_state(backbone.velocity_model, "policy")


@pytest.fixture
def backbone(loaded):
    """The shared model with untrained adapters."""
    backbone, start = loaded
    for name in ("policy", "old"):
        load_adapter_state(backbone.velocity_model, name, start)
    for parameter in backbone.velocity_model.parameters():
        parameter.grad = None
    return backbone


@pytest.fixture
def tuned(backbone):
    """Policy and old differ from the base, and a little from each other."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(backbone.velocity_model, "policy").values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    blend_(backbone.velocity_model)
    for parameter in adapter_parameters(backbone.velocity_model, "policy").values():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.01
    return backbone


def trainer(job: JobSpec, backbone, wrap=lambda module: module) -> tuple[Rank, ReplaySource]:
    engine = TorchEngine(wrap(backbone.velocity_model), job.optimizer)
    rank = Rank(job, backbone, engine, load_impl(job.algorithm)(job.algorithm), Ranks())
    return rank, ReplaySource(job, backbone)


def one_step(rank: Rank, source: ReplaySource, step: int) -> dict[str, float]:
    groups = [source._group(request) for request in step_requests(rank.job, PROMPTS, step)]
    return rank.update(step, groups, rank.algorithm.credit(groups, rank.job.rewards, rank.modalities), source.fetch)


@pytest.mark.parametrize("name", ["awm", "crd", "flow_rwr", "dgpo"])
def test_recipe_trains_two_steps(backbone, name):
    techniques = {"surgery": SURGERY, "region": {"enabled": True}, "old_policy": {"rate": 0.25}}
    rank, source = trainer(job_of({"name": name, **techniques}), backbone)
    before = old_before = adapter_state(backbone.velocity_model, "policy")
    seen = []
    for step in (1, 2):
        metrics = one_step(rank, source, step)
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["region/max"] > 1 and metrics["grad_norm"] > 0
        policy, old = (adapter_state(backbone.velocity_model, role) for role in ("policy", "old"))
        eta = metrics["old_policy/eta"]
        assert eta == pytest.approx(0.25 * step)
        followed = {key: eta * value + (1 - eta) * policy[key] for key, value in old_before.items()}
        assert all(np.allclose(old[key], value, rtol=1e-5, atol=1e-8) for key, value in followed.items())
        seen.append((metrics, policy))
        old_before = old
    states = [before, *(state for _, state in seen)]
    for earlier, later in pairwise(states):
        assert max(np.abs(later[key] - earlier[key]).max() for key in later) > 1e-5
    on_policy, moved = (metrics for metrics, _ in seen)
    assert on_policy["loss/reference/video"] == 0 and moved["loss/reference/video"] > 0


def square(gradient: torch.Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.double().square().sum())


def brute_force(job: JobSpec, backbone) -> dict[str, float]:
    """One forward over the whole step, its mean loss, and autograd for every tensor that a metric is about."""
    algorithm, module = load_impl(job.algorithm)(job.algorithm), backbone.velocity_model
    source = ReplaySource(job, backbone)
    groups = [source._group(request) for request in step_requests(job, PROMPTS, 1)]
    credit = algorithm.credit(groups, job.rewards, ("video", "audio"))
    view = ForwardView(job, algorithm, backbone.sigmas(job.sampling.num_steps))
    share = Share.of(1, groups, credit, range(2), source.fetch)
    micro = view.micro_batch(share, view.items(share))
    predictions = {}
    with torch.no_grad():
        for anchor in algorithm.anchors:
            with role(module, anchor):
                predictions[anchor] = module(micro.latents, micro.sigmas, micro.conditions)
    contexts: list[torch.Tensor] = []
    handles = [
        block.audio_to_video_attn.register_forward_pre_hook(
            lambda _module, _args, kwargs: contexts.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        for block in module.transformer.transformer_blocks
    ]
    with role(module, "policy"), gradient_surgery(audio_to_video(module), algorithm.surgery):
        predictions["policy"] = module(micro.latents, micro.sigmas, micro.conditions)
        loss = algorithm.loss(micro.batch, predictions).loss_B.mean()
        named = adapter_parameters(module, "policy")
        gradients = torch.autograd.grad(loss, [*named.values(), *contexts], allow_unused=True)
    for handle in handles:
        handle.remove()
    squares: dict[str, float] = {}
    for key, gradient in zip(named, gradients, strict=False):
        _, block, part, *_ = key.split(".")
        modality = next(modality for modality, parts in BRANCHES.items() if part in parts)
        name = f"gradient/{modality}/{int(block):02d}"
        squares[name] = squares.get(name, 0.0) + square(gradient)
    for block, gradient in enumerate(gradients[len(named) :]):
        squares[f"gradient/audio_from_video/{block:02d}"] = square(gradient)
    return {name: math.sqrt(value) for name, value in squares.items()} | {"loss/total": loss.item()}


def gradient_metrics(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("gradient/")}


@pytest.mark.parametrize("tensor", ["context", "kv"])
def test_gradient_norms_equal_brute_force_whatever_the_micro_batch(tuned, tensor):
    job = job_of({"name": "omninft", "surgery": {"tensor": tensor, "schedule": SCHEDULE}}, 2, max_grad_norm=1e-3)
    expected = brute_force(job, tuned)
    metrics = one_step(*trainer(job, tuned), 1)
    assert metrics["loss/total"] == pytest.approx(expected.pop("loss/total"), rel=1e-5)
    found = gradient_metrics(metrics)
    assert len(found) == 3 * tuned.depth
    assert found == pytest.approx(expected, rel=1e-5)
    assert [name for name, value in found.items() if value == 0] == ["gradient/audio_from_video/00"]
    total = sum(value**2 for name, value in found.items() if "from" not in name)
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(total), rel=1e-5)
    assert metrics["grad_norm"] > 1e-2  # the norms are those before clipping


def test_gradient_norms_start_over_with_each_step_and_hold_under_checkpointing(tuned):
    still = {"name": "omninft", "surgery": SURGERY, "old_policy": {"start": 1.0, "maximum": 1.0}}
    job = job_of(still, 3, learning_rate=1e-7)
    states = {name: adapter_state(tuned.velocity_model, name) for name in ("policy", "old")}
    runs = []
    for checkpointing in (False, True):
        for name, state in states.items():
            load_adapter_state(tuned.velocity_model, name, state)
        if checkpointing:
            tuned.pipeline.transformer.enable_gradient_checkpointing()
        rank, source = trainer(job, tuned)
        runs.append([gradient_metrics(one_step(rank, source, step)) for step in (1, 1)])
        tuned.pipeline.transformer.disable_gradient_checkpointing()
    (first, again), checkpointed = runs
    assert checkpointed[0] == pytest.approx(first, rel=1e-5)
    assert again == pytest.approx(first, rel=1e-3)  # nearly the same weights, and nothing of the first step


def test_gradient_norms_under_ddp(tuned, tmp_path):
    job = job_of({"name": "omninft", "surgery": SURGERY})
    expected = brute_force(job, tuned)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        found = gradient_metrics(one_step(*trainer(job, tuned, DistributedDataParallel), 1))
    finally:
        torch.distributed.destroy_process_group()
    del expected["loss/total"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_changes_no_weight(tuned):
    rank, source = trainer(job_of({"name": "omninft"}), tuned)
    before = adapter_state(tuned.velocity_model, "policy")
    groups = [source._group(request) for request in step_requests(rank.job, PROMPTS, 1)]
    groups[1].group.data.latents["audio"][0, 0, 0] = math.nan
    credit = rank.algorithm.credit(groups, rank.job.rewards, rank.modalities)
    with pytest.raises(NonFiniteError, match="step 1: loss/"):
        rank.update(1, groups, credit, source.fetch)
    after = adapter_state(tuned.velocity_model, "policy")
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_gradient_norms_can_be_switched_off(backbone):
    rank, source = trainer(job_of({"name": "awm"}, gradient_norms=False), backbone)
    assert gradient_metrics(one_step(rank, source, 1)) == {}
    assert not rank.engine.watch_gradients


def test_what_is_outside_of_the_blocks_is_in_no_block():
    job = job_of({"name": "omninft", "surgery": SURGERY})
    spec = LTX2Spec(lora=LoRASpec(rank=4, targets=("attn1", "proj_out")))
    backbone = LTX2Backbone.load(spec, job.sampling, without=("decoders",), seed=3)
    metrics = one_step(*trainer(job, backbone), 1)
    squares = [metrics[f"gradient/video/{block:02d}"] ** 2 for block in range(4)]
    assert min(squares) > 0 and not any(name.startswith("gradient/audio/") for name in metrics)
    assert math.sqrt(sum(squares)) < 0.95 * metrics["grad_norm"]  # the rest is that of proj_out


def test_a_part_belongs_to_the_stream_it_writes(backbone):
    for key in adapter_parameters(backbone.velocity_model, "policy"):
        _, block, part, *_ = key.split(".")
        assert branch_of(key) == (next(m for m, parts in BRANCHES.items() if part in parts), int(block))
    assert branch_of("proj_in.lora_A.weight") is None
