"""The path prefix under which a reverse proxy shows the API. Whether the proxy cuts it off or leaves it makes no
difference."""

from __future__ import annotations

import re
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import Scope

SHAPE = re.compile(r"(/[A-Za-z0-9._~-]{1,100}){1,16}")
ROOT: ContextVar[str] = ContextVar("accord_root", default="")
"""The prefix of the request that is being served; what links begin with."""


def split(scope: Scope, configured: str) -> tuple[str, str]:
    """(prefix, path without it). The prefix is ACCORD_ROOT_PATH, else what X-Forwarded-Prefix says.

    The header reaches nobody but the caller who sent it (no answer may be cached by others), so it only has to be a
    plain path.
    """
    path: str = scope["path"]
    forwarded = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
    root = configured or (forwarded if SHAPE.fullmatch(forwarded) else "")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :] or "/"
    return root, path
