"""No setting is empty by accident, and an API key is one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from accord.config.settings import Settings, usable_key, variable_of


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
