"""Every Python example in a README, a card or the docs runs as it stands.

A block that begins with the name of a file (`# package/module.py: …`) is that file of a package; the others are run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accord.types import Clip, Prompt
from tiny_models.card import Measured, write_card

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".venv", ".git", "node_modules", "runs"}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.py)\b")


def examples() -> Iterator[tuple[str, str]]:
    """Page and block."""
    for page in sorted(ROOT.rglob("*.md")):
        if not SKIPPED & {*page.relative_to(ROOT).parts}:
            for block in BLOCK.findall(page.read_text(encoding="utf-8")):
                yield str(page.relative_to(ROOT)), block


RUN = [(page, block) for page, block in examples() if not FILE.match(block)]
FILES = [(page, block) for page, block in examples() if FILE.match(block)]


@pytest.mark.parametrize("example", RUN, ids=[f"{page}-{index}" for index, (page, _) in enumerate(RUN)])
def test_an_example_runs(example: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    page, block = example
    monkeypatch.chdir(ROOT)
    made: dict[str, Any] = {}
    exec(compile(block, page, "exec"), made)
    if "clip" in made:
        assert len(made["clip"].frames[0]) == 25 and np.isfinite(made["clip"].audio.float().numpy()).all()


def test_the_card_that_is_written_is_the_one_that_ships(tmp_path: Path) -> None:
    shipped = ROOT / "accord/world/pretrained/tiny-ltx2"
    write_card(tmp_path, Measured(**json.loads((shipped / "measured.json").read_text(encoding="utf-8"))))
    for name in ("README.md", "measured.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (shipped / name).read_text(encoding="utf-8")


def test_the_reward_in_the_docs_scores_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _page, block in FILES:
        match = FILE.match(block)
        assert match is not None
        file = tmp_path / match[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")) == [
        "loudness/model.py", "loudness/spec.py", "score.py",
    ]  # fmt: skip  # the last one asks a real door, in test_rewards_serve.py
    from accord.plugins import load_impl, resolve

    spec = resolve("loudness.spec:LoudnessReward").parse('{"name": "loudness", "target_db": -20.0}')
    sound = np.full((1, 1600), 0.1, dtype=np.float32)
    clip = Clip(video_FHWC=np.zeros((5, 32, 32, 3), np.uint8), fps=12.0, audio_CS=sound, sample_rate=16000)
    ((score,),) = load_impl(spec)(spec).score([Prompt("a", "x", "x", "x")], [[clip]])
    assert abs(score.value - 1.0) < 1e-3 and "loudness.model" in sys.modules
