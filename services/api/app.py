"""The REST API as an application factory: no globals, no heavy imports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

import accord
from accord.config.job import JobSpec
from accord.config.settings import Settings
from services.api import health, jobs, openapi, pages, problems, results
from services.api.auth import Keeper, Sessions, api_key
from services.api.calls import StoreCalls
from services.api.edge import Edge
from services.api.preflight import SpecCheck
from services.api.readiness import Readiness
from services.api.state import ApiState
from services.api.streams import Hub
from services.jobs.store import JobStore
from services.registry import Metrics


def create_app(
    settings: Settings,
    store: JobStore,
    *,
    metrics: Metrics | None = None,
    checks: Mapping[str, Callable[[], None]] | None = None,
    check_spec: Callable[[JobSpec], object] | None = None,
) -> FastAPI:
    """Build the app.

    `metrics` is shared with a supervisor in the same process; `checks` are further readiness checks (each raises
    AccordError); `check_spec` looks at the files a job names (default: SpecCheck). Raises ServiceError when the API
    key cannot be read or made, or is none.
    """
    app = FastAPI(
        title="Accord", version=accord.__version__, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False, summary="Distributed RL post-training for joint audio-video diffusion models",
    )  # fmt: skip
    closing, metrics = threading.Event(), metrics or Metrics(store)
    looked, calls = SpecCheck(settings, closing), StoreCalls(store)
    keeper = Keeper(api_key(settings))
    state = ApiState(
        settings, store, keeper, Sessions(keeper, store, calls), metrics,
        check_spec or looked, looked.lately, Readiness({"store": lambda: store.ready(), **(checks or {})}),
        calls, Hub(store, metrics, closing), closing,
    )  # fmt: skip
    app.state.accord = state
    routers = [module.router for module in (health, jobs, results, pages, openapi)]
    problems.install(app, routers)
    for router in routers:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.add_middleware(Edge, sessions=state.sessions, metrics=metrics, settings=settings)
    return app
