"""The API as the commands see it: submit, read, cancel, and follow a job through reconnects."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from httpx_sse import EventSource

from accord.config.settings import Settings
from accord.errors import SpecError, Unreachable, UserError
from accord.events import JobEvent, read_event
from services.api.auth import KEY_FILE, Keeper, read_key
from services.api.views import JobDetail, JobPage, JobView


class Refused(UserError, reason="refused"):
    """The API answered that it will not do this."""


class ApiClient:
    """Speaks to one API with one key. Methods raise Unreachable, Refused, or SpecError for an invalid job."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = url, key
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=httpx.Timeout(30, connect=5),
            trust_env=not on_loopback(url),
        )  # fmt: skip

    @classmethod
    def of(cls, settings: Settings, url: str) -> ApiClient:
        """The client for these settings. Raises Refused when there is no key, ServiceError for an empty one."""
        if settings.api_key is not None:
            return cls(url, settings.api_key.get_secret_value())
        path = settings.data_dir / KEY_FILE
        try:
            return cls(url, read_key(path))
        except OSError:
            raise Refused(
                f"no API key: {path.absolute()} is not there; start the service with `accord up`, "
                "set ACCORD_DATA_DIR to its data directory, or put the key into ACCORD_API_KEY"
            ) from None

    def sign_in_link(self) -> str:
        """An address that opens the pages in a browser, once. Raises Refused when this key is not the service's."""
        self.jobs(1)
        return f"{self.url}/?ticket={Keeper(self._key).new_ticket()}"

    def submit(self, spec: dict[str, Any], idempotency_key: str = "") -> JobDetail:
        """Send a job and return it as accepted."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return JobDetail.model_validate_json(self._call("POST", "/v1/jobs", json=spec, headers=headers))

    def job(self, job_id: str) -> JobDetail:
        """Read a job."""
        return JobDetail.model_validate_json(self._call("GET", f"/v1/jobs/{job_id}"))

    def jobs(self, limit: int = 20) -> list[JobView]:
        """The newest jobs."""
        return JobPage.model_validate_json(self._call("GET", "/v1/jobs", params={"limit": limit})).items

    def cancel(self, job_id: str) -> JobDetail:
        """Ask a job to stop."""
        return JobDetail.model_validate_json(self._call("POST", f"/v1/jobs/{job_id}/cancel"))

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its run folder."""
        self._call("DELETE", f"/v1/jobs/{job_id}")

    def follow(
        self, job_id: str, *, patience_s: float = 60.0, quiet: Callable[[str], None] = lambda _: None
    ) -> Iterator[JobEvent]:
        """Yield the job's events from its beginning to its end, coming back when the connection breaks.

        Raises Unreachable when nothing answers for `patience_s`; `quiet` hears of every break.
        """
        cursor, last_word = "", time.monotonic()
        while True:
            try:
                for event_id, event in self._stream(job_id, cursor):
                    last_word = time.monotonic()
                    if event is None:
                        return
                    cursor = event_id or cursor  # progress has no place in the history
                    yield event
                quiet("the stream ended early")
            except (httpx.TransportError, Unreachable) as error:
                if time.monotonic() - last_word > patience_s:
                    raise Unreachable(f"{self.url} has not answered for {patience_s:.0f} s: {error}") from error
                quiet(str(error) or type(error).__name__)
            time.sleep(0.5)

    def _stream(self, job_id: str, cursor: str) -> Iterator[tuple[str, JobEvent | None]]:
        """One connection; (id, None) is the end of the job."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": cursor} if cursor else {})}
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            if answer.status_code != 200:
                answer.read()
                self._raise(answer)
            for message in EventSource(answer).iter_sse():
                if message.event == "end":
                    yield "", None
                    return
                try:
                    yield message.id, read_event(message.data)
                except ValueError:
                    continue  # no event at all

    def _call(self, method: str, path: str, **arguments: Any) -> bytes:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise Unreachable(
                f"no API at {self.url} ({error}); start one with `accord up`, or set ACCORD_URL"
            ) from error  # fmt: skip
        if answer.status_code >= 400:
            self._raise(answer)
        return answer.content

    def _raise(self, answer: httpx.Response) -> None:
        try:
            body = dict(answer.json())
        except (ValueError, TypeError):
            body = {"detail": answer.text[:200] or answer.reason_phrase}
        if answer.status_code == 422 and body.get("errors"):
            raise SpecError([(error["pointer"], error["detail"]) for error in body["errors"]])
        message = f"{body.get('detail', '')} ({answer.status_code})"
        if answer.status_code in {502, 503, 504}:
            raise Unreachable(f"{self.url}: {message}")
        raise Refused(message)


def on_loopback(url: str) -> bool:
    """Whether an address is this machine's own: no proxy of the environment leads there."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
