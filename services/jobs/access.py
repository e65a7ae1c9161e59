"""The commands that the Redis store uses, and the account that may use no others."""

from __future__ import annotations

import re

from services.jobs.scripts import scripts
from services.jobs.store import PREFIX

CLIENT_COMMANDS = frozenset({
    "evalsha", "exists", "hget", "hgetall", "hmget", "info", "script|load", "set", "srandmember", "srem", "time",
    "xread", "xrevrange", "zcard", "zrange", "zrangebylex", "zrevrangebylex",
})  # fmt: skip
"""What redis_store.py sends besides what its scripts call."""
_CALL = re.compile(r"redis\.p?call\('([A-Z]+)'")


def commands() -> list[str]:
    """Every command that is used, in order."""
    called = {name.lower() for text in scripts().values() for name in _CALL.findall(text)}
    return sorted(called | CLIENT_COMMANDS)


def acl_rule() -> str:
    """The ACL rule of an account for Accord: its keys, and these commands; @connection is signing in and PING."""
    allowed = " ".join(f"+{name}" for name in commands())
    return f"ACL SETUSER accord on >PASSWORD ~{PREFIX}* resetchannels -@all +@connection {allowed}"
