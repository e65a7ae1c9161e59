"""What a network cannot do is refused by the field that asks for it, when a job validates and where it is asked for."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from torch import nn

from accord.backbones.base import (
    Conditions,
    CrossAttends,
    IsolatesModalities,
    SkipsSelfAttention,
    VelocityModel,
    WatchesAttention,
    capable,
    demanded,
)
from accord.backbones.ltx2.spec import LTX2Spec
from accord.backbones.surgery import audio_to_video
from accord.config.contract import ModelFacts
from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.errors import SpecError
from accord.types import Guidance, Term
from rollout_workers.guidance import guided_velocity


class Plain(VelocityModel):
    """A network of one modality without any capability."""

    depth = 1

    def forward(self, latents, sigmas, conditions):
        return dict(latents)


class Backbone:
    velocity_model = Plain()

    def velocity(self, latents, sigmas, conditions):
        return self.velocity_model(latents, sigmas, conditions)


class Unguided(LTX2Spec):
    guides: ClassVar[frozenset[Term]] = frozenset()


def test_a_capability_is_found_through_any_wrapper():
    model = Plain()
    wrapped = nn.Sequential(nn.Sequential(model))
    assert capable(wrapped, VelocityModel) is model
    for kind in (CrossAttends, WatchesAttention, SkipsSelfAttention, IsolatesModalities):
        assert capable(wrapped, kind) is None
        with pytest.raises(SpecError, match=rf"/some/field.*{kind.__name__}"):
            demanded(wrapped, kind, "/some/field")
    assert audio_to_video(wrapped) == [] and model.branch_of("blocks.0.attn.lora_A.weight") is None


@pytest.mark.parametrize(
    ("guidance", "field"),
    [
        (Guidance(stg={"video": 1.0}, blocks=(0,)), "/sampling/stg_scale"),
        (Guidance(modality={"video": 2.0}), "/sampling/modality_scale"),
    ],
)
def test_guidance_without_its_weaker_pass_names_its_field(guidance, field):
    latents, levels = {"video": torch.ones(1, 2, 3)}, {"video": torch.ones(1)}
    with pytest.raises(SpecError, match=field):
        guided_velocity(Backbone(), guidance, latents, levels, Conditions({"text": torch.ones(1, 1)}), None)


def test_a_job_that_asks_for_guidance_that_its_backbone_lacks_is_refused(job_tree):
    job_tree["sampling"] |= {"guidance": 2.0, "stg_scale": 1.0, "stg_blocks": [0], "audio_modality_scale": 3.0}
    job = JobSpec.parse(json.dumps(job_tree))
    assert list(job.backbone.problems(job, None)) == []
    where = [place for place, _ in Unguided(path=job.backbone.path).problems(job, ModelFacts())]
    assert where == ["/sampling/guidance", "/sampling/stg_scale", "/sampling/modality_scale"]


class Misled(LTX2Spec):
    inspect: ClassVar[str] = "json:loads"


def test_a_look_at_the_model_that_fails_is_told_at_its_path(job_tree):
    job = JobSpec.parse(json.dumps(job_tree))
    with pytest.raises(SpecError) as refused:
        preflight(job.model_copy(update={"backbone": Misled(path=job.backbone.path)}))
    ((pointer, message),) = refused.value.problems
    assert pointer == "/backbone/path" and "facts raised JSONDecodeError" in message
