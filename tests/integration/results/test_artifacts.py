"""The manifest lists results under opaque ids, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from accord.run_folder import RunFolder
from services.results.artifacts import write_artifacts


def test_results_are_listed_with_their_hashes(new_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = new_run(steps=1, pairs=1)
    (run_dir / "logs").mkdir()
    (run_dir / "logs" / "attempt-1.log").write_text("noise")
    (run_dir / ".report.html.12.tmp").write_text("half")
    (run_dir / "notes.py").write_text("print()")
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (run_dir / "clips" / "outside.json").symlink_to(secret)
    listing = write_artifacts(RunFolder(run_dir), "job-1")
    write_artifacts(RunFolder(run_dir), "job-1")  # its own file is never among them
    assert sorted(one.name.split("-")[0] for one in listing.artifacts) == [
        "adapter/pytorch_lora_weights.safetensors", "clips/red", "clips/red", "evaluation/step", "evaluation/step",
        "metrics.jsonl", "spec.json",
    ]  # fmt: skip
    assert json.loads((run_dir / "artifacts.json").read_text())["artifacts"] == [
        one.model_dump() for one in listing.artifacts
    ]
    adapter = next(one for one in listing.artifacts if one.name.startswith("adapter/"))
    assert adapter.id == hashlib.sha256(b"adapter/pytorch_lora_weights.safetensors" + b"job-1").hexdigest()[:16]
    assert adapter.sha256 == hashlib.sha256(b"weights of the adapter").hexdigest()
    assert (adapter.bytes, adapter.media_type) == (22, "application/octet-stream")


def test_a_linked_folder_is_not_followed(new_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = new_run(steps=1, pairs=0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "private.json").write_text("{}")
    (run_dir / "clips").symlink_to(tmp_path / "elsewhere")
    assert "clips/private.json" not in {one.name for one in write_artifacts(RunFolder(run_dir), "job-1").artifacts}
