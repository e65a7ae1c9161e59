"""Entry point of the `accord` command.

Two things that can end it while the commands are still being imported are told in a line: Ctrl-C, and an installed
plug-in that breaks its contract.
"""

from __future__ import annotations

import signal
import sys

from accord.errors import PluginError
from services.signals import INTERRUPTED, leave_at_once


def app() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, leave_at_once)
    try:
        from services.cli.commands import app as commands

        commands()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app()
