"""Which texts are URLs of a server, and what of one may be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from tinker_guard.policy.route import Route


def parse_http(text: str) -> httpx.URL | None:
    """Parse a URL; None if it lacks http:// or https://, or for the reasons of `parse_any`."""
    url = parse_any(text)
    return url if url is not None and url.scheme in ("http", "https") else None


def parse_any(text: str) -> httpx.URL | None:
    """Parse a URL of any scheme; None if it has no host, or a port other than 1 to 65535."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return None
    # httpx escapes characters that cannot be part of a host name.
    has_host = bool(url.host) and "%" not in url.host
    has_good_port = url.port is None or 0 < url.port < 65536
    return url if url.scheme and has_host and has_good_port else None


def origin(url: httpx.URL) -> str:
    """Scheme, host and port: the part of a URL that may be shown."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def path_of(url: httpx.URL) -> str:
    """The raw path of a URL, without slashes at its end. It may hold a secret."""
    return url.raw_path.partition(b"?")[0].decode("ascii").rstrip("/")


def is_behind_job(url: httpx.URL, route: Route) -> bool:
    """Whether a base URL goes on behind the job of its route, where the SDK puts its own paths.

    Other routes may be of a whole server: there may be a trainer further down.
    """
    return route.is_named_by_job and path_of(url) != route.path


def port_of(url: httpx.URL) -> int:
    """The port of a URL, or that of its scheme: http, https or a SOCKS proxy's."""
    if url.port is not None:
        return url.port
    if url.scheme.startswith("socks"):
        return 1080
    return 443 if url.scheme == "https" else 80


def host_and_port(url: httpx.URL) -> str:
    """The place that a URL is at, port included; an IPv6 address without brackets."""
    return f"{url.host}:{port_of(url)}"
