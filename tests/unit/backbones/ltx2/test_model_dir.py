"""Model directories that are whole, missing, torn or unsafe: made of headers alone, no ML library needed."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from accord.backbones.ltx2.model_dir import inspect_model_dir, resolve_model_path
from accord.backbones.ltx2.shapes import REQUIRED
from accord.config.weights import read_safetensors_header
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


VIDEO, AUDIO, TEXT = 8, 6, 5
WIDTHS = {
    "num_attention_heads": 2, "attention_head_dim": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 3,
    "cross_attention_dim": TEXT, "audio_cross_attention_dim": TEXT, "out_channels": 8, "audio_out_channels": 16,
}  # fmt: skip
ENDS = {
    "proj_in.weight": (VIDEO, 8), "audio_proj_in.weight": (AUDIO, 16), "proj_out.weight": (8, VIDEO),
    "audio_proj_out.weight": (16, AUDIO), "scale_shift_table": (2, VIDEO),
}  # fmt: skip
BLOCK = {
    "attn1.to_q.weight": (VIDEO, VIDEO), "attn2.to_q.weight": (VIDEO, VIDEO), "attn2.to_k.weight": (VIDEO, TEXT),
    "audio_attn1.to_q.weight": (AUDIO, AUDIO), "audio_attn2.to_q.weight": (AUDIO, AUDIO),
    "audio_attn2.to_k.weight": (AUDIO, TEXT), "audio_to_video_attn.to_q.weight": (AUDIO, VIDEO),
    "audio_to_video_attn.to_k.weight": (AUDIO, AUDIO), "video_to_audio_attn.to_q.weight": (AUDIO, AUDIO),
    "video_to_audio_attn.to_k.weight": (AUDIO, VIDEO), "ff.net.2.weight": (VIDEO, 32),
    "audio_ff.net.2.weight": (AUDIO, 24), "scale_shift_table": (6, VIDEO), "attn1.norm_q.weight": (VIDEO,),
    "audio_norm3.weight": (AUDIO,),
}  # fmt: skip


def safetensors(shapes) -> bytes:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


CONNECTORS = (
    "text_proj_in.weight",
    *(
        f"{stream}_connector.{name}" for stream in ("video", "audio")
        for name in ("learnable_registers", "transformer_blocks.0.to_q.weight", "transformer_blocks.0.to_q.bias")
    ),
)  # fmt: skip
CAPTIONS = tuple(
    f"{stream}caption_projection.linear_{layer}.{part}"
    for stream in ("", "audio_") for layer in (1, 2) for part in ("weight", "bias")
)  # fmt: skip


def transformer_shapes(depth: int = 3) -> dict[str, tuple[int, ...]]:
    biases = {f"{name.removesuffix('weight')}bias": shape[:1] for name, shape in ENDS.items()}
    return (
        dict.fromkeys((*REQUIRED["transformer"], *CAPTIONS), (2,))
        | ENDS
        | biases
        | {f"transformer_blocks.{b}.{name}": shape for b in range(depth) for name, shape in BLOCK.items()}
    )


def weights_of(component: str) -> str:
    return "model.safetensors" if component == "text_encoder" else "diffusion_pytorch_model.safetensors"


def write_model(root: Path, depth: int = 3) -> Path:
    root.mkdir(parents=True)
    (root / "model_index.json").write_text(
        json.dumps({"_class_name": "LTX2Pipeline", "processor": [None, None], **CLASSES})
    )
    configs = {
        "transformer": {"num_layers": depth, "in_channels": 8, "audio_in_channels": 16, **WIDTHS},
        "vae": {"patch_size": 4, "spatio_temporal_scaling": [True, True, True, False], "latent_channels": 8},
        "audio_vae": {"sample_rate": 16000, "mel_hop_length": 160},
        "vocoder": {"output_sampling_rate": 24000},
        "connectors": {},
        "text_encoder": {"architectures": ["Gemma3ForConditionalGeneration"]},
    }
    shapes = {
        "transformer": transformer_shapes(depth), "vae": {**dict.fromkeys(REQUIRED["vae"], (2,)), "latents_mean": (8,)},
        "audio_vae": dict.fromkeys(REQUIRED["audio_vae"], (2,)),
        "vocoder": dict.fromkeys(("conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias"), (2,)),
        "connectors": dict.fromkeys(CONNECTORS, (2,)),
    }  # fmt: skip
    for component, config in configs.items():
        (root / component).mkdir()
        (root / component / "config.json").write_text(json.dumps(config))
        weights = safetensors(shapes.get(component, {"model.embed_tokens.weight": (2, 4)}))
        (root / component / weights_of(component)).write_bytes(weights)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"use_dynamic_shifting": True, "shift_terminal": 0.1})
    )
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text('{"model": {}}')
    return root


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "model")


def test_facts_of_a_whole_directory(model):
    facts = inspect_model_dir(str(model))
    assert (facts.depth, facts.temporal_compression, facts.spatial_compression) == (3, 8, 32)
    assert (facts.video_channels, facts.audio_channels, facts.sample_rate) == (8, 16, 24000)
    assert facts.modalities == ("video", "audio") and facts.block_parts == frozenset(PARTS)
    assert facts.crossings == {("video", "audio"), ("audio", "video")}
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


def shard(component: Path, weight_map: dict[str, str], keep: bool = False) -> None:
    if not keep:
        (component / weights_of(component.name)).unlink()
    index = component / f"{weights_of(component.name)}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def retype(file: Path, kind: str) -> None:
    file.write_bytes(file.read_bytes().replace(b'"F32"', f'"{kind}"'.encode()))


BREAK = {
    "no index": (lambda m: (m / "model_index.json").unlink(), "give the folder of a pipeline"),
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
    "config missing": (lambda m: (m / "vae" / "config.json").unlink(), "config.json: No such file"),
    "weights missing": (lambda m: (m / "vae" / weights_of("vae")).unlink(), "no .safetensors weights"),
    "tokenizer empty": (lambda m: (m / "tokenizer" / "tokenizer.json").unlink(), "neither tokenizer.json"),
    "scheduler config missing": (
        lambda m: (m / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json: No such file"
    ),
    "shard missing": (
        lambda m: shard(m / "vae", {"a": "gone.safetensors"}), r"gone\.safetensors: No such file",
    ),
    "shard elsewhere": (lambda m: shard(m / "vae", {"a": "../text_encoder/model.safetensors"}), "no weight_map from"),
    "index beside a whole file": (lambda m: shard(m / "vae", {"a": "b.safetensors"}, keep=True), "keep one of them"),
    "index of nothing": (lambda m: shard(m / "vae", {}), "no weight_map"),
    "only a variant": (
        lambda m: (m / "vae" / weights_of("vae")).rename(m / "vae" / "diffusion_pytorch_model.fp16.safetensors"),
        r"holds diffusion_pytorch_model\.fp16\.safetensors, but what is loaded is diffusion_pytorch_model\.safetensors",
    ),
    "shards without an index": (
        lambda m: (m / "vae" / weights_of("vae")).rename(
            m / "vae" / "diffusion_pytorch_model-00001-of-00002.safetensors"
        ),
        "without diffusion_pytorch_model.safetensors.index.json",
    ),
    "a name of transformers": (
        lambda m: (m / "vae" / weights_of("vae")).rename(m / "vae" / "model.safetensors"), "but what is loaded is"
    ),
    "half a processor": (
        lambda m: (
            rewrite(m / "model_index.json", processor=["transformers", "Gemma4Processor"]),
            (m / "processor").mkdir(), (m / "processor" / "processor_config.json").write_text("{}"),
        ),
        "no whole processor",
    ),
    "half a prompt enhancer": (
        lambda m: rewrite(m / "model_index.json", prompt_enhancer=["transformers", "Gemma4ForConditionalGeneration"]),
        "prompt_enhancer/config.json",
    ),
    "pickle": (lambda m: (m / "vae" / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: is a pickle"),
    "pickle deep down": (lambda m: (m / "vae" / "extra.PT").write_bytes(b"x"), "is a pickle"),
    "code": (lambda m: (m / "transformer" / "modeling.py").write_text(""), "modeling.py: is code"),
    "auto_map": (lambda m: rewrite(m / "text_encoder" / "config.json", auto_map={"AutoModel": "x.Y"}), "custom code"),
    "auto_map of the tokenizer": (
        lambda m: (m / "tokenizer" / "tokenizer_config.json").write_text('{"auto_map": {}}'), "custom code"
    ),
    "class of the wrong library": (
        lambda m: rewrite(m / "model_index.json", vocoder=["diffusers", "LTX2Vocoder"]), "it is one of ltx2"
    ),
    "text encoder of the wrong library": (
        lambda m: rewrite(m / "model_index.json", text_encoder=["diffusers", "Gemma3ForConditionalGeneration"]),
        "it is one of transformers",
    ),
    "a text encoder that nobody saved": (
        lambda m: rewrite(m / "model_index.json", text_encoder=["transformers", "LlamaModel"]),
        r"was saved by \['Gemma3ForConditionalGeneration'\], but model_index.json loads a LlamaModel",
    ),
    "a text encoder without a name": (
        lambda m: (m / "text_encoder" / "config.json").write_text("{}"), "saved by nobody that it names"
    ),
    "a text encoder beyond its weights": (
        lambda m: rewrite(m / "text_encoder" / "config.json", text_config={"hidden_size": 99}),
        r"embed_tokens.weight is 2 x 4 in the weights and any x 99 by config.json \(hidden_size\)",
    ),
    "quantised weights": (
        lambda m: retype(m / "vae" / weights_of("vae"), "I32"), r"conv_in\.conv\.\w+ is I32, which is quantised"
    ),
    "tokenizer torn": (lambda m: (m / "tokenizer" / "tokenizer.json").write_text("{"), "not readable as JSON"),
    "tokenizer of nothing": (lambda m: (m / "tokenizer" / "tokenizer.json").write_text("{}"), "no model of a tok"),
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
    with pytest.raises(ModelError, match=r"index\.json: No such file"):
        inspect_model_dir(str(tmp_path / "nowhere"))


def reshape(model: Path, **changes) -> None:
    """Give tensors other shapes; None drops one."""
    kept = {name: shape for name, shape in (transformer_shapes() | changes).items() if shape is not None}
    (model / "transformer" / weights_of("transformer")).write_bytes(safetensors(kept))


MISFIT = {
    "in_channels": ("proj_in.weight is 8 x 8", "8 x 9"),
    "out_channels": ("proj_out.weight is 8 x 8", "9 x 8"),
    "audio_in_channels": ("audio_proj_in.weight is 6 x 16", "6 x 9"),
    "audio_out_channels": ("audio_proj_out.weight is 16 x 6", "9 x 6"),
    "cross_attention_dim": ("transformer_blocks.0.attn2.to_k.weight is 8 x 5", "8 x 9"),
    "audio_cross_attention_dim": ("transformer_blocks.0.audio_attn2.to_k.weight is 6 x 5", "6 x 9"),
    "num_attention_heads": ("proj_in.weight is 8 x 8", "36 x 8"),
    "attention_head_dim": ("proj_in.weight is 8 x 8", "18 x 8"),
    "audio_num_attention_heads": ("audio_proj_in.weight is 6 x 16", "27 x 16"),
    "audio_attention_head_dim": ("audio_proj_in.weight is 6 x 16", "18 x 16"),
}


@pytest.mark.parametrize("field", MISFIT)
def test_weights_that_are_not_the_configs_are_refused(model, field):
    rewrite(model / "transformer" / "config.json", **{field: 9})
    tensor, wanted = MISFIT[field]
    with pytest.raises(ModelError, match=rf"transformer: {tensor} in the weights and {wanted} by config.*{field}"):
        inspect_model_dir(str(model))


@pytest.mark.parametrize("name", [name for name in BLOCK if "to_q" in name or "to_k" in name])
def test_every_block_is_compared(model, name):
    reshape(model, **{f"transformer_blocks.2.{name}": (7, 7)})
    with pytest.raises(ModelError, match=f"transformer_blocks.2.{name} is 7 x 7 in the weights"):
        inspect_model_dir(str(model))


def test_latents_of_another_width(model):
    rewrite(model / "vae" / "config.json", latent_channels=128)
    with pytest.raises(ModelError, match="vae: latents_mean is 8 in the weights and 128 by config"):
        inspect_model_dir(str(model))


def test_what_a_config_leaves_open_is_not_compared(model):
    reshape(model, **{"proj_out.weight": (12, VIDEO)})
    rewrite(model / "transformer" / "config.json", out_channels=None)
    inspect_model_dir(str(model))


def test_only_parts_with_matrices_can_be_adapted_and_edges_are_seen(model):
    facts = inspect_model_dir(str(model))
    assert not {"scale_shift_table", "audio_norm3"} & facts.block_parts
    for missing in ("video_to_audio_attn", "audio_to_video_attn"):
        reshape(model, **{name: None for name in transformer_shapes() if missing in name})
        facts = inspect_model_dir(str(model))
        assert facts.crossings == {("video", "audio") if missing[0] == "v" else ("audio", "video")}


@pytest.mark.parametrize("kept", [0, 5, 40, -1, -30])
def test_torn_weights_at_any_length(model, kept):
    file = model / "transformer" / weights_of("transformer")
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors: (torn|not a safetensors)"):
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
