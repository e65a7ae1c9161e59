"""What the Ray of a service without one is started with."""

from __future__ import annotations

from accord.config.settings import Settings
from services.node import embedded
from services.node.embedded import EmbeddedRay


def test_code_of_jobs_cannot_read_the_services_key_and_token(monkeypatch, tmp_path):
    """They run in processes of Ray, which need the tokens of judges alone."""
    for name, value in {
        "ACCORD_API_KEY": "k" * 20, "ACCORD_REWARDS_TOKEN": "t" * 20, "ACCORD_REWARDS_HOST": "0.0.0.0",
        "ACCORD_REWARD_HOSTS": "judge", "ACCORD_TOKEN_JUDGE": "j",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(embedded.guard, "spawn", lambda _command, env, **_: env)
    monkeypatch.setattr(embedded, "_short_folder", lambda _prefix: tmp_path)
    environment = EmbeddedRay(Settings(data_dir=tmp_path))._spawn()
    assert {name for name in environment if name.startswith(("ACCORD_API", "ACCORD_REWARD", "ACCORD_TOKEN"))} == {
        "ACCORD_REWARD_HOSTS",
        "ACCORD_TOKEN_JUDGE",
    }
