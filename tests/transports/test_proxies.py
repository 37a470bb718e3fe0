"""Which proxy the environment names for a URL."""

from __future__ import annotations

import os

import httpx
import pytest

from tinker_guard.transports.proxies import proxy_for


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://p:1"}, None),
        ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"https_proxy": "http://p:1"}, "http://p:1"),
        ({"ALL_PROXY": "socks5://p:1"}, "socks5://p:1"),
        ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ({"HTTPS_PROXY": "http://["}, None),
    ],
)
def test_the_proxy_of_a_scheme(
    variables: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(httpx.URL("https://host.x/a")) == found


@pytest.mark.parametrize(
    ("url", "named", "is_direct"),
    [
        ("https://host.x:8443", "host.x", True),
        ("https://host.x:8443", "host.x:8443", True),
        ("https://host.x:8443", "other.x, host.x:8443", True),
        ("https://host.x:8443", "host.x:443", False),
        ("https://host.x", "host.x:443", True),
        ("http://host.x", "host.x:80", True),
        ("https://a.host.x", ".host.x", True),
        ("https://host.x", "other.x", False),
        ("https://host.x", "*", True),
        ("http://[::1]:8000", "::1", True),
    ],
)
def test_what_no_proxy_is_for(
    url: str, named: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", named)
    assert (proxy_for(httpx.URL(url)) is None) is is_direct
