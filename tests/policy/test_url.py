"""What a URL that somebody gave has to have, and what of it may be shown."""

from __future__ import annotations

import httpx
import pytest

from tinker_guard.policy.url import host_and_port, origin, parse_any, parse_http, path_of


@pytest.mark.parametrize(
    "text",
    [
        "http://h",
        "https://h/",
        "HTTPS://user:word@h.test:1/a?b#c",
        "http://[::1]:65535",
        "http://10.0.0.1:443/x",
    ],
)
def test_a_url_of_a_server(text: str) -> None:
    assert parse_http(text) == parse_any(text) == httpx.URL(text)


@pytest.mark.parametrize("text", ["socks5://proxy.test:1080", "ftp://h"])
def test_a_url_of_another_scheme(text: str) -> None:
    assert parse_any(text) == httpx.URL(text)
    assert parse_http(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "h", "h/training", "http:", "http://", "https:///path", "//h"),
        *("http://[", "http://[::1", "http://h:port", "http://h\n", "http://a b/", "http://a%20b/"),
        *("http://h:0", "http://h:65536", f"http://h:{'9' * 5000}", "http://h:-1"),
        f"http://h/{'x' * 70000}",
    ],
)
def test_what_is_none(text: str) -> None:
    assert parse_any(text) is None
    assert parse_http(text) is None


@pytest.mark.parametrize(
    ("text", "shown", "path", "place"),
    [
        ("http://h", "http://h", "", "h:80"),
        ("https://user:word@h/a/b/?c#d", "https://h", "/a/b", "h:443"),
        ("http://h:8443//", "http://h:8443", "", "h:8443"),
        ("http://[::1]:8000/%20", "http://[::1]:8000", "/%20", "::1:8000"),
        ("socks5h://h", "socks5h://h", "", "h:1080"),
    ],
)
def test_its_parts(text: str, shown: str, path: str, place: str) -> None:
    url = httpx.URL(text)
    assert (origin(url), path_of(url), host_and_port(url)) == (shown, path, place)
