"""Which servers of others a job may make a reward ask, and with what token. The operator says both, never the job.

`ACCORD_REWARD_HOSTS` lists the hosts. A token stands in the environment of the reward's server under a name that begins
with `ACCORD_TOKEN_`, or in a file whose path stands under that name and `_FILE`; a job says the name alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from accord.config.settings import Settings
from accord.errors import UserError

TOKEN_NAME = r"^(ACCORD_TOKEN_[A-Z0-9_]{1,64})?$"
"""Nothing else in the environment can be sent anywhere by a job."""


def allowed_url(url: str) -> str:
    """Return an address without its last slash. Raises UserError when it is none, or its host is not allowed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no address ({error}); write http://host:port/v1") from error
    if parts.scheme not in {"http", "https"} or not host or not url.isascii() or any(char.isspace() for char in url):
        raise UserError(f"{url!r} is no address of http or https; write http://host:port/v1")
    if parts.username or parts.password or parts.query or parts.fragment or "@" in parts.netloc:
        raise UserError("an address holds no user, password, query or fragment; a token is named by token_env")
    port = port or (443 if parts.scheme == "https" else 80)
    if not {host, f"{host}:{port}"} & {*Settings().reward_hosts}:
        raise UserError(f"{host}:{port} is not allowed; the operator lists hosts in ACCORD_REWARD_HOSTS")
    return url.rstrip("/")


def token_of(name: str) -> str | None:
    """The token of that name; None for no name. Raises UserError when the environment holds none."""
    if not name:
        return None
    token = os.environ.get(name, "")
    file = os.environ.get(f"{name}_FILE", "")
    if not token and file:
        try:
            token = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}_FILE names {file}, which cannot be read ({error})") from error
    if not token.strip() or not token.strip().isprintable() or not token.isascii():
        raise UserError(f"{name} is not set to a token where the reward's server runs; set it, or {name}_FILE")
    return token.strip()
