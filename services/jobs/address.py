"""The address of a job store as people may see it: where it is, never what opens it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit


def without_password(url: str) -> str:
    """Scheme and host, or socket; user, password and options are left out."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "the address in REDIS_URL"
    where = re.split("[?#]", rest)[0]
    if "@" in rest[len(where) :]:  # no telling what is password and what is address
        return f"{scheme}://…"
    return f"{scheme}://{where.rpartition('@')[2]}"


def secrets_in(url: str) -> list[str]:
    """What must not be repeated: passwords, as they stand in the address and as they are meant."""
    try:
        parts = urlsplit(url)
        # A password with a slash in it ends the address too early; what is before the last @ holds it all the same.
        before = url.partition("://")[2].rpartition("@")[0]
        told = [parts.password or "", before.partition(":")[2], *parse_qs(parts.query).get("password", [])]
    except ValueError:
        told = [url]
    return sorted({word for text in told for word in (text, unquote(text)) if word}, key=len, reverse=True)


def hidden(text: str, secrets: list[str]) -> str:
    """The text without the secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
