"""The API key of a service and the short-lived cookie that lets a browser read its pages."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers

from accord.config.settings import Settings

COOKIE = "accord_session"
SESSION_S = 12 * 3600
KEY_FILE = "api-key"


def api_key(settings: Settings) -> str:
    """The key from ACCORD_API_KEY, else from `<data_dir>/api-key`, which is made (mode 0600) when it is not there.

    Raises OSError when the data directory cannot be written.
    """
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = settings.data_dir / KEY_FILE
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        key = "accord_" + secrets.token_urlsafe(32)
        file.write(key + "\n")
    return key


class Keeper:
    """Checks keys and cookies. Holds a digest of the key, never the key."""

    def __init__(self, key: str) -> None:
        self._digest = _digest(key)

    def knows(self, key: str) -> bool:
        """True for the right key, in constant time."""
        return hmac.compare_digest(_digest(key), self._digest)

    def admits(self, method: str, headers: Headers) -> bool:
        """True for a request with the key, or one that only reads and carries a session cookie."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.knows(key.strip()):
            return True
        return method in {"GET", "HEAD"} and self.admits_cookie(headers.get("cookie", ""))

    def admits_cookie(self, header: str) -> bool:
        """True for a session cookie made here that has not run out."""
        try:
            morsel = SimpleCookie(header).get(COOKIE)
        except CookieError:
            return False
        until, _, seal = (morsel.value if morsel else "").partition(".")
        if not until.isdecimal() or int(until) < time.time():
            return False
        return hmac.compare_digest(seal, self._seal(until))

    def session(self) -> str:
        """A cookie value that is good for SESSION_S seconds."""
        until = str(int(time.time()) + SESSION_S)
        return f"{until}.{self._seal(until)}"

    def _seal(self, text: str) -> str:
        return hmac.new(self._digest, f"session:{text}".encode(), hashlib.sha256).hexdigest()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
