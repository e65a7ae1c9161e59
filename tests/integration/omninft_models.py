"""The folder that examples/ltx2_omninft.toml names, `/models`, with tiny models in the published forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from accord.backbones.ltx2.model_dir import resolve_model_path
from accord.config.clap_dir import SHIPPED
from tests.integration.service import REPOSITORY
from tests.tiny_checkpoints import WRITERS
from tests.unit.reward_servers import tiny_qwen

EXAMPLE = REPOSITORY / "examples" / "ltx2_omninft.toml"
DEPTH = 48
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEMPLATES = {
    "HPSv3/hpsv3/dataset/data_collator_qwen.py": tiny_qwen.HPS_TEMPLATE,
    "VideoAlign/prompt_template.py": tiny_qwen.ALIGN_TEMPLATE,
}


def write_models(folder: Path) -> Path:
    """Write all of it below `folder`, the words as the authors' Python files; return the example, which names it."""
    for name in ("hpsv3", "videoalign", "audiobox", "desync"):
        WRITERS[name](folder)
    bundle = folder / "OmniNFT-Reward-Series"
    shutil.copytree(SHIPPED["builtin:tiny-clap"], bundle / "CLAP")
    for beside in bundle.rglob("prompt_template.txt"):
        beside.unlink()
    for name, words in TEMPLATES.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f'"""Not run."""\nimport nowhere\n\nINSTRUCTION = {words!r}\n', encoding="utf-8")
    _write_deep_model(folder / "LTX-2")
    (folder / "prompts").mkdir()
    for name, source in (("train", "world_train"), ("held_out", "world_heldout")):
        lines = (REPOSITORY / "examples" / "prompts" / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / "prompts" / f"{name}.jsonl").write_text(f"{lines[0]}\n{lines[-1]}\n", encoding="utf-8")
    job = folder / "job.toml"
    job.write_text(EXAMPLE.read_text(encoding="utf-8").replace('"/models', f'"{folder}'), encoding="utf-8")
    return job


def _write_deep_model(root: Path) -> None:
    """The tiny LTX-2 with as many blocks as the real one: those behind its own add nothing to the streams."""
    tiny = resolve_model_path("builtin:tiny-ltx2")
    shutil.copytree(tiny, root, ignore=shutil.ignore_patterns("*.png"))
    where = root / "transformer"
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    state = load_file(where / WEIGHTS)
    own = [name for name in state if name.startswith("transformer_blocks.0.")]
    for block in range(config["num_layers"], DEPTH):
        for name in own:
            state[name.replace(".0.", f".{block}.", 1)] = state[name] * 0.0
    (where / "config.json").write_text(json.dumps(config | {"num_layers": DEPTH}), encoding="utf-8")
    save_file(state, where / WEIGHTS, metadata={"format": "pt"})
