"""What can be known of a file that `torch.save` wrote without torch: whether it is whole, and whether it names code.

Such a file is a zip with a pickle in it. A pickle may call whatever it names; tensors need a few names of torch alone.
The check here says early and in plain words what `torch.load(weights_only=True)` refuses when the weights are read.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from accord.config.files import open_file
from accord.config.paths import LORA_BYTES
from accord.errors import InputError, ModelError

_PICKLE_BYTES = 256 * 2**20
_PLAIN = {"torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter", "collections"}
"""Modules whose names stand in the pickles of tensors."""


def inspect_torch_file(path: Path) -> None:
    """Raise ModelError when a file is missing, torn, of another kind, or names code besides that of tensors."""
    try:
        with open_file(path, 4 * LORA_BYTES) as file, zipfile.ZipFile(file) as archive:
            pickles = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _PICKLE_BYTES:
                raise ModelError(f"{path}: holds no data.pkl as torch.save writes it; save the state dict again")
            names = list(_names(archive.read(pickles[0])))
    except InputError as error:
        raise ModelError(str(error)) from error
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError) as error:
        raise ModelError(f"{path}: torn, or not written by torch.save ({error}); copy it again") from error
    for name in names:
        if name.split(" ")[0] not in _PLAIN:
            raise ModelError(
                f"{path}: names the code {name.replace(' ', '.')}, and weights need none; save the state dict alone"
            )


def _names(pickle: bytes) -> Iterator[str]:
    """`module name` of everything that a pickle would look up."""
    strings: list[str] = []
    for code, argument, _ in pickletools.genops(pickle):
        if code.name in {"GLOBAL", "INST"}:
            yield str(argument)
        elif code.name == "STACK_GLOBAL":
            yield " ".join(strings[-2:]) if len(strings) > 1 else "an unknown name"
        elif isinstance(argument, str):
            strings.append(argument)
