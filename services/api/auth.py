"""The API key of a service and the short-lived cookie that lets a browser read its pages."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from accord.config.settings import Settings, usable_key
from accord.errors import ServiceError
from services.api.calls import StoreCalls
from services.jobs.store import JobStore

COOKIE = "accord_session"
SESSION_S = 12 * 3600
TICKET_S = 120
KEY_FILE = "api-key"
_PASS = re.compile(r"([0-9a-f]{32})\.([0-9]{1,12})\.[0-9a-f]{64}")


def api_key(settings: Settings) -> str:
    """The key from ACCORD_API_KEY, else from `<data_dir>/api-key`, which is made (mode 0600) when it is not there.

    Raises ServiceError when that file cannot be made or read, or holds no usable key.
    """
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = settings.data_dir / KEY_FILE
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
        return read_key(path)
    except OSError as error:
        raise ServiceError(
            f"the API key in {path.absolute()} cannot be read or made: {error.strerror or error}; give the service's "
            "user access, or put a key into ACCORD_API_KEY"
        ) from error


def read_key(path: Path) -> str:
    """The key in a file. Raises OSError when it cannot be read, ServiceError when it holds no usable key."""
    try:
        return usable_key(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ServiceError(
            f"the API key in {path.absolute()} cannot be used: {error}; remove the file and start the service again to "
            "have one made"
        ) from None


def _make_key(path: Path) -> None:
    """Written aside and linked, so that the file is never there without its key, and the first of several wins."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("accord_" + secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(aside)
    finally:
        aside.unlink()


@dataclass(frozen=True, slots=True)
class Pass:
    """Something sealed with the key: a browser's session, or a ticket that opens one."""

    id: str
    until: int
    """Unix seconds."""


class Keeper:
    """Checks keys, and seals and checks passes. Holds a digest of the key, never the key."""

    def __init__(self, key: str) -> None:
        self._digest = _digest(key)

    def knows(self, key: str) -> bool:
        """True for the right key, in constant time."""
        return hmac.compare_digest(_digest(key), self._digest)

    def has_key(self, headers: Headers) -> bool:
        """True for a request with the key."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.knows(key.strip())

    def session_in(self, headers: Headers) -> Pass | None:
        """The session of a request's cookie, if it was sealed here and has not run out."""
        return self._open("session", cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def new_session(self) -> str:
        """A cookie value that is good for SESSION_S seconds."""
        return self._seal("session", secrets.token_hex(16), int(time.time()) + SESSION_S)

    def new_ticket(self) -> str:
        """A word for an address that opens one session within TICKET_S seconds."""
        return self._seal("ticket", secrets.token_hex(16), int(time.time()) + TICKET_S)

    def ticket_in(self, text: str) -> Pass | None:
        """The ticket a text is, if it was sealed with this key and has not run out."""
        return self._open("ticket", text)

    def _seal(self, kind: str, ident: str, until: int) -> str:
        seal = hmac.new(self._digest, f"{kind}:{ident}.{until}".encode(), hashlib.sha256).hexdigest()
        return f"{ident}.{until}.{seal}"

    def _open(self, kind: str, text: str) -> Pass | None:
        found = _PASS.fullmatch(text)
        if found is None or int(found[2]) < time.time():
            return None
        sealed = self._seal(kind, found[1], int(found[2]))
        return Pass(found[1], int(found[2])) if hmac.compare_digest(sealed, text) else None


class Sessions:
    """Who may read: whoever has the key, or a session that was not ended. Known to every API on the same store."""

    FRESH_S = 2.0
    """A session that was found good is good for so long without asking again."""

    def __init__(self, keeper: Keeper, store: JobStore, calls: StoreCalls) -> None:
        self._keeper, self._store, self._calls = keeper, store, calls
        self._good_until: dict[str, float] = {}

    async def admits(self, headers: Headers, *, reads: bool = True) -> bool:
        """True for a request with the key, or one that only reads and carries a session. Raises StoreUnavailable."""
        if self._keeper.has_key(headers):
            return True
        session = self._keeper.session_in(headers) if reads else None
        return session is not None and await self._live(session)

    async def _live(self, session: Pass) -> bool:
        """False once the session was ended, here or elsewhere."""
        now = time.monotonic()
        if self._good_until.get(session.id, 0.0) > now:
            return True
        if await self._calls.run(self._store.marked, _mark(session)):
            return False
        if len(self._good_until) >= 1000:
            self._good_until.clear()
        self._good_until[session.id] = now + self.FRESH_S
        return True

    async def end(self, session: Pass) -> bool:
        """End a session, or use a ticket up; False when it was so already. Raises StoreUnavailable."""
        self._good_until.pop(session.id, None)
        left = max(1.0, session.until - time.time() + 60)
        return await self._calls.run(self._store.mark, _mark(session), left)


def _mark(session: Pass) -> str:
    return f"ended:{session.id}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
