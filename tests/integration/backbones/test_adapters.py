"""LoRA roles: deterministic, cheap to switch, exact to move."""

import numpy as np
import pytest
import torch
from torch import nn

from accord.backbones.adapters import (
    adapter_parameters,
    adapter_state,
    add_reference,
    add_roles,
    blend_,
    clear_adapters,
    load_adapter_state,
    role,
    roles,
    target_layers,
)
from accord.backbones.ltx2.spec import LoRASpec
from accord.backbones.ltx2.streams import GATES
from accord.errors import CheckpointError, SpecError


class Wrapped(nn.Module):
    """What DDP and DeepSpeed do: keep the module under another name and forward unknown attributes to it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def inputs(backbone):
    generator = torch.Generator().manual_seed(1)
    latents = {m: torch.randn(2, *s, generator=generator) for m, s in backbone.latent_shapes().items()}
    return latents, {m: torch.tensor([0.3, 0.9]) for m in latents}, backbone.encode(["a red ball", "a bell"])


@torch.no_grad()
def velocities(backbone, name):
    with role(backbone.velocity_model, name):
        return backbone.velocity(*inputs(backbone))


def test_roles_start_equal_to_the_base(ltx2_dir, load):
    backbone = load(ltx2_dir)
    base = velocities(backbone, "ref")
    for name in ("policy", "old"):
        for modality, value in velocities(backbone, name).items():
            assert torch.equal(value, base[modality])
    policy, old = (adapter_state(backbone.velocity_model, name) for name in ("policy", "old"))
    assert policy.keys() == old.keys() and all(np.array_equal(policy[key], old[key]) for key in policy)


def test_initialisation_depends_on_the_seed_alone(ltx2_dir, load):
    torch.manual_seed(1)
    first = adapter_state(load(ltx2_dir).velocity_model, "policy")
    torch.manual_seed(2)
    backbone = load(ltx2_dir)
    second = adapter_state(backbone.velocity_model, "policy")
    assert all(np.array_equal(first[key], second[key]) for key in first)
    a_values = np.concatenate([value.ravel() for key, value in first.items() if ".lora_A." in key])
    assert abs(a_values.std() - 0.25) < 0.01  # 1 / rank
    assert all((value == 0).all() for key, value in first.items() if ".lora_B." in key)


def test_only_the_policy_requires_gradients(ltx2_dir, load):
    backbone = load(ltx2_dir)
    trained = {name for name, parameter in backbone.velocity_model.named_parameters() if parameter.requires_grad}
    assert trained and all(".policy." in name and ".lora_" in name for name in trained)
    assert len(trained) == len(adapter_parameters(backbone.velocity_model, "policy"))


def test_switching_roles_touches_flags_only_and_restores_them(ltx2_dir, load, perturb):
    backbone = load(ltx2_dir)
    perturb(backbone.velocity_model, "policy", 1)
    perturb(backbone.velocity_model, "old", 2)
    flags = [parameter.requires_grad for parameter in backbone.velocity_model.parameters()]
    outputs = {name: velocities(backbone, name)["video"] for name in ("policy", "old", "ref")}
    assert not torch.allclose(outputs["policy"], outputs["old"]) and not torch.allclose(outputs["old"], outputs["ref"])
    with role(backbone.velocity_model, "ref"):
        assert [parameter.requires_grad for parameter in backbone.velocity_model.parameters()] == flags
        with role(backbone.velocity_model, "old"), torch.no_grad():
            assert torch.equal(backbone.velocity(*inputs(backbone))["video"], outputs["old"])
        with torch.no_grad():
            assert torch.equal(backbone.velocity(*inputs(backbone))["video"], outputs["ref"])
    with torch.no_grad():
        assert torch.equal(backbone.velocity(*inputs(backbone))["video"], outputs["policy"])


def test_a_reference_of_its_own_begins_as_the_base_and_stays_where_it_is_put(ltx2_dir, load, perturb):
    backbone = load(ltx2_dir)
    network = backbone.velocity_model
    perturb(network, "policy", 1)
    perturb(network, "old", 2)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    before = {name: velocities(backbone, name)["video"] for name in ("policy", "old", "ref")}
    assert roles(network) == ("policy", "old")
    add_reference(network)
    assert roles(network) == roles(Wrapped(network)) == ("policy", "old", "ref")
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == trained
    assert all(torch.equal(velocities(backbone, name)["video"], value) for name, value in before.items())
    with torch.no_grad():
        assert torch.equal(backbone.velocity(*inputs(backbone))["video"], before["policy"])  # at rest
    blend_(network, into="ref", source="policy")
    perturb(network, "policy", 3)
    assert torch.equal(velocities(backbone, "ref")["video"], before["policy"])
    assert not torch.allclose(velocities(backbone, "policy")["video"], before["policy"])
    assert torch.equal(velocities(backbone, "old")["video"], before["old"])


def test_a_network_that_was_asked_for_a_role_too_early_gets_it_later():
    network = nn.Sequential(nn.ModuleDict({"attn": nn.Linear(4, 4)}))
    with role(network, "ref"):
        pass
    add_roles(network, LoRASpec(rank=2, targets=("attn",)), 0)
    layer = network[0]["attn"]
    with role(network, "old"):
        assert layer._active_adapter == ["old"]
    assert layer._active_adapter == ["policy"]


def test_state_moves_bit_for_bit_between_models_and_through_wrappers(ltx2_dir, load, perturb):
    source, target = load(ltx2_dir), load(ltx2_dir)
    perturb(source.velocity_model, "policy", 5)
    state = adapter_state(Wrapped(source.velocity_model), "policy")
    assert all(key.startswith("transformer_blocks.") and value.dtype == np.float32 for key, value in state.items())
    load_adapter_state(Wrapped(Wrapped(target.velocity_model)), "old", state)
    ours, theirs = velocities(source, "policy"), velocities(target, "old")
    assert all(torch.equal(ours[modality], theirs[modality]) for modality in ours)


def test_a_copy_does_not_follow_the_model(ltx2_dir, load, perturb):
    backbone = load(ltx2_dir)
    before = adapter_state(backbone.velocity_model, "policy")
    kept = {key: value.copy() for key, value in before.items()}
    perturb(backbone.velocity_model, "policy", 5)
    with torch.no_grad():
        for parameter in adapter_parameters(backbone.velocity_model, "policy").values():
            parameter.add_(1.0)
    assert all(np.array_equal(before[key], kept[key]) for key in kept)


def test_a_state_that_does_not_fit_is_refused(ltx2_dir, load):
    backbone = load(ltx2_dir)
    state = adapter_state(backbone.velocity_model, "policy")
    key = next(iter(state))
    with pytest.raises(CheckpointError, match=f"1 tensors differ.*{key}"):
        load_adapter_state(backbone.velocity_model, "policy", {k: v for k, v in state.items() if k != key})
    with pytest.raises(CheckpointError, match="another rank"):
        load_adapter_state(backbone.velocity_model, "policy", {**state, key: state[key][:1]})


@pytest.mark.parametrize("eta", [0.0, 0.25])
def test_blend_follows_the_equation(ltx2_dir, load, perturb, eta):
    backbone = load(ltx2_dir)
    perturb(backbone.velocity_model, "policy", 1)
    perturb(backbone.velocity_model, "old", 2)
    policy, old = (adapter_state(backbone.velocity_model, name) for name in ("policy", "old"))
    blend_(backbone.velocity_model, eta=eta)
    for key, value in adapter_state(backbone.velocity_model, "old").items():
        np.testing.assert_allclose(value, eta * old[key] + (1 - eta) * policy[key], rtol=1e-6, atol=1e-7)
        assert eta or np.array_equal(value, policy[key])


def test_clearing_gives_the_base_back(ltx2_dir, load, perturb):
    backbone = load(ltx2_dir)
    perturb(backbone.velocity_model, "policy", 1)
    clear_adapters(backbone.velocity_model)
    assert torch.equal(velocities(backbone, "policy")["audio"], velocities(backbone, "ref")["audio"])


def test_adapters_stay_float32_on_a_bfloat16_network(model_dir, load):
    backbone = load(model_dir, dtype="bfloat16")
    assert backbone.velocity_model.transformer.proj_in.weight.dtype == torch.bfloat16
    assert {p.dtype for p in adapter_parameters(backbone.velocity_model, "policy").values()} == {torch.float32}
    output = velocities(backbone, "policy")["video"]
    assert output.dtype == torch.float32 and torch.isfinite(output).all()
    clip = backbone.decode(inputs(backbone)[0])[0]
    assert clip.audio_CS.dtype == np.float32


def test_targets_by_part_without_the_gates(model_dir, load):
    transformer = load(model_dir).velocity_model.transformer
    layers = target_layers(transformer, LoRASpec(targets=("attn1", "audio_ff")), GATES)
    ends = {
        layer.removeprefix("transformer_blocks.0.") for layer in layers if layer.startswith("transformer_blocks.0.")
    }
    assert not any("to_gate_logits" in layer for layer in layers)
    assert {end.split(".base_layer")[0] for end in ends if "lora_" not in end} == {
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "audio_ff.net.0.proj", "audio_ff.net.2",
    }  # fmt: skip


def test_a_target_that_matches_nothing_is_named():
    module = nn.Module()
    module.block = nn.Module()
    module.block.attn1 = nn.Linear(2, 2)
    with pytest.raises(SpecError, match="/backbone/lora/targets: attn9"):
        add_roles(module, LoRASpec(targets=("attn1", "attn9")), 0)


def test_gradient_checkpointing_changes_no_gradient(ltx2_dir, load, perturb):
    gradients = []
    for checkpointing in (False, True):
        backbone = load(ltx2_dir, gradient_checkpointing=checkpointing)
        perturb(backbone.velocity_model, "policy", 1)
        sum(value.square().mean() for value in backbone.velocity(*inputs(backbone)).values()).backward()
        gradients.append([p.grad for p in adapter_parameters(backbone.velocity_model, "policy").values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
