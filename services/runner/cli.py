"""Entry point of the `accord` command: Ctrl-C is quiet even while the commands are still being imported."""

from __future__ import annotations

import sys


def app() -> None:
    """Run the command line."""
    try:
        from services.runner.commands import app as commands

        commands()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    app()
