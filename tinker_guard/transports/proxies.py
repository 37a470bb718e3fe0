"""The proxies that the environment names."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from tinker_guard.policy.url import host_and_port, parse_any

if TYPE_CHECKING:
    import httpx


def proxy_for(url: httpx.URL) -> httpx.URL | None:
    """The proxy of the environment for a URL; None for a direct connection."""
    proxies = urllib.request.getproxies()
    value = proxies.get(url.scheme) or proxies.get("all")
    if value is None or urllib.request.proxy_bypass(host_and_port(url)):
        return None
    return parse_proxy(value)


def parse_proxy(value: str) -> httpx.URL | None:
    """The URL of a proxy, whose scheme may be missing; None if it is none."""
    return parse_any(value if "://" in value else f"http://{value}")
