"""What clients of an SDK and of httpx keep in private attributes.

The guard puts itself there, since neither has another place for it. So tests read these attributes,
here and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

CLIENT: Final = "_client"
"""An SDK client's attribute that holds its httpx client."""

_T = TypeVar("_T", bound=httpx.AsyncBaseTransport)


def httpx_client_of(sdk_client: Any) -> Any:
    """The httpx client in an SDK client, read as the SDK reads it."""
    return getattr(sdk_client, CLIENT)


def transport_of(client: Any) -> Any:
    """What an SDK client, or an httpx client, sends over."""
    inner = client if isinstance(client, httpx.AsyncClient) else httpx_client_of(client)
    return inner._transport


def mounts_of(sdk_client: Any) -> Mapping[Any, Any]:
    """The transports of an SDK client for proxies; None where there is no proxy."""
    mounts: Mapping[Any, Any] = httpx_client_of(sdk_client)._mounts
    return mounts


def put_transport(client: httpx.AsyncClient, transport: _T) -> _T:
    """Have an httpx client send over another transport."""
    client._transport = transport
    return transport


def pool_of(transport: Any) -> Mapping[str, Any]:
    """What the pool of connections of an httpx transport holds, by the names of its attributes."""
    held: Mapping[str, Any] = vars(transport._pool)
    return held


def proxy_host_of(transport: Any) -> bytes:
    """The host of the proxy that an httpx transport sends through."""
    host: bytes = transport._pool._proxy_url.host
    return host


def pyqwest_transport() -> httpx.AsyncBaseTransport:
    """A new transport of pyqwest's."""
    pyqwest = pytest.importorskip("pyqwest", reason="comes with the tinker SDK")
    from pyqwest.httpx import AsyncPyqwestTransport

    transport: httpx.AsyncBaseTransport = AsyncPyqwestTransport(pyqwest.HTTPTransport())
    return transport
