"""One thread per process unless a test says otherwise: several threads on a busy machine wait for each other."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCORD_INPUT_ROOTS", f"{tempfile.gettempdir()}:{Path(__file__).parents[1]}")
"""Tests write what their jobs name into temporary folders."""
