"""The process allows itself the files that its connections need."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging, resource
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))
from services.api.server import allow_files
allow_files(100)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run(hard: int) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(hard=hard)], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip(), done.stderr


def test_the_soft_limit_is_raised_to_what_connections_need() -> None:
    assert run(1000) == ("456", "")


def test_what_cannot_be_raised_is_told() -> None:
    allowed, told = run(400)
    assert allowed == "400" and "ACCORD_MAX_CONNECTIONS" in told and "456" in told
