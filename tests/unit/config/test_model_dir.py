"""Model directories that are whole, missing, torn or unsafe: made of headers alone, no ML library needed."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from accord.config.model_dir import inspect_model_dir, read_safetensors_header, resolve_model_path
from accord.errors import ModelError

CLASSES = {
    "transformer": ["diffusers", "LTX2VideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLLTX2Video"],
    "audio_vae": ["diffusers", "AutoencoderKLLTX2Audio"],
    "vocoder": ["ltx2", "LTX2Vocoder"],
    "connectors": ["ltx2", "LTX2TextConnectors"],
    "text_encoder": ["transformers", "Gemma3ForConditionalGeneration"],
    "tokenizer": ["transformers", "GemmaTokenizerFast"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
PARTS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn", "ff", "audio_ff")


def safetensors(names) -> bytes:
    header = {
        name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * index, 24 * index + 24]}
        for index, name in enumerate(names)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(24 * len(header))


def write_model(root: Path, depth: int = 3) -> Path:
    root.mkdir(parents=True)
    (root / "model_index.json").write_text(
        json.dumps({"_class_name": "LTX2Pipeline", "processor": [None, None], **CLASSES})
    )
    configs = {
        "transformer": {"num_layers": depth, "in_channels": 8, "audio_in_channels": 16},
        "vae": {"patch_size": 4, "spatio_temporal_scaling": [True, True, True, False]},
        "audio_vae": {"sample_rate": 16000, "mel_hop_length": 160},
        "vocoder": {"output_sampling_rate": 24000},
        "connectors": {},
        "text_encoder": {},
    }
    names = [f"transformer_blocks.{block}.{part}.to_q.weight" for block in range(depth) for part in PARTS]
    for component, config in configs.items():
        (root / component).mkdir()
        (root / component / "config.json").write_text(json.dumps(config))
        weights = safetensors(names if component == "transformer" else ["weight"])
        (root / component / "model.safetensors").write_bytes(weights)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"use_dynamic_shifting": True, "shift_terminal": 0.1})
    )
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    return root


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "model")


def test_facts_of_a_whole_directory(model):
    facts = inspect_model_dir(str(model))
    assert (facts.depth, facts.temporal_compression, facts.spatial_compression) == (3, 8, 32)
    assert (facts.video_channels, facts.audio_channels, facts.sample_rate) == (8, 16, 24000)
    assert facts.modalities == ("video", "audio") and facts.block_parts == frozenset(PARTS)
    assert facts.video_grid(121, 512, 768) == (16, 16, 24)
    assert facts.audio_tokens(121, 24.0) == 126


def test_the_built_in_name_leads_into_the_package():
    path = resolve_model_path("builtin:tiny-ltx2")
    assert path.parts[-3:] == ("world", "pretrained", "tiny-ltx2")


def rewrite(path: Path, **changes) -> None:
    tree = json.loads(path.read_text())
    tree.update(changes)
    path.write_text(json.dumps(tree))


def drop(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


BREAK = {
    "no index": (lambda m: (m / "model_index.json").unlink(), "model_index.json: missing"),
    "index is not JSON": (lambda m: (m / "model_index.json").write_text("{"), "not readable as JSON"),
    "another pipeline": (lambda m: rewrite(m / "model_index.json", _class_name="FluxPipeline"), "not 'LTX2Pipeline'"),
    "custom pipeline": (
        lambda m: rewrite(m / "model_index.json", _class_name=["pipeline", "Mine"]), "not 'LTX2Pipeline'"
    ),
    "class of another library": (
        lambda m: rewrite(m / "model_index.json", vocoder=["my_code", "LTX2Vocoder"]), "only classes of diffusers"
    ),
    "another class": (
        lambda m: rewrite(m / "model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]),
        "expected LTX2VideoTransformer3DModel",
    ),
    "component missing": (lambda m: drop(m / "vocoder"), "'vocoder' is missing"),
    "config missing": (lambda m: (m / "vae" / "config.json").unlink(), "config.json: missing"),
    "weights missing": (lambda m: (m / "vae" / "model.safetensors").unlink(), "no .safetensors weights"),
    "tokenizer empty": (lambda m: (m / "tokenizer" / "tokenizer.json").unlink(), "neither tokenizer.json"),
    "scheduler config missing": (
        lambda m: (m / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json: missing"
    ),
    "shard missing": (
        lambda m: (m / "vae" / "x.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'),
        "gone.safetensors: missing",
    ),
    "pickle": (lambda m: (m / "vae" / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: is a pickle"),
    "pickle deep down": (lambda m: (m / "vae" / "extra.PT").write_bytes(b"x"), "is a pickle"),
    "code": (lambda m: (m / "transformer" / "modeling.py").write_text(""), "modeling.py: is code"),
    "auto_map": (lambda m: rewrite(m / "text_encoder" / "config.json", auto_map={"AutoModel": "x.Y"}), "custom code"),
    "auto_map of the tokenizer": (
        lambda m: (m / "tokenizer" / "tokenizer_config.json").write_text('{"auto_map": {}}'), "custom code"
    ),
    "depth disagrees": (lambda m: rewrite(m / "transformer" / "config.json", num_layers=7), "weights hold 3"),
    "config value of the wrong kind": (
        lambda m: rewrite(m / "audio_vae" / "config.json", sample_rate="fast"), "value of the wrong kind"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAK)
def test_a_broken_directory_is_refused_by_name(model, case):
    damage, message = BREAK[case]
    damage(model)
    with pytest.raises(ModelError, match=message):
        inspect_model_dir(str(model))


def test_missing_directory(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        inspect_model_dir(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kept", [0, 5, 40, -1, -30])
def test_torn_weights_at_any_length(model, kept):
    file = model / "transformer" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(ModelError, match=r"model.safetensors: (torn|not a safetensors)"):
        inspect_model_dir(str(model))
    file.write_bytes(whole + b"tail")
    with pytest.raises(ModelError, match="torn"):
        inspect_model_dir(str(model))


def test_headers_that_lie(tmp_path):
    def write(tree) -> Path:
        text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        return path

    with pytest.raises(ModelError, match="bytes its shape needs"):
        read_safetensors_header(write({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}))
    with pytest.raises(ModelError, match="malformed"):
        read_safetensors_header(write({"a": {"dtype": "F32"}}))
    with pytest.raises(ModelError, match="not a safetensors"):
        read_safetensors_header(write(b"\x80\x04not json"))
    with pytest.raises(ModelError, match="not a safetensors"):
        read_safetensors_header(write([1]))


def test_needs_no_ml_library():
    code = (
        "import sys; import accord.config.preflight; "
        "print([m for m in ('torch', 'numpy', 'safetensors', 'diffusers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
