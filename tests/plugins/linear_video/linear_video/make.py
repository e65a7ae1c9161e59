"""`python -m linear_video.make FOLDER`: a model whose weights are drawn from a fixed seed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from linear_video.model import LinearNetwork
from linear_video.spec import CONFIG, WEIGHTS, inspect

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"depth": 2, "patch": 8, "width": 16}))
    torch.manual_seed(0)
    save_file(LinearNetwork(inspect(str(folder))).state_dict(), folder / WEIGHTS)
