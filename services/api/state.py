"""What the routes work with; made once by `create_app`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from starlette.requests import Request

from accord.config.job import JobSpec
from accord.config.settings import Settings
from services.api.auth import Keeper, Sessions
from services.api.calls import StoreCalls
from services.api.readiness import Readiness
from services.api.streams import Hub
from services.jobs.store import JobStore
from services.registry import Metrics


@dataclass(frozen=True)
class ApiState:
    """One app's parts."""

    settings: Settings
    store: JobStore
    keeper: Keeper
    sessions: Sessions
    metrics: Metrics
    preflight: Callable[[JobSpec], object]
    """Checks files that a valid spec names; raises SpecError."""
    lately: Callable[[JobSpec], bool]
    """True when `preflight` passed on these files a moment ago."""
    readiness: Readiness
    calls: StoreCalls
    """The store, for code on the event loop."""
    hub: Hub
    """Event streams."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the service goes down: streams end."""
    submitting: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64, "accord-submit"))
    """Threads that may wait for files that jobs name; nothing else waits with them."""


def state_of(request: Request) -> ApiState:
    """The parts of the app that serves this request."""
    state = request.app.state.accord
    assert isinstance(state, ApiState)
    return state
