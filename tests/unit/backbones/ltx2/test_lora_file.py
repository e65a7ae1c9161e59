"""An adapter to start from is held against job and model by headers alone; what would fit is said."""

import json
import math
import struct
from pathlib import Path

import pytest

from accord.backbones.ltx2.lora_file import read_lora_file
from accord.backbones.ltx2.model_dir import inspect_model_dir
from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.config.weights import read_safetensors_header
from accord.errors import ModelError, SpecError

PARTS = ("attn1", "audio_to_video_attn", "ff")


def write(path: Path, shapes: dict, metadata: dict | None = None) -> Path:
    header, end = {"__metadata__": metadata or {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return path


def adapter(model: str, rank: int = 4, prefix: str = "transformer", parts=PARTS) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter on `parts` of every block of a model."""
    shapes = {}
    for name, entry in read_safetensors_header(
        Path(model) / "transformer" / "diffusion_pytorch_model.safetensors"
    ).items():
        pieces = name.split(".")
        if len(pieces) > 3 and pieces[2] in parts and len(entry["shape"]) == 2:
            layer = f"{prefix}.{name.removesuffix('.weight')}"
            out, into = entry["shape"]
            shapes |= {f"{layer}.lora_A.weight": (rank, into), f"{layer}.lora_B.weight": (out, rank)}
    return shapes


@pytest.fixture
def tree(job_tree, tmp_path) -> dict:
    """A job that starts from an adapter which fits."""
    job_tree["backbone"] |= {
        "lora": {"rank": 4, "targets": list(PARTS)},
        "init_lora": str(tmp_path / "start.safetensors"),
    }
    write(tmp_path / "start.safetensors", adapter(job_tree["backbone"]["path"]))
    return job_tree


def problems(tree) -> dict[str, str]:
    try:
        preflight(JobSpec.parse(json.dumps(tree)))
    except SpecError as error:
        return dict(error.problems)
    return {}


@pytest.mark.parametrize("prefix", ["transformer", "diffusion_model"])
def test_an_adapter_that_fits_passes_under_both_names(tree, tmp_path, prefix):
    write(tmp_path / "start.safetensors", adapter(tree["backbone"]["path"], prefix=prefix))
    assert problems(tree) == {}


MISFITS = {
    "another rank": (lambda model: adapter(model, rank=8), "has rank 8, the job's adapter 4; set lora.rank = 8"),
    "fewer parts": (
        lambda model: adapter(model, parts=("attn1", "ff")),
        'on attn1, ff, the job on attn1, audio_to_video_attn, ff; set lora.targets = ["attn1", "ff"]',
    ),
    "more parts": (
        lambda model: adapter(model, parts=(*PARTS, "attn2")), 'set lora.targets = ["attn1", "attn2", "audio_to_video'
    ),
    "another depth": (
        lambda model: adapter(model) | {
            "transformer.transformer_blocks.3.ff.net.2.lora_A.weight": (4, 32),
            "transformer.transformer_blocks.3.ff.net.2.lora_B.weight": (8, 4),
        },
        "only the file has transformer_blocks.3.ff.net.2",
    ),
    "another width": (
        lambda model: adapter(model) | {"transformer.transformer_blocks.1.ff.net.2.lora_A.weight": (4, 99)},
        "transformer_blocks.1.ff.net.2 is for a layer of (8, 99), the model's is (8, 32)",
    ),
    "alphas": (lambda model: adapter(model) | {"transformer.x.alpha": ()}, "transformer.x.alpha is no part of"),
    "nothing": (lambda model: {}, "nothing is no part of an adapter"),
    "two kinds of names": (
        lambda model: adapter(model) | adapter(model, prefix="diffusion_model"), "under diffusion_model, transformer"
    ),
    "several ranks": (
        lambda model: adapter(model) | {k: (2, 8) if "_A" in k else (8, 2) for k in adapter(model, parts=("attn1",))},
        "different ranks (2, 4)",
    ),
    "half a layer": (
        lambda model: {k: s for k, s in adapter(model).items() if not k.endswith("0.ff.net.2.lora_B.weight")},
        "unequal A and B",
    ),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_is_named_with_its_remedy(tree, tmp_path, misfit):
    make, message = MISFITS[misfit]
    write(tmp_path / "start.safetensors", make(tree["backbone"]["path"]))
    found = problems(tree)
    assert found.keys() == {"/backbone/init_lora"} and message in found["/backbone/init_lora"]


def test_a_file_that_is_missing_or_torn(tree, tmp_path):
    file = tmp_path / "start.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert "torn" in problems(tree)["/backbone/init_lora"]
    file.unlink()
    assert "No such file" in problems(tree)["/backbone/init_lora"]


@pytest.mark.parametrize("kind", ["I32", "U32"])
def test_whole_numbers_are_no_adapter(tree, tmp_path, kind):
    """They are something quantised, whose scale stands nowhere that is known."""
    file = tmp_path / "start.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', f'"{kind}"'.encode()))
    assert f"is {kind}; only floating-point" in problems(tree)["/backbone/init_lora"]


def metadata(**config) -> dict:
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}


PEFT = {"r": 4, "lora_alpha": 16, "peft_type": "LORA"}


@pytest.mark.parametrize(
    ("stated", "scale"),
    [
        (None, 1.0),
        (metadata(r=4, lora_alpha=6), 1.5),
        (metadata(r=4, lora_alpha=6, use_rslora=True, alpha_pattern={}), 3.0),
        ({"lora_adapter_metadata": json.dumps(PEFT)}, 4.0),
        ({"adapter_config": json.dumps(PEFT)}, 4.0),
        ({"lora_rank": "4", "lora_alpha": "16"}, 4.0),
        ({"ss_network_dim": "4", "ss_network_alpha": "16"}, 4.0),
        ({"ss_network_dim": "4", "ss_network_alpha": "None"}, 1.0),
        ({"network_alpha": "16.0"}, 4.0),
        ({"transformer.r": "4", "transformer.lora_alpha": "16"}, 4.0),
        ({"r": "4", "lora_alpha": "16", "use_rslora": "True"}, 8.0),
        ({"lora_alpha": "16", **metadata(r=4, lora_alpha=16)}, 4.0),
        ({"r": "4", "lora_alpha": "16", "use_rslora": "False"}, 4.0),
        (metadata(r=4, lora_alpha=16, use_rslora="false", use_dora="None"), 4.0),
        ({"ss_alpha_mask": "1", "alphabet": "latin"}, 1.0),
    ],
)
def test_the_scale_that_a_file_states(tree, tmp_path, stated, scale):
    file = write(tmp_path / "start.safetensors", adapter(tree["backbone"]["path"]), stated)
    found = read_lora_file(str(file))
    assert found.scale == scale and {*found.scales.values()} == {scale} and found.scales.keys() == found.layers.keys()
    assert found.rank == 4 and inspect_model_dir(tree["backbone"]["path"]).depth == 3
    assert problems(tree) == {}


def with_alphas(path: Path, model: str, kind: str, value: bytes, layers=None, shape=(), stated=None) -> Path:
    """An adapter with an alpha tensor for its layers."""
    shapes = adapter(model)
    names = [name.removesuffix(".lora_A.weight") for name in shapes if "lora_A" in name][:layers]
    write(path, shapes, stated)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for name in names:
        header[f"{name}.alpha"] = {
            "dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + len(value)]
        }  # fmt: skip
        data += value
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("kind", "value", "shape"),
    [("F32", struct.pack("<f", 16), ()), ("BF16", struct.pack("<f", 16)[2:], ()), ("F16", struct.pack("<e", 16), (1,)),
     ("F64", struct.pack("<d", 16), ()), ("I64", struct.pack("<q", 16), ())],
)  # fmt: skip
def test_alphas_in_tensors(tree, tmp_path, kind, value, shape):
    file = tmp_path / "start.safetensors"
    with_alphas(file, tree["backbone"]["path"], kind, value, shape=shape)
    assert {*read_lora_file(str(file)).scales.values()} == {4.0} and problems(tree) == {}
    with_alphas(file, tree["backbone"]["path"], kind, value, shape=shape, stated={"ss_network_alpha": "16"})
    assert {*read_lora_file(str(file)).scales.values()} == {4.0}
    with_alphas(file, tree["backbone"]["path"], kind, value, shape=shape, stated={"ss_network_alpha": "8"})
    assert "has the scale 4 by its alpha tensors and 2 by the metadata's" in problems(tree)["/backbone/init_lora"]
    with_alphas(file, tree["backbone"]["path"], kind, value, layers=2, shape=shape)
    assert "states no alpha for" in problems(tree)["/backbone/init_lora"]
    with_alphas(file, tree["backbone"]["path"], kind, value, layers=2, shape=shape, stated={"lora_alpha": "16"})
    assert problems(tree) == {}


def test_alphas_by_layer(tree, tmp_path):
    pattern = {"attn1.to_q": 8, "transformer_blocks.1.ff.net.2": 2}
    stated = metadata(r=4, lora_alpha=16, alpha_pattern=pattern)
    file = write(tmp_path / "start.safetensors", adapter(tree["backbone"]["path"]), stated)
    found = read_lora_file(str(file)).scales
    assert {layer: scale for layer, scale in found.items() if scale != 4.0} == {
        **{f"transformer_blocks.{block}.attn1.to_q": 2.0 for block in range(3)}, "transformer_blocks.1.ff.net.2": 0.5,
    }  # fmt: skip


def test_a_config_beside_the_file(tree, tmp_path):
    write(tmp_path / "start.safetensors", adapter(tree["backbone"]["path"], prefix="base_model.model"))
    config = tmp_path / "adapter_config.json"
    for change, told in (
        ({}, ""), ({"use_rslora": True}, ""), ({"use_dora": True}, "DoRA"), ({"r": 8}, "says rank 8"),
        ({"lora_alpha": -1}, "must be positive"), ({"lora_alpha": "x"}, "which is no number"),
        ({"alpha_pattern": 3}, "is no table"),
    ):  # fmt: skip
        config.write_text(json.dumps(PEFT | change))
        assert told in problems(tree).get("/backbone/init_lora", "")
        assert bool(told) == bool(problems(tree))
    config.write_text(json.dumps(PEFT))
    assert read_lora_file(tree["backbone"]["init_lora"]).scale == 4.0
    config.write_text("{")
    assert "not readable as JSON" in problems(tree)["/backbone/init_lora"]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (metadata(use_dora=True), "DoRA"),
        (
            metadata(lora_alpha="many"),
            "lora_adapter_metadata is 'many', which is no number",
        ),
        (metadata(lora_alpha=6, alpha_pattern={"attn1": "x"}), "alpha of attn1"),
        (metadata(lora_alpha=6, alpha_pattern={"(a+)+$": 3}), "is no name of a layer"),
        ({"lora_adapter_metadata": "{"}, "is not JSON"),
        ({"lora_adapter_metadata": "[]"}, "not a LoRA config"),
        ({"lora_alpha": "16", **metadata(r=4, lora_alpha=8)}, "2 by the metadata's lora_adapter_metadata and 4 by the"),
        ({"lora_alpha": "16", "lora_rank": "8"}, "lora_rank says rank 8, its tensors have rank 4"),
        ({"ss_network_alpha": "nan"}, "positive and finite"),
        ({"ss_network_alpha": "0"}, "positive and finite"),
        ({"networkAlpha": "16"}, "'networkAlpha' in its metadata is no known name of an alpha; call it lora_alpha"),
        ({"LoRA_Alpha": "1.6e1"}, "no known name of an alpha"),
        (metadata(lora_alpha=True), "is True, which is no number"),
        (metadata(lora_alpha=6, use_rslora="perhaps"), "use_rslora in .* is 'perhaps'; it is true or false"),
        (metadata(lora_alpha=6, use_dora="True"), "DoRA"),
    ],
)
def test_metadata_that_cannot_be_followed(tree, tmp_path, stated, message):
    file = write(tmp_path / "start.safetensors", adapter(tree["backbone"]["path"]), stated)
    with pytest.raises(ModelError, match=message):
        read_lora_file(str(file))
