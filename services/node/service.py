"""The service as one process: store, Ray, API and supervisor start together and go down together.

`Service.run` is what `accord up` does; `accord api` and `accord runner` run one part each against shared servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from accord.config.settings import Settings
from accord.disk import no_room
from accord.errors import ServiceError
from services.api.auth import KEY_FILE
from services.api.server import Api
from services.connections import base_url, ray_environment, store_url
from services.jobs.address import without_password
from services.jobs.redis_store import open_store
from services.node.embedded import EmbeddedRay, EmbeddedStore
from services.registry import Metrics
from services.runner.gate import Gate
from services.runner.runner_port import watched_at
from services.runner.supervisor import Supervisor
from services.signals import Signals

log = logging.getLogger("accord.service")

Say = Callable[[str], None]


def prepare_directories(settings: Settings) -> None:
    """Make the data and runs directories. Raises ServiceError naming the one that cannot be written.

    A runs directory that has no room now is no reason not to start: no job is claimed until it has.
    """
    wanted = ((settings.data_dir, "ACCORD_DATA_DIR", 0o700), (settings.runs_dir, "ACCORD_RUNS_DIR", 0o755))
    for path, name, mode in wanted:
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            probe = path / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            if path == settings.runs_dir and no_room(error):
                log.warning("%s takes no writes now: %s", path.absolute(), error.strerror)
                continue
            raise ServiceError(
                f"{path.absolute()} cannot be written: {error.strerror}; choose another directory with {name}"
            ) from error


@contextlib.contextmanager
def sole_user(lock: Path, taken: str) -> Iterator[None]:
    """Hold the lock of a file. Raises ServiceError that says `taken` when another process has it."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServiceError(taken) from error
        yield


class Service:
    """Everything on one machine. Parts that settings point elsewhere are not started."""

    def __init__(self, settings: Settings, signals: Signals, say: Say) -> None:
        self._settings, self._signals, self._say = settings, signals, say
        self._ray: EmbeddedRay | None = None
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Start, tell when ready, stay until a signal, shut down. Raises AccordError when a part does not start."""
        prepare_directories(self._settings)
        self._settings.rewards_secret()  # one that cannot be read is told now, not by the first job
        data_dir = self._settings.data_dir
        taken = f"another service runs on {data_dir.absolute()}; stop it, or choose another ACCORD_DATA_DIR"
        with sole_user(data_dir / "lock", taken), contextlib.ExitStack() as stack:
            try:
                if self._start(stack):
                    self._ready()
                    while not self._signals.stop.wait(1.0):
                        self._still_whole()
            finally:
                self._signals.stop.set()
                self._say("Shutting down ...")
        self._say("Stopped.")

    def _start(self, stack: contextlib.ExitStack) -> bool:
        """Start all parts, each with its way down on the stack; False when a signal came first."""
        settings, stop = self._settings, self._signals.stop
        if settings.redis_url is None:
            embedded = EmbeddedStore(settings.data_dir)
            stack.callback(embedded.stop)
            if not embedded.start(abort=stop):
                return False
        store = open_store(settings)
        store.ready()
        metrics = Metrics(store)
        supervisor = Supervisor(settings, store, metrics, partial(ray_environment, settings), hurry=self._signals.hurry)
        gate = supervisor.gate
        checks = {"ray": lambda: self._ray_is_up(gate), "runs": gate.volume, "runner": supervisor.turns}
        api = Api(settings, store, metrics, checks)
        stack.callback(api.stop)
        api.start()
        self._say(f"API is up at {base_url(settings)}; starting Ray ...")
        if not settings.ray_address:
            self._ray = EmbeddedRay(settings)
            stack.callback(self._ray.stop)
            if not self._ray.start(abort=stop):
                return False
        thread = threading.Thread(target=supervisor.run, args=(stop,), name="accord-supervisor", daemon=True)
        thread.start()
        stack.callback(thread.join, settings.grace_s + 10)
        self._threads = [api.thread, thread]
        return not stop.is_set()

    def _still_whole(self) -> None:
        """Raises ServiceError when the API or the supervisor died of a fault: better no service than half of one."""
        for thread in self._threads:
            if not thread.is_alive() and not self._signals.stop.is_set():
                raise ServiceError(f"{thread.name} ended unexpectedly; its error is above")

    def _ray_is_up(self, gate: Gate) -> None:
        if not self._settings.ray_address and (self._ray is None or not self._ray.up):
            raise ServiceError("Ray is starting")
        gate.ray()

    def _ready(self) -> None:
        settings = self._settings
        url = base_url(settings)
        key_place = settings.data_dir / KEY_FILE if settings.api_key is None else "ACCORD_API_KEY"
        self._say(
            f"\nAccord is ready.\n  API      {url}/v1/jobs\n  UI       {url}/, a link that signs in: accord sign-in\n"
            f"  API key  in {key_place}\n  Submit   accord submit examples/tiny_omninft.toml\n"
            f"  Follow   accord watch JOB\n  Stop     Ctrl-C\n"
        )


def run_api(settings: Settings, signals: Signals, say: Say) -> None:
    """The API alone, against a shared store."""
    prepare_directories(settings)
    store = open_store(settings)
    store.ready()
    api = Api(settings, store, Metrics(store), {})
    try:
        api.start()
        say(f"API is up at {base_url(settings)}/v1/jobs")
        signals.stop.wait()
    finally:
        api.stop()


def run_runner(settings: Settings, signals: Signals, say: Say) -> None:
    """A supervisor alone, against a shared store and Ray."""
    prepare_directories(settings)
    settings.rewards_secret()
    store = open_store(settings)
    store.ready()
    ray_environment(settings)
    metrics = Metrics(store)
    supervisor = Supervisor(settings, store, metrics, partial(ray_environment, settings), hurry=signals.hurry)
    with watched_at(settings, metrics, supervisor.gate):
        say(f"Runner is up on {without_password(store_url(settings))}")
        supervisor.run(signals.stop)
