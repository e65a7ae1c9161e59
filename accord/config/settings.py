"""Where a process lives: read from the environment (prefix `ACCORD_`), never from a job."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from accord.config.files import Roots
from accord.errors import ServiceError
from accord.run_folder import RunFolder

KEY_LENGTH = 16
"""Shortest API key that is taken."""


def usable_key(key: str) -> str:
    """The key without the white space around it. Raises ValueError for one that is empty, short, or cannot be sent."""
    key = key.strip()
    if len(key) < KEY_LENGTH:
        raise ValueError(f"it has {len(key)} characters; use at least {KEY_LENGTH}, for example `openssl rand -hex 24`")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("it holds characters that a header cannot carry; use letters, digits and -._~+/=")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def variable_of(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return field.upper() if field.upper() in {"REDIS_URL", "RAY_ADDRESS"} else f"ACCORD_{field.upper()}"


class Settings(BaseSettings):
    """Process settings. `REDIS_URL` and `RAY_ADDRESS` point at real clusters; unset, embedded ones are started."""

    model_config = SettingsConfigDict(
        env_prefix="ACCORD_", frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )  # fmt: skip

    data_dir: Path = Path(".accord")
    """Service state: API keys, store files, logs of processes."""
    runs_dir: Path = Path("runs")
    """One folder per job."""
    input_roots: Annotated[tuple[Path, ...] | None, NoDecode] = None
    """Folders whose files jobs may name, joined by `:`; their links may not lead out. The data and run folders never
    count. Unset: the folder that the process was started in, unless that is `/` or the home folder."""
    text_cache_dir: Path | None = None
    """Where caches of encoded prompts are kept; default: `<data_dir>/text-cache`."""
    preflight_s: float = Field(default=10.0, gt=0)
    """Time that looking at a submitted job's files may take, waiting included; then the answer is 503."""
    preflight_workers: int = Field(default=2, ge=1, le=64)
    """Processes that look at files of submitted jobs."""
    host: str = "127.0.0.1"
    port: int = Field(default=8420, ge=1, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the runner's own /metrics; 0 = none (the API serves it when both run in one process)."""
    redis_url: SecretStr | None = Field(default=None, validation_alias=AliasChoices("redis_url", "REDIS_URL"))
    ray_address: str | None = Field(default=None, validation_alias=AliasChoices("ray_address", "RAY_ADDRESS"))
    lease_s: float = Field(default=30.0, gt=0)
    """Lease on a running job. Beats come each third of it; an attempt that cannot beat for two thirds stops itself."""
    grace_s: float = Field(default=20.0, gt=0)
    """Time an attempt gets between SIGTERM and SIGKILL."""
    min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    """A runner claims no job while the runs directory has less room than this."""
    disk_wait_s: float = Field(default=600.0, ge=0)
    """How long a write of an attempt waits for room in its run folder before the job is given back."""
    reward_idle_s: float = Field(default=300.0, ge=0)
    """How long the servers of a reward stay after the last job that used them."""
    reward_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Where rewards may ask someone else's server: `host` or `host:port`, joined by commas. Unset: nowhere."""
    rewards_token: SecretStr | None = None
    """Who asks rewards over HTTP sends it; at least 16 characters. Unset: nobody is asked for one."""
    rewards_token_file: Path | None = None
    """File that holds it, instead."""
    rewards_host: str = "127.0.0.1"
    """Address of the Ray head on which rewards are served over HTTP. Beyond loopback there must be a token."""
    rewards_port: int = Field(default=8421, ge=0, le=65535)
    """0 = rewards are served to jobs alone."""
    rewards_tls_cert: Path | None = None
    """PEM file on the Ray head, with its key beside it: HTTPS."""
    rewards_tls_key: Path | None = Field(default=None, validate_default=True)
    reward_envs: Path | None = None
    """Folder of the environments that rewards may name: `NAME.json`, each a Ray runtime environment."""
    max_body_bytes: int = Field(default=1_048_576, gt=0)
    max_header_bytes: int = Field(default=32_768, ge=1024)
    """Request line and headers of one request."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Time for a client to send a whole request line with its headers."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Time for a client to send a whole body."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Time in which a client must take something of what waits for it."""
    max_connections: int = Field(default=1000, ge=1)
    max_connections_per_client: int = Field(default=500, ge=1)
    """Of one address; a reverse proxy is one client."""
    max_streams: int = Field(default=500, ge=1)
    """Event streams that are open at once."""
    max_streams_per_client: int = Field(default=250, ge=1)
    root_path: str | None = Field(default=None, pattern=r"^(/[A-Za-z0-9._~-]+){0,16}$")
    """Path prefix under which a reverse proxy shows the API, such as `/accord`."""
    api_key: SecretStr | None = None
    """Key of the API; unset: the one in `<data_dir>/api-key`, which the API makes at its first start."""
    url: str | None = None
    """Where the commands find the API; default: http://host:port."""
    retry_backoff_s: float = Field(default=5.0, ge=0)
    """Wait before the second attempt; doubles with each lost one."""
    max_attempts: int = Field(default=10, ge=1)
    """Most attempts of any job, whatever it asks for."""
    job_retention_s: float = Field(default=30 * 86_400.0, gt=0)
    """How long the record of a job stays after its end; its run folder stays longer."""
    allow_volatile_store: bool = False
    """Work with a store that may lose what it acknowledged, or that is too old."""
    ray_cpus: int | None = Field(default=None, gt=0)
    """Logical CPUs of the embedded Ray; default: the machine's, but at least 8, because small jobs share cores well."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        """A variable that is set and empty is a mistake of whoever set it: it never means the default."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not isinstance(text, str):
            return value
        if not text.strip():
            raise ValueError("is set but empty; give it a value, or unset it")
        return text.strip()

    @field_validator("api_key", "rewards_token")
    @classmethod
    def _key_is_usable(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is None else SecretStr(usable_key(value.get_secret_value()))

    @field_validator("rewards_token_file")
    @classmethod
    def _one_token(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("rewards_token") is not None:
            raise ValueError("is set, and so is ACCORD_REWARDS_TOKEN; unset one of them")
        return value

    @field_validator("rewards_host")
    @classmethod
    def _exposed_with_a_token(cls, value: str, info: ValidationInfo) -> str:
        known = info.data.keys() >= {"rewards_token", "rewards_token_file"}
        if known and not is_loopback(value) and not (info.data["rewards_token"] or info.data["rewards_token_file"]):
            raise ValueError(f"{value} is beyond loopback; set ACCORD_REWARDS_TOKEN or ACCORD_REWARDS_TOKEN_FILE, too")
        return value

    @field_validator("rewards_tls_key")
    @classmethod
    def _both_for_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("rewards_tls_cert") is None):
            raise ValueError("HTTPS needs ACCORD_REWARDS_TLS_CERT and ACCORD_REWARDS_TLS_KEY; set both or none")
        return value

    @field_validator("reward_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: object) -> object:
        if not isinstance(value, str) or not value.strip():
            return value
        return tuple(part.strip().lower() for part in value.split(","))

    @field_validator("input_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str) or not value.strip():
            return value
        parts = json.loads(value) if value.startswith("[") else value.split(os.pathsep)
        found = tuple(part for part in parts if part != "")
        if not found:
            raise ValueError("names no folder; give at least one, or unset it")
        return found

    def rewards_secret(self) -> str:
        """The token of the rewards' HTTP, "" for none. Raises ServiceError when its file holds no usable one."""
        if self.rewards_token is not None:
            return self.rewards_token.get_secret_value()
        if self.rewards_token_file is None:
            return ""
        try:
            return usable_key(self.rewards_token_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ServiceError(f"ACCORD_REWARDS_TOKEN_FILE: {self.rewards_token_file} has no token: {error}") from error

    def run_folder(self, job_id: str) -> RunFolder:
        """Where a job leaves what it makes."""
        return RunFolder(self.runs_dir.absolute() / job_id)

    @property
    def roots(self) -> Roots:
        """What jobs may name."""
        here = Path.cwd()
        default = () if here in {Path("/"), Path.home()} else (here,)
        return Roots.of(self.input_roots or default, (self.data_dir, self.runs_dir))

    @property
    def text_caches(self) -> Path:
        """The folder that holds every text cache."""
        return (self.text_cache_dir or self.data_dir / "text-cache").absolute()
