"""One thread per process unless a test says otherwise: several threads on a busy machine wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
