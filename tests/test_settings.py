from __future__ import annotations

import math
import pickle

import pytest

from tinker_guard import GuardSettings, install_guard
from tinker_guard.settings import InvalidSettingsError


def test_defaults_are_those_that_the_readme_lists() -> None:
    assert GuardSettings().model_dump() == {
        "enabled": True,
        "child_processes": True,
        "warmup_successes": 3,
        "warmup_timeout": 120.0,
        "warmup_probe_path": "/api/v1/get_server_capabilities",
        "probe_timeout": 5.0,
        "retry_timeout": 30.0,
        "backoff_initial": 0.1,
        "backoff_max": 3.0,
        "control_plane_url": None,
        "control_plane_timeout": 5.0,
        "control_plane_api_key": None,
        "verdict_ttl": 1.0,
        "trace": "work",
        "metrics_by_job": False,
        "export": None,
    }


def test_arguments_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "12")
    monkeypatch.setenv("TINKER_GUARD_WARMUP_SUCCESSES", "5")
    settings = GuardSettings(retry_timeout=7)
    assert (settings.retry_timeout, settings.warmup_successes) == (7.0, 5)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("RETRY_TIMEOUT", "-1", "should be greater than or equal to 0 (default: 30.0)"),
        ("PROBE_TIMEOUT", "0", "should be greater than 0"),
        ("WARMUP_TIMEOUT", "two minutes", "should be a valid number"),
        ("BACKOFF_MAX", "inf", "should be a finite number"),
        ("WARMUP_SUCCESSES", "-3", "should be greater than or equal to 0 (default: 3)"),
        ("WARMUP_SUCCESSES", "1.5", "should be a valid integer"),
        ("ENABLED", "perhaps", "should be a valid boolean"),
        ("CONTROL_PLANE_URL", "ftp://api.test", "must begin with http:// or https://"),
        ("CONTROL_PLANE_URL", "api.test", "must begin with http:// or https://"),
        ("CONTROL_PLANE_URL", "https://key@api.test", "must hold neither a user name"),
        ("CONTROL_PLANE_URL", "https://api.test?key=1", "must hold neither a user name"),
        ("CONTROL_PLANE_URL", "https://api.test:port", "must be a URL such as"),
        ("TRACE", "some", "should be 'all', 'work', 'eventful' or 'off' (default: work)"),
        ("EXPORT", "jaeger", "must be console, otlp or jsonl:PATH"),
        ("EXPORT", "jsonl:", "must be console, otlp or jsonl:PATH"),
        ("WARMUP_PROBE_PATH", "api/v1", "must be a path such as"),
        ("WARMUP_PROBE_PATH", "/api/v1/x\n", "must be a path such as"),
    ],
)
def test_a_wrong_variable_is_refused_at_install_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(f"TINKER_GUARD_{name}", value)
    with pytest.raises(InvalidSettingsError) as caught:
        install_guard()
    assert f"TINKER_GUARD_{name}: " in str(caught.value)
    assert wanted in str(caught.value)


def test_a_wrong_argument_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidSettingsError, match=r"^[^\n]+\n  retry_timeout: input should be"):
        GuardSettings(retry_timeout=math.nan)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(InvalidSettingsError, match="retry_time: extra inputs are not permitted"):
        GuardSettings(retry_time=3)


def test_backoffs_must_fit_each_other() -> None:
    with pytest.raises(InvalidSettingsError, match="backoff_initial must not exceed backoff_max"):
        GuardSettings(backoff_initial=2.0, backoff_max=1.0)


def test_a_key_needs_the_place_that_it_is_for() -> None:
    with pytest.raises(InvalidSettingsError, match="control_plane_api_key needs control_plane_url"):
        GuardSettings(control_plane_api_key="fw-secret")
    with pytest.raises(InvalidSettingsError, match=r"control_plane_api_key: .*at least 1"):
        GuardSettings(control_plane_api_key="", control_plane_url="https://api.test")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONTROL_PLANE_API_KEY", "CONTROL_PLANE_URL", "RETRY_TIMEOUT", "ENABLED"):
        monkeypatch.setenv(f"TINKER_GUARD_{name}", "")
    assert GuardSettings() == GuardSettings(enabled=True, retry_timeout=30.0)


def test_a_rejected_value_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "tml-secret")
    with pytest.raises(InvalidSettingsError) as caught:
        GuardSettings()
    assert "tml-secret" not in f"{caught.value!r} {caught.value.__context__!r}"


def test_the_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_API_KEY", "fw-secret")
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://api.test")
    settings = GuardSettings()
    assert settings.control_plane_api_key is not None
    assert settings.control_plane_api_key.get_secret_value() == "fw-secret"
    assert "fw-secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_settings_are_frozen_comparable_and_picklable() -> None:
    settings = GuardSettings(verdict_ttl=2)
    assert settings == GuardSettings(verdict_ttl=2) != GuardSettings()
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(ValueError, match="frozen"):
        settings.verdict_ttl = 3


def test_a_url_loses_its_last_slash() -> None:
    assert GuardSettings(control_plane_url="https://api.test/x/").control_plane_url == (
        "https://api.test/x"
    )
