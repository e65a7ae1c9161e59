"""Every tensor of the shipped model is missed when it is gone: by its header, before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest

from accord.backbones.ltx2.model_dir import WEIGHTS, inspect_model_dir, resolve_model_path
from accord.backbones.ltx2.shapes import check_complete
from accord.config.clap_dir import SHIPPED, inspect_clap_dir
from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.config.weights import component_shapes, read_json, read_safetensors_header, weight_files
from accord.errors import ModelError, SpecError

TINY = resolve_model_path("builtin:tiny-ltx2")


@pytest.mark.parametrize("component", WEIGHTS)
def test_no_tensor_is_missing_without_a_word(component: str) -> None:
    shapes, config = component_shapes(TINY / component), read_json(TINY / component / "config.json")
    check_complete(TINY / component, config, shapes)
    for name in shapes:
        with pytest.raises(ModelError, match=r"lacks .* such"):
            check_complete(TINY / component, config, {other: shapes[other] for other in shapes if other != name})


@pytest.mark.parametrize("component", WEIGHTS)
def test_no_bias_and_no_block_has_a_shape_of_its_own(component: str) -> None:
    shapes, config = component_shapes(TINY / component), read_json(TINY / component / "config.json")
    stacked = component in {"transformer", "text_encoder"}
    for name, shape in shapes.items():
        if name.endswith(".bias") or (stacked and re.search(r"(transformer_blocks|language_model.*layers)\.\d", name)):
            with pytest.raises(ModelError, match=r"beside a weight of|; copy the weights again"):
                check_complete(TINY / component, config, {**shapes, name: tuple(side + 1 for side in shape) or (3,)})


@pytest.mark.parametrize(
    ("component", "stack", "field"),
    [
        ("transformer", "transformer_blocks.3.", "4 blocks"),
        ("text_encoder", "language_model.model.layers.1.", "text_config.num_hidden_layers is 2"),
    ],
)
def test_a_whole_block_that_is_gone_is_missed(tmp_path: Path, component: str, stack: str, field: str) -> None:
    model = copied(tmp_path)
    (file,) = weight_files(model / component)
    rename(file, {name: None for name in read_safetensors_header(file) if name.startswith(stack)})
    with pytest.raises(ModelError, match=field):
        inspect_model_dir(str(model))


def test_shards_hold_what_their_index_says(tmp_path: Path) -> None:
    model = copied(tmp_path)
    (file,) = weight_files(model / "vae")
    names = sorted(read_safetensors_header(file))
    first = file.with_name("diffusion_pytorch_model-00001-of-00002.safetensors")
    second = file.with_name("diffusion_pytorch_model-00002-of-00002.safetensors")
    shutil.copy(file, second)
    file.rename(first)
    rename(first, dict.fromkeys(names[9:]))
    rename(second, dict.fromkeys(names[:9]))
    index = file.with_name(f"{file.name}.index.json")
    place = {name: first.name if name in names[:9] else second.name for name in names}

    def say(**changes: str) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": place | changes}))

    say()
    inspect_model_dir(str(model))
    say(**{names[0]: second.name})
    with pytest.raises(ModelError, match=f"00001-of-00002.safetensors: holds {names[0]} .*index does not know"):
        inspect_model_dir(str(model))
    say(more=second.name)
    with pytest.raises(ModelError, match=r"00002-of-00002.safetensors: lacks more \(1 such\)"):
        inspect_model_dir(str(model))
    say()
    rename(second, {names[-1]: names[0]})
    with pytest.raises(ModelError, match=f"holds {names[0]}, which another file of vae holds, too"):
        inspect_model_dir(str(model))
    rename(second, {names[0]: names[-1]})
    inspect_model_dir(str(model))
    second.unlink()
    with pytest.raises(ModelError, match=r"00002-of-00002\.safetensors: No such file"):
        inspect_model_dir(str(model))


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(TINY, folder / "model"))


def rename(file: Path, names: dict[str, str | None]) -> None:
    """Give tensors other names, or none: then their bytes go, too."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kept, body = {}, b""
    for name, entry in header.items():
        new = names.get(name, name)
        if name == "__metadata__" or new is None:
            continue
        begin, end = entry["data_offsets"]
        kept[new] = {**entry, "data_offsets": [len(body), len(body) + end - begin]}
        body += data[begin:end]
    text = json.dumps(kept).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_a_clap_checkpoint_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """All but a handful that only the class itself knows to be there."""
    copy = Path(shutil.copytree(SHIPPED["builtin:tiny-clap"], tmp_path / "clap"))
    inspect_clap_dir(str(copy))
    file = copy / "model.safetensors"
    whole, passed = file.read_bytes(), []
    for name in read_safetensors_header(file):
        rename(file, {name: None})
        try:
            inspect_clap_dir(str(copy))
            passed.append(name)
        except ModelError as error:
            assert "lacks" in str(error)
        file.write_bytes(whole)
    assert len(passed) < 8
    file.write_bytes(whole.replace(b'"F32"', b'"I32"'))
    with pytest.raises(ModelError, match="is I32, which is quantised"):
        inspect_clap_dir(str(copy))
    file.write_bytes(whole)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no model of a tokenizer"):
        inspect_clap_dir(str(copy))
    (copy / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match="model_type is 'clip'"):
        inspect_clap_dir(str(copy))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("transformer/config.json", {"patch_size": 0}),
        ("transformer/config.json", {"num_layers": 10**12}),
        ("transformer/config.json", {"num_layers": "four"}),
        ("transformer/config.json", {"in_channels": -1}),
        ("transformer/config.json", {"patch_size": [1]}),
        ("vae/config.json", {"temporal_compression_ratio": -4}),
        ("vae/config.json", {"spatio_temporal_scaling": 3}),
        ("audio_vae/config.json", {"sample_rate": 0}),
        ("audio_vae/config.json", {"mel_hop_length": 0}),
        ("audio_vae/config.json", {"sample_rate": 10**400}),
        ("text_encoder/config.json", {"text_config": [1], "vision_config": 3}),
        ("scheduler/scheduler_config.json", {"shift": "much"}),
        ("scheduler/scheduler_config.json", {"base_image_seq_len": 4096}),
        ("model_index.json", {"vae": "diffusers"}),
        ("model_index.json", {"vae": 7}),
        ("model_index.json", {"tokenizer": []}),
    ],
)
def test_no_value_of_a_config_is_more_than_a_problem_of_its_field(tmp_path: Path, file: str, change: dict) -> None:
    model = copied(tmp_path)
    config = model / file
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    for name, color in (("train", "red"), ("held", "blue")):
        line = {"id": name, "prompt_av": f"a {color} ball", "prompt_v": "a ball", "prompt_a": "a beep"}
        (tmp_path / name).write_text(json.dumps(line))
    tree = {
        "steps": 1, "backbone": {"name": "ltx2", "path": str(model)}, "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
        "prompts": {"train": str(tmp_path / "train"), "held_out": str(tmp_path / "held")},
        "algorithm": {"name": "omninft"},
    }  # fmt: skip
    try:
        preflight(JobSpec.parse(json.dumps(tree)))
    except SpecError as error:
        assert {pointer.split("/")[1] for pointer, _ in error.problems} <= {"backbone", "sampling"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([([2], [0, 8]), ([2], [0, 8])], "does not begin where another ends"),
        ([([2], [0, 8]), ([2], [16, 24])], "does not begin where another ends"),
        ([([-1, -2], [0, 8])], "malformed"),
        ([([2.0], [0, 8])], "malformed"),
        ([([True], [0, 4])], "malformed"),
        ([([2], ["0", "8"])], "malformed"),
        ([([2], [-8, 0])], "malformed"),
        ([([2], [0, 4])], "does not have the bytes"),
        ([([2], [0, 8]), ([0], [8, 8]), ([1], [8, 12])], ""),
    ],
)
def test_tensors_lie_one_behind_the_other(tmp_path: Path, entries: list, message: str) -> None:
    tensors = {
        str(number): {"dtype": "F32", "shape": shape, "data_offsets": place}
        for number, (shape, place) in enumerate(entries)
    }
    text, file = json.dumps(tensors).encode(), tmp_path / "x.safetensors"
    file.write_bytes(
        struct.pack("<Q", len(text)) + text + bytes(24 if "begin" in message else 12 if not message else 8)
    )
    if message:
        with pytest.raises(ModelError, match=message):
            read_safetensors_header(file)
    else:
        assert read_safetensors_header(file) == tensors
