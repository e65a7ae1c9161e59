"""`offload`: where the decoders are, and when. The moves are recorded; no GPU is needed to see their order."""

import pytest
import torch
from torch import nn

from accord.backbones.ltx2.model import DECODERS, LTX2Backbone
from accord.backbones.ltx2.spec import LoRASpec, LTX2Spec
from accord.config.sampling import SamplingSpec


@pytest.fixture
def moves(monkeypatch):
    """Every `.to(device)` of a module from here on, by the module's class; nothing moves."""
    seen = []

    def spy(self, *args, **_kwargs):
        if args and isinstance(args[0], str):
            seen.append((type(self).__name__, args[0]))
        return self

    def start():
        monkeypatch.setattr(nn.Module, "to", spy)
        for kind in {type(module) for module in start.watched}:
            monkeypatch.setattr(kind, "to", spy)
        return seen

    start.watched = []
    return start


@pytest.fixture(scope="module")
def loaded(ltx2_dir) -> LTX2Backbone:
    spec = LTX2Spec(path=str(ltx2_dir), lora=LoRASpec(rank=2))
    return LTX2Backbone.load(spec, SamplingSpec(frames=9, num_steps=2))


@pytest.fixture
def backbone(loaded, monkeypatch):
    """With `offload`, and on a device that is not the CPU as far as it knows."""
    monkeypatch.setattr(loaded, "spec", loaded.spec.model_copy(update={"offload": True}))
    monkeypatch.setattr(loaded, "device", "cuda")
    return loaded


def latents(backbone):
    generator = torch.Generator().manual_seed(0)
    return {m: torch.randn(1, *shape, generator=generator) for m, shape in backbone.latent_shapes().items()}


def decoders(backbone):
    return [getattr(backbone.pipeline, name) for name in DECODERS]


def test_decoders_come_for_the_decode_and_go_back(backbone, moves):
    moves.watched = decoders(backbone)
    names = [type(part).__name__ for part in decoders(backbone)]
    seen = moves()
    backbone.decode(latents(backbone))
    assert seen == [(name, "cuda") for name in names] + [(name, "cpu") for name in names]


def test_they_go_back_after_an_error_too(backbone, moves):
    moves.watched = decoders(backbone)
    seen = moves()
    with pytest.raises(RuntimeError):
        backbone.decode({"video": torch.zeros(1, 1, 1), "audio": torch.zeros(1, 1, 1)})
    assert [device for _, device in seen] == ["cuda"] * 3 + ["cpu"] * 3


def test_without_offload_nothing_moves(loaded, moves):
    moves.watched = decoders(loaded)
    seen = moves()
    loaded.decode(latents(loaded))
    assert seen == []


def test_on_a_cpu_the_clips_are_the_same(loaded, monkeypatch):
    (plain,) = loaded.decode(latents(loaded))
    monkeypatch.setattr(loaded, "spec", loaded.spec.model_copy(update={"offload": True}))
    (moved,) = loaded.decode(latents(loaded))
    assert (plain.video_FHWC == moved.video_FHWC).all() and (plain.audio_CS == moved.audio_CS).all()
    assert {next(part.parameters()).device.type for part in decoders(loaded)} == {"cpu"}


def test_where_parts_are_put_when_loading(loaded):
    """On the meta device, which takes anything and keeps nothing: all but the offloaded decoders."""
    spec = loaded.spec.model_copy(update={"offload": True})
    parts = LTX2Backbone.load(spec, loaded.sampling, device="meta").pipeline.components
    found = {name: next(part.parameters()).device.type for name, part in parts.items() if isinstance(part, nn.Module)}
    assert {name for name, device in found.items() if device == "cpu"} == set(DECODERS)
    assert {"transformer", "text_encoder", "connectors"} <= found.keys()
