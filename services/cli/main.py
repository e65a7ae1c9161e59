"""Entry point of the `accord` command: Ctrl-C is quiet even while the commands are still being imported."""

from __future__ import annotations

import signal
import sys

from services.signals import INTERRUPTED, leave_at_once


def app() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, leave_at_once)
    try:
        from services.cli.commands import app as commands

        commands()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    app()
