"""What every command has: two consoles, exit statuses, options, and errors that are told in a line.

Exit statuses: 0 done, 1 the job failed, 2 wrong usage or input, 3 nothing answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from accord.config.settings import Settings, variable_of
from accord.errors import (
    AccordError,
    CheckpointError,
    DeadlineExceeded,
    ServiceError,
    SpecError,
    StoreUnavailable,
    Unreachable,
    UnsafeStore,
    UserError,
)
from services.signals import interrupt_again

FAILED, USAGE, UNREACHABLE = 1, 2, 3
_AWAY = (Unreachable, StoreUnavailable, DeadlineExceeded)
_WRONG = (UserError, ServiceError, CheckpointError, UnsafeStore)

out, err = Console(), Console(stderr=True)

Port = Annotated[int | None, typer.Option(help="Port of the API (also ACCORD_PORT).", min=1, max=65535)]
JobId = Annotated[str, typer.Argument(help="Job id, as `accord submit` printed it.", show_default=False)]
JobFile = Annotated[Path, typer.Argument(help="A job file (TOML).", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", help="Change a field: `--set steps=5`, `--set rewards.0.weight=2`. Repeatable.")
]
RewardName = Annotated[str, typer.Argument(help="Reward, as a job names it.", show_default=False)]
RewardFields = Annotated[
    list[str], typer.Option("--set", help="Change a field of the reward: `--set path=DIR`. Repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


@contextmanager
def told() -> Iterator[None]:
    """Turn what goes wrong on purpose into one line and an exit status."""
    interrupt_again()
    try:
        yield
    except AccordError as error:
        said = [f"{at or '/'}: {why}" for at, why in error.problems] if isinstance(error, SpecError) else [str(error)]
        for line in said:
            err.print(f"[red]error:[/red] {escape(line)}", highlight=False, soft_wrap=True)
        away, wrong = isinstance(error, _AWAY), isinstance(error, _WRONG)
        raise typer.Exit(UNREACHABLE if away else USAGE if wrong else FAILED) from error


def settings_with(**changes: Any) -> Settings:
    """Settings from the environment. Raises ServiceError naming the variable that is wrong."""
    try:
        return Settings(**{name: value for name, value in changes.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"{variable_of(str(item['loc'][0]))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False)
        )
        raise ServiceError(f"a setting in the environment is wrong: {problems}") from None


def say(text: str) -> None:
    """Print a line as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)
