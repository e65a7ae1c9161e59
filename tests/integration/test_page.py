"""The page stays a page."""

import ast
import subprocess
import sys
from pathlib import Path

import learner.train


def test_page_is_short_and_free_of_infrastructure():
    text = Path(learner.train.__file__).read_text()
    assert len(text.splitlines()) <= 60
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert not roots & {"ray", "redis", "deepspeed"}


def test_page_runs_without_loading_ray_or_deepspeed():
    code = (
        "import sys, learner.train; bad = {'ray', 'redis', 'deepspeed'} & set(sys.modules); "
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_launching_the_group_needs_no_torch():
    code = "import sys, learner.workers; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
