"""A model directory made of headers alone, and prompt files."""

import importlib.util
import json
from pathlib import Path

import pytest


def _write_model(root: Path) -> Path:
    where = Path(__file__).parent / "backbones" / "ltx2" / "test_model_dir.py"
    spec = importlib.util.spec_from_file_location("model_dir_builder", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_model(root)


@pytest.fixture
def job_tree(tmp_path) -> dict:
    """A spec that passes."""
    for name, word in (("train", "red"), ("held_out", "blue")):
        text = f"a {word} ball"
        line = {"id": word, "prompt_av": text, "prompt_v": text, "prompt_a": text}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return {
        "steps": 2,
        "backbone": {"name": "ltx2", "path": str(_write_model(tmp_path / "model"))},
        "sampling": {"frames": 25, "height": 32, "width": 64, "num_steps": 8},
        "prompts": {
            "train": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held_out.jsonl"), "per_step": 2,
            "group_size": 2,
        },
        "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
        "algorithm": {"name": "omninft"},
    }  # fmt: skip
