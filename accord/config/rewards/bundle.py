"""Where a reward's weights lie: in a bundle of several rewards' weights, in a folder of their own, or in one file.

The bundle is laid out as OmniNFT publishes its own: `HPSv3/HPSv3.safetensors`, `VideoReward/`, `CLAP/`,
`audiobox-aesthetics/checkpoint.pt`, `synchformer/synchformer_state_dict.pth`, `ImageBind/imagebind_huge.pth`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from accord.config.contract import Problem, RewardSpec
from accord.config.files import kind_of, remembered
from accord.config.paths import InputPath, NamedPath, is_path
from accord.errors import UserError


def part(path: str | Path, folder: str, *files: str) -> Path:
    """Find a reward's weights by any of the three ways in which a job may name them.

    `path` is the bundle, the folder of this reward, or its file. `folder` is the name that the folder has in the
    bundle. `files` are the names that a file of weights may have in it, the first that is there wins; without any, the
    folder itself is the part. What is not there is returned as the place where it should be, for a reader to refuse.
    """
    root = Path(path)
    if kind_of(root) != "directory":
        return root
    home = root / folder if kind_of(root / folder) == "directory" else root
    if not files:
        return home
    return next((home / name for name in files if kind_of(home / name) == "file"), home / files[0])


class BundledReward(RewardSpec):
    """Base of a reward whose weights may lie in a bundle: only its own part is looked at and pinned."""

    folder: ClassVar[str]
    """Name of its folder in the bundle."""
    weight_files: ClassVar[tuple[str, ...]] = ()
    """Names that its file of weights may have; none: the whole folder is the part."""

    path: Annotated[str, InputPath("directory")] = Field(min_length=1, max_length=4096)
    """The bundle, the folder of this reward in it, or its file of weights."""

    @property
    def weights(self) -> Path:
        """Its part of the bundle, whether it is there or not."""
        return part(self.path, self.folder, *self.weight_files)

    @override
    def files(self) -> Iterable[NamedPath]:
        """Its part alone."""
        if is_path(self.path):
            yield NamedPath(("path",), str(self.weights), InputPath("file" if self.weight_files else "directory"))


def told(field: str, inspect: Callable[[str], object], path: str) -> Iterator[Problem]:
    """What an inspection of files finds wrong, at the field that named them."""
    try:
        remembered(inspect, path)
    except UserError as error:
        yield field, str(error)
