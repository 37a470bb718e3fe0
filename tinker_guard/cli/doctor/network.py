"""Checks of the network: proxies, and the reasons of failed connections."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from tinker_guard.cli.doctor.base_url import is_local
from tinker_guard.cli.doctor.finding import Finding, Section, Status, listed
from tinker_guard.policy.url import host_and_port, parse_http, port_of
from tinker_guard.transports.proxies import parse_proxy, proxy_for

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_proxy(url: str | None) -> Iterator[Finding]:
    """Report the proxies of the environment, and whether the base URL is behind one."""
    say = partial(Finding, Section.GATEWAY, "proxy")
    proxies = {
        scheme: value
        for scheme, value in urllib.request.getproxies().items()
        if scheme in ("http", "https", "all")
    }
    if not proxies:
        yield say(Status.OK, "none")
        return
    unusable = [scheme for scheme, value in proxies.items() if parse_proxy(value) is None]
    if unusable:
        yield say(
            Status.PROBLEM,
            f"{listed([f'{scheme.upper()}_PROXY' for scheme in unusable])} cannot be read as a URL",
            "It should look like http://HOST:PORT",
        )
        return
    if any(value.startswith("socks") for value in proxies.values()) and not find_spec("socksio"):
        yield say(
            Status.PROBLEM,
            "a SOCKS proxy is set, for which httpx lacks a package",
            "Run: pip install 'httpx[socks]'",
        )
        return
    named = listed([f"{scheme} through {_place_of(value)}" for scheme, value in proxies.items()])
    parsed = None if url is None else parse_http(url)
    if parsed is None:
        yield say(Status.OK, named)
    elif proxy_for(parsed) is None:
        yield say(Status.OK, f"{named}; not for the base URL")
    elif is_local(parsed.host):
        yield say(
            Status.WARNING,
            f"{named}; for the base URL too, although it is of this machine or network",
            f"Add {parsed.host} to NO_PROXY.",
        )
    else:
        yield say(Status.OK, f"{named}; for the base URL too")


def _place_of(proxy: str) -> str:
    url = parse_proxy(proxy)
    assert url is not None
    return host_and_port(url)


class Obstacle(NamedTuple):
    """The reason why a host cannot be reached, and the remedy."""

    reason: str
    to_do: str


_CONNECT_TIMEOUT: Final = 3.0


def find_obstacle(url: httpx.URL) -> Obstacle | None:
    """The reason why a connection to a URL's host fails; None if it succeeds.

    Args:
        url: The URL. Behind a proxy, the connection to the proxy is tried instead.
    """
    proxy = proxy_for(url)
    if proxy is None:
        return _try(url)
    obstacle = _try(proxy)
    if obstacle is None:
        return None
    return Obstacle(
        f"{obstacle.reason}, and it is the proxy for {url.host}",
        f"Check {url.scheme.upper()}_PROXY, or add {url.host} to NO_PROXY.",
    )


def _try(url: httpx.URL) -> Obstacle | None:
    place = host_and_port(url)
    try:
        with socket.create_connection((url.host, port_of(url)), _CONNECT_TIMEOUT) as connection:
            if url.scheme == "https":
                context = httpx.create_ssl_context()
                context.load_default_certs()
                context.wrap_socket(connection, server_hostname=url.host).close()
    # All of these are subclasses of OSError.
    except socket.gaierror:
        return Obstacle(f"the name {url.host} is not known (DNS)", "Check how it is spelt.")
    except ssl.SSLCertVerificationError as error:
        return Obstacle(
            f"{place} shows a certificate that is not trusted here ({error.verify_message})",
            "If it is your company's own, name its authority in SSL_CERT_FILE.",
        )
    except ssl.SSLError:
        return Obstacle(f"{place} does not speak TLS", "Check the port, or use http://.")
    except TimeoutError:
        return Obstacle(
            f"{place} did not take a connection within {_CONNECT_TIMEOUT:g} s",
            "Check host and port, the network, and whether a proxy is needed (HTTPS_PROXY).",
        )
    except ConnectionRefusedError:
        return Obstacle(f"nobody listens at {place}", "Check host and port, and start the server.")
    except OSError as error:
        return Obstacle(
            f"{place} cannot be reached ({error.strerror or type(error).__name__})",
            "Check host and port, and the network.",
        )
    return None
