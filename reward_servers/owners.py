"""Who uses a reward application: records in the cluster's own key-value store, so that they end with the cluster.

An owner is a driver of Ray, which is what an attempt is. Ray knows which drivers are alive, however they ended; nothing
has to be told when one dies. A server that nobody has used for its idle time takes its application down, and a new
owner and that server settle by order of writes: the owner writes its record and then looks for the mark of a closing,
the server writes its mark and then looks for owners, so at least one of them sees the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import ray
from ray._private import state as ray_state
from ray.experimental import internal_kv as kv

IDLE_S = 300.0
"""How long an application stays after its last use, unless its owners say otherwise."""
MARK_S = 10.0
"""A mark older than this was left by a server that died."""
_SPACE = "accord-rewards"


def hold(applications: Iterable[str], idle_s: float) -> list[str]:
    """Record that this driver uses the applications, and how long they may idle after it. Returns the new ones."""
    return [name for name in applications if not _put(f"{name}/owner/{_driver()}", str(idle_s))]


def let_go(application: str) -> None:
    """Take this driver's record back."""
    kv._internal_kv_del(f"{application}/owner/{_driver()}", namespace=_SPACE)


def wish(application: str) -> float:
    """The longest idle time that any owner on record asked for, dead ones included."""
    values = [kv._internal_kv_get(key, namespace=_SPACE) for key in _owners(application)]
    return max((float(value) for value in values if value is not None), default=IDLE_S)


def idle_time(application: str) -> float | None:
    """The longest idle time its living owners ask for; None without one. Records of dead owners are removed."""
    alive = {str(job["JobID"]) for job in ray_state.jobs() if not job["IsDead"]}
    found = None
    for key in _owners(application):
        if key.decode().rpartition("/")[2] not in alive:
            kv._internal_kv_del(key, namespace=_SPACE)
        elif (value := kv._internal_kv_get(key, namespace=_SPACE)) is not None:
            found = max(found or 0.0, float(value))
    return found


def used(application: str) -> None:
    """Record that somebody was served just now, whichever replica did it."""
    _put(f"{application}/used", repr(time.time()))


def last_used(application: str) -> float:
    """Unix time of the last `used`; 0 when there was none."""
    return float(kv._internal_kv_get(f"{application}/used", namespace=_SPACE) or 0.0)


def mark_closing(application: str) -> bool:
    """Say that it is about to be taken down. False, and no mark, when somebody uses it."""
    _put(f"{application}/closing", repr(time.time()))
    if idle_time(application) is None:
        return True
    clear_closing(application)
    return False


def closing(application: str) -> bool:
    """Whether a server is taking it down at this moment."""
    return time.time() - float(kv._internal_kv_get(f"{application}/closing", namespace=_SPACE) or 0.0) < MARK_S


def clear_closing(application: str) -> None:
    """Take the mark away."""
    kv._internal_kv_del(f"{application}/closing", namespace=_SPACE)


def _driver() -> str:
    context: Any = ray.get_runtime_context()
    return str(context.get_job_id())


def _owners(application: str) -> list[bytes]:
    return list(kv._internal_kv_list(f"{application}/owner/", namespace=_SPACE))


def _put(key: str, value: str) -> bool:
    """Whether it was there before."""
    return bool(kv._internal_kv_put(key, value, namespace=_SPACE))
