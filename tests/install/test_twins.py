from __future__ import annotations

import ssl
from typing import Any

import httpx
import pytest

from testkit.clients import pool_of
from testkit.fakes import FakeGateway
from tinker_guard.install.clients import borrower, twin_of

STATE = {"_connections", "_requests", "_optional_thread_lock"}
"""What a pool changes as it is used."""


@pytest.mark.parametrize("kind", [httpx.AsyncHTTPTransport, httpx.HTTPTransport])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"http2": True, "retries": 3, "limits": httpx.Limits(max_connections=7)},
        {"uds": "/run/gateway.sock", "socket_options": [(1, 2, 3)]},
        {"proxy": "http://name:word@127.0.0.1:9"},
    ],
)
def test_a_twin_has_all_that_the_first_one_has_but_its_connections(
    kind: Any, arguments: dict[str, Any]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    first = kind(verify=context, **arguments)
    twin = twin_of(first)
    assert type(twin) is kind
    ours, theirs = pool_of(twin), pool_of(first)
    assert ours["_ssl_context"] is context
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - STATE:
        assert ours[name] == theirs[name], name
    for name in STATE:
        assert ours[name] is not theirs[name], name


def test_of_what_is_not_known_no_twin_is_made() -> None:
    class Own(httpx.AsyncHTTPTransport):
        pass

    extended = httpx.AsyncHTTPTransport(verify=False)
    vars(extended)["hook"] = print
    renamed = httpx.AsyncHTTPTransport(verify=False)
    del renamed._pool._keepalive_expiry  # noqa: SLF001 - another release of httpcore may have none
    for first in (Own(verify=False), extended, renamed, FakeGateway().new_transport()):
        assert twin_of(first) is None


@pytest.mark.meets_fault
def test_a_twin_that_cannot_be_made_is_built_as_the_client_was() -> None:
    first = httpx.HTTPTransport(verify=False)
    vars(first)["_pool"] = len
    client = httpx.Client(verify=False)
    borrowed = borrower(lambda: client, None, first)()
    assert isinstance(borrowed, httpx.HTTPTransport)
    assert pool_of(borrowed)["_connections"] == []
