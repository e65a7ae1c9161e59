"""Where the parts of a service find each other: the API, the job store, Ray; the embedded ones included."""

from __future__ import annotations

import json
import os
from pathlib import Path

from accord.config.settings import Settings
from accord.errors import StoreUnavailable, Unreachable

STORE_FILE = "store.url"
"""File in the data directory where an embedded store leaves its address (mode 0600: it holds the password)."""
RAY_FILE = "ray.json"
"""In the data directory while an embedded Ray runs there: its address and where its token is."""


def base_url(settings: Settings) -> str:
    """Where a client on this machine finds the API."""
    if settings.url:
        return settings.url.rstrip("/")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{host}:{settings.port}"


def store_url(settings: Settings) -> str:
    """The address of the job store: REDIS_URL, else the embedded store of the data directory.

    Raises StoreUnavailable when neither is there.
    """
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    try:
        return (settings.data_dir / STORE_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        raise StoreUnavailable(
            f"no job store: REDIS_URL is not set and no service runs on {settings.data_dir.resolve()}; "
            "start one with `accord up` or set REDIS_URL"
        ) from None


def ray_environment(settings: Settings) -> dict[str, str]:
    """The environment with which a process reaches Ray: RAY_ADDRESS, else the embedded one of the data directory.

    Raises Unreachable when neither is there.
    """
    if settings.ray_address:
        return {"RAY_ADDRESS": settings.ray_address}
    try:
        found = json.loads((settings.data_dir / RAY_FILE).read_text(encoding="utf-8"))
        return {"RAY_ADDRESS": str(found["address"]), **ray_token(Path(found["token_path"]))}
    except (OSError, ValueError, KeyError):
        raise Unreachable(
            f"no Ray: RAY_ADDRESS is not set and no service runs on {settings.data_dir.resolve()}; "
            "start one with `accord up` or set RAY_ADDRESS"
        ) from None


def ray_address(settings: Settings) -> str:
    """The address for `ray.init`; also sets what else this process needs to connect. Call it before importing ray."""
    environment = ray_environment(settings)
    os.environ.update(environment)
    return environment["RAY_ADDRESS"]


def ray_token(token: Path) -> dict[str, str]:
    """What a process needs beside the address to speak to an embedded Ray: its token, and that it stays on loopback."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Ray's switch for "this machine only" on every platform: all its ports then listen on 127.0.0.1 alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
