"""Where a process lives: read from the environment (prefix `ACCORD_`), never from a job."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Process settings. `REDIS_URL` and `RAY_ADDRESS` point at real clusters; unset, embedded ones are started."""

    model_config = SettingsConfigDict(env_prefix="ACCORD_", frozen=True, extra="ignore", populate_by_name=True)

    data_dir: Path = Path(".accord")
    """Service state: API keys, store files, logs of processes."""
    runs_dir: Path = Path("runs")
    """One folder per job."""
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
    max_body_bytes: int = Field(default=1_048_576, gt=0)
    api_key: SecretStr | None = None
    """Key of the API; unset: the one in `<data_dir>/api-key`, which the API makes at its first start."""
    url: str | None = None
    """Where the commands find the API; default: http://host:port."""
    retry_backoff_s: float = Field(default=5.0, ge=0)
    """Wait before the second attempt; doubles with each lost one."""
    ray_cpus: int | None = Field(default=None, gt=0)
    """Logical CPUs of the embedded Ray; default: the machine's, but at least 8, because small jobs share cores well."""
