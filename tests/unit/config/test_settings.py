"""No setting is empty by accident, and an API key is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from accord.config.settings import Settings, usable_key, variable_of
from accord.errors import ServiceError


@pytest.mark.parametrize("field", Settings.model_fields)
@pytest.mark.parametrize("value", ["", " \n"])
def test_a_variable_that_is_set_and_empty_is_refused(monkeypatch: pytest.MonkeyPatch, field: str, value: str) -> None:
    monkeypatch.setenv(variable_of(field), value)
    with pytest.raises(ValidationError, match="set but empty"):
        Settings()


@pytest.mark.parametrize("value", [":", "::", "[]", '[""]'])
def test_roots_that_name_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ACCORD_INPUT_ROOTS", value)
    with pytest.raises(ValidationError, match="names no folder"):
        Settings()


def test_white_space_around_a_value_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_API_KEY", "0123456789abcdef\n")
    monkeypatch.setenv("REDIS_URL", " redis://store:6379/0\r\n")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379\n")
    settings = Settings()
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "0123456789abcdef"
    assert settings.redis_url is not None and settings.redis_url.get_secret_value() == "redis://store:6379/0"
    assert settings.ray_address == "head:6379"


@pytest.mark.parametrize("key", ["short", "0123456789 abcdef", "0123456789abcdéf", "0123456789\x00abcdef"])
def test_a_key_that_is_short_or_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with pytest.raises(ValueError, match="use"):
        usable_key(key)
    if "\x00" not in key:
        monkeypatch.setenv("ACCORD_API_KEY", key)
        with pytest.raises(ValidationError) as caught:
            Settings()
        assert key not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "rewards.example.org"])
def test_rewards_beyond_loopback_need_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    monkeypatch.setenv("ACCORD_REWARDS_HOST", host)
    with pytest.raises(ValidationError, match=r"beyond loopback; set ACCORD_REWARDS_TOKEN"):
        Settings()
    monkeypatch.setenv("ACCORD_REWARDS_TOKEN", "0123456789abcdef")
    assert Settings().rewards_secret() == "0123456789abcdef"
    file = tmp_path / "token"
    monkeypatch.setenv("ACCORD_REWARDS_TOKEN_FILE", str(file))
    with pytest.raises(ValidationError, match="unset one of them"):
        Settings()
    monkeypatch.delenv("ACCORD_REWARDS_TOKEN")
    for content in (None, "short", "\x00" * 20):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ServiceError, match=str(file)):
            Settings().rewards_secret()
    file.write_text("fedcba9876543210\n")
    assert Settings().rewards_secret() == "fedcba9876543210"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_rewards_on_loopback_need_none(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ACCORD_REWARDS_HOST", host)
    assert Settings().rewards_secret() == ""


@pytest.mark.parametrize("half", ["ACCORD_REWARDS_TLS_CERT", "ACCORD_REWARDS_TLS_KEY"])
def test_half_of_a_certificate_is_refused(monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    monkeypatch.setenv(half, "/etc/accord/half.pem")
    with pytest.raises(ValidationError, match="set both or none"):
        Settings()
