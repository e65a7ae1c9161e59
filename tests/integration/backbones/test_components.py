"""A component is taken only if every weight came from its files: whatever the libraries would make up is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from accord.backbones.components import load_component
from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.model_dir import WEIGHTS
from accord.backbones.ltx2.spec import LTX2Spec
from accord.config.sampling import SamplingSpec
from accord.config.weights import read_json, weight_files
from accord.errors import ModelError


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("damage", ["missing", "unknown", "another shape"])
def test_weights_that_are_not_the_class_are_refused(
    ltx2_dir: Path, tmp_path: Path, component: str, damage: str
) -> None:
    directory = copied(ltx2_dir, tmp_path) / component
    entry = read_json(ltx2_dir / "model_index.json")[component]
    load_component(directory, entry, torch.float32)
    (file,) = weight_files(directory)
    tensors = load_file(file)
    name = max(name for name in tensors if name.endswith("weight") and tensors[name].ndim > 1)
    if damage == "unknown":
        name = tensors_name = f"{name}_of_old"
        tensors[tensors_name] = torch.zeros(2)
    elif damage == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(tensors[name].shape[0] + 1, *tensors[name].shape[1:])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(str(directory))) as caught:
        load_component(directory, entry, torch.float32)
    assert name in str(caught.value) or damage == "another shape"


def test_a_pipeline_that_names_an_unknown_class_is_refused(ltx2_dir: Path, tmp_path: Path) -> None:
    model = copied(ltx2_dir, tmp_path)
    for file in (model / "model_index.json", model / "text_encoder" / "config.json"):
        file.write_text(file.read_text().replace("Gemma3ForConditionalGeneration", "Gemma9ForSinging"))
    with pytest.raises(ModelError, match="transformers has no Gemma9ForSinging"):
        LTX2Backbone.load(LTX2Spec(path=str(model)), SamplingSpec(frames=9))


def test_a_tokenizer_that_is_none_is_the_models_fault(ltx2_dir: Path, tmp_path: Path) -> None:
    model = copied(ltx2_dir, tmp_path)
    for tokenizer in ('{"model": {}}', '{"version": "1.0", "added_tokens": [], "model": {"type": "None"}}'):
        (model / "tokenizer" / "tokenizer.json").write_text(tokenizer)
        with pytest.raises(ModelError, match="cannot be loaded as a pipeline"):
            LTX2Backbone.load(LTX2Spec(path=str(model)), SamplingSpec(frames=9))


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))
