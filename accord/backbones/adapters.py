"""LoRA roles in one model: `policy` is trained, `old` samples, `ref` is the base with adapters off; or, where a learner
lets its reference follow, a third adapter.

Works on any module that holds the adapted network, whether or not DDP or DeepSpeed wraps it. Tensors are named by
their module path inside the network, such as `<block>.0.attn1.to_q.lora_A.weight`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from accord.config.contract import AdapterSpec, BackboneSpec
from accord.errors import CheckpointError, ModelError, SpecError
from accord.seeds import Purpose, derive_seed
from accord.types import Role

ADAPTER_ROLES: tuple[Role, Role] = ("policy", "old")
_LAYERS = "accord_adapted_layers"
"""Attribute of the adapted network: walking thousands of modules at each change of role would take per cents."""


def target_layers(module: nn.Module, spec: AdapterSpec, frozen: str | tuple[str, ...] = ()) -> list[str]:
    """Paths of the linear layers that get an adapter: those below a target, but for paths that end in `frozen`.

    Raises SpecError for a target that matches nothing.
    """
    found: dict[str, list[str]] = {target: [] for target in spec.targets}
    for path, parent in module.named_modules():
        for target in found.keys() & parent._modules.keys():
            part = parent._modules[target]
            prefix = f"{path}.{target}" if path else target
            found[target] += [
                f"{prefix}.{name}" if name else prefix
                for name, layer in (part.named_modules() if part is not None else ())
                if isinstance(layer, nn.Linear) and not name.endswith(frozen)
            ]
    missing = [target for target, layers in found.items() if not layers]
    if missing:
        raise SpecError([("/backbone/lora/targets", f"{', '.join(missing)}: matches no linear layer of the model")])
    return sorted(layer for layers in found.values() for layer in layers)


def add_roles(module: nn.Module, spec: AdapterSpec, seed: int, frozen: str | tuple[str, ...] = ()) -> None:
    """Add `policy` and `old` to a frozen network, identical and without effect yet (B = 0); `frozen` as above.

    A ~ N(0, 1/rank^2), drawn per layer from `seed` and its path alone. Adapters are float32 whatever the network is;
    only `policy` requires gradients; `policy` is active.
    """
    targets = target_layers(module, spec, frozen)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # the second role is meant
        for name in ADAPTER_ROLES:
            alpha: Any = spec.alpha  # declared int, used as a factor
            config = LoraConfig(r=spec.rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
            inject_adapter_in_model(config, module, adapter_name=name, low_cpu_mem_usage=True)
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    for path, layer in layers.items():
        for name in ADAPTER_ROLES:
            _initialise(layer, name, path, spec.rank, seed)
    setattr(module, _LAYERS, list(layers.values()))
    _activate(_layers(module), "policy")


def _initialise(layer: Any, name: Role, path: str, rank: int, seed: int) -> None:
    """Replace the empty tensors that PEFT made by A from the seed and B = 0, next to the layer they adapt."""
    device = layer.get_base_layer().weight.device
    for kind, part in (("lora_A", layer.lora_A[name]), ("lora_B", layer.lora_B[name])):
        value = torch.zeros(part.weight.shape, device=device)
        if kind == "lora_A" and not value.is_meta:
            generator = torch.Generator().manual_seed(derive_seed(seed, Purpose.ADAPTER, f"{path}.{kind}.weight"))
            value = (torch.randn(value.shape, generator=generator) / rank).to(device)
        part.weight = nn.Parameter(value, requires_grad=name == "policy")


def add_reference(module: nn.Module) -> None:
    """Give `ref` tensors of its own beside those of `add_roles`, without effect yet (B = 0), so that it can follow.

    From then on the role is these tensors. Called before an engine takes the module. Raises CheckpointError for a
    network without roles.
    """
    network = _network(module)
    config: Any = network.peft_config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(copy(config["policy"]), network, adapter_name="ref", low_cpu_mem_usage=True)
    layers: list[Any] = list(_layers(module))
    for layer in layers:
        for kind, part in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            like = part["policy"].weight
            value = like.detach().clone() if kind == "lora_A" else torch.zeros_like(like)
            part["ref"].weight = nn.Parameter(value, requires_grad=False)
            part["old"].weight.requires_grad_(False)  # PEFT takes whom it injects for the one that is trained
            like.requires_grad_(True)
    _activate(layers, "policy")


def roles(module: nn.Module) -> tuple[Role, ...]:
    """The roles that have tensors of their own."""
    return (*ADAPTER_ROLES, "ref") if any(_own_reference(layer) for layer in _layers(module)) else ADAPTER_ROLES


@contextmanager
def role(module: nn.Module, name: Role) -> Iterator[None]:
    """Compute as `name` inside the block. Flags only: no parameter and no `requires_grad` is touched."""
    layers = _layers(module)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        _activate(layers, name)
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def _activate(layers: list[LoraLayer], name: Role) -> None:
    for layer in layers:
        layer._disable_adapters = name == "ref" and not _own_reference(layer)
        if not layer._disable_adapters:
            layer._active_adapter = [name]


def _own_reference(layer: Any) -> bool:
    return "ref" in layer.lora_A


def adapter_parameters(module: nn.Module, name: Role) -> dict[str, nn.Parameter]:
    """The tensors of one role by key, in the order of the model.

    `<layer>.lora_A.weight` is A [rank, in], `<layer>.lora_B.weight` B [out, rank].
    """
    marker = f".{name}."
    return {
        path.replace(marker, "."): parameter
        for path, parameter in _network(module).named_parameters()
        if ".lora_" in path and marker in path
    }


def adapter_state(module: nn.Module, name: Role) -> dict[str, np.ndarray]:
    """Copy one role out as float32 arrays by key: A [rank, in] and B [out, rank] of each layer."""
    return {
        key: parameter.detach().to("cpu", torch.float32, copy=True).numpy()
        for key, parameter in adapter_parameters(module, name).items()
    }


@torch.no_grad()
def load_adapter_state(module: nn.Module, name: Role, state: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into one role. Raises CheckpointError when keys or shapes differ from the model's."""
    parameters = adapter_parameters(module, name)
    differing = parameters.keys() ^ state.keys()
    if differing:
        some = ", ".join(sorted(differing)[:3])
        raise CheckpointError(f"adapter {name}: {len(differing)} tensors differ from the model's, such as {some}")
    for key, parameter in parameters.items():
        if parameter.shape != state[key].shape:
            shapes = f"{tuple(state[key].shape)} for {tuple(parameter.shape)}"
            raise CheckpointError(f"adapter {name}: {key} has shape {shapes}; was it trained with another rank?")
        parameter.copy_(torch.from_numpy(np.array(state[key], dtype=np.float32)))


def starting_adapter(module: nn.Module) -> dict[str, np.ndarray] | None:
    """Copy the adapter that a model was loaded with; None when it is without effect (B = 0), the usual start."""
    parameters = adapter_parameters(module, "policy")
    if not any(parameter.any() for key, parameter in parameters.items() if ".lora_B." in key):
        return None
    return adapter_state(module, "policy")


def reset_adapters(module: nn.Module, start: Mapping[str, np.ndarray] | None) -> None:
    """Back to version 0: both roles as `starting_adapter` found them."""
    if start is None:
        clear_adapters(module)
        return
    for name in ADAPTER_ROLES:
        load_adapter_state(module, name, start)


@torch.no_grad()
def clear_adapters(module: nn.Module) -> None:
    """Set both roles to 0: the base model, even after weights that were not finite. Nothing can be trained from it."""
    for name in ADAPTER_ROLES:
        for parameter in adapter_parameters(module, name).values():
            parameter.zero_()


@torch.no_grad()
def blend_(module: nn.Module, into: Role = "old", source: Role = "policy", eta: float = 0.0) -> None:
    """In place: into <- eta * into + (1 - eta) * source (OmniNFT alg. 1). eta = 0 copies."""
    origin = adapter_parameters(module, source)
    for key, parameter in adapter_parameters(module, into).items():
        if eta == 0.0:
            parameter.copy_(origin[key])
        else:
            parameter.mul_(eta).add_(origin[key], alpha=1.0 - eta)


def export_lora(state: Mapping[str, np.ndarray], backbone: BackboneSpec, path: Path) -> None:
    """Write a role's tensors as the file that diffusers' `load_lora_weights` takes.

    `state`: A [rank, in] and B [out, rank] by key, as `adapter_state` returns them.

    The scale alpha / rank is multiplied into B, so that readers which know no alpha get the same model.
    """
    scale = np.float32(backbone.lora.alpha / backbone.lora.rank)
    above = f"{backbone.component}." if backbone.component else ""
    tensors = {
        f"{above}{key}": np.ascontiguousarray(value * scale if ".lora_B." in key else value, dtype=np.float32)
        for key, value in state.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})  # a second entry would make the bytes differ from run to run


def import_lora(backbone: BackboneSpec, path: str) -> dict[str, np.ndarray]:
    """A role's tensors by key from a file that `export_lora` wrote for the same `lora`. Raises ModelError."""
    above = f"{backbone.component}." if backbone.component else ""
    scale = np.float32(backbone.lora.alpha / backbone.lora.rank)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: is no adapter file ({error})") from error
    return {
        key.removeprefix(above): value.astype(np.float32) / (scale if ".lora_B." in key else 1)
        for key, value in tensors.items()
    }


def _network(module: nn.Module) -> nn.Module:
    """The adapted network inside `module`, found by the configs that PEFT left on it."""
    for candidate in module.modules():
        if "peft_config" in vars(candidate):
            return candidate
    raise CheckpointError(f"{type(module).__name__} holds no adapters; call add_roles first")


def _layers(module: nn.Module) -> list[LoraLayer]:
    """The adapted layers as `add_roles` found them; [] before that."""
    return next((vars(part)[_LAYERS] for part in module.modules() if _LAYERS in vars(part)), [])
