"""The clients of an SDK: their transports, and how to build another client like them.

An SDK client keeps its `httpx.AsyncClient` in the attribute `_client`, a REST client of Fireworks'
SDK an `httpx.Client` and an `httpx.AsyncClient` in two others. Each has a transport of its own, and
one for each proxy.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar
from weakref import ref

import httpx

from tinker_guard.faults import log_fault
from tinker_guard.transports.borrowed import BorrowedTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

AnyClient: TypeAlias = httpx.AsyncClient | httpx.Client
AnyTransport: TypeAlias = httpx.AsyncBaseTransport | httpx.BaseTransport

# The type of the keys of a client's `_mounts`; None stands for the client's own transport.
Pattern = Any


class WeakRegistry(Generic[_T]):
    """Weak references to objects, by identity. Thread-safe.

    A `WeakSet` is not: iterating over it raises `RuntimeError` if another thread adds an object
    meanwhile, or if an object is collected. Here each operation on the dictionary is atomic.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, ref[_T]] = {}
        """The references by id, for fast look-ups. An id is removed before Python can reuse it."""

    def add(self, item: _T) -> None:
        """Add an object; the garbage collector's callback removes it."""
        # The callback must not refer to the registry: that would keep the registry alive.
        by_id, key = self.by_id, id(item)
        by_id[key] = ref(item, lambda _: by_id.pop(key, None))

    def __contains__(self, item: object) -> bool:
        return id(item) in self.by_id

    def __iter__(self) -> Iterator[_T]:
        for reference in self.by_id.copy().values():
            item = reference()
            if item is not None:
                yield item


class ClientAttribute:
    """An attribute of an SDK's client class; reports the first use of each httpx client in it.

    Every request of an SDK client reads this attribute, so the descriptor finds a client that was
    built before the installation at its next request. A descriptor with `__set__` takes precedence
    over the instance's own attribute, which keeps the value: removing the descriptor restores the
    client.

    Args:
        name: The attribute.
        known: The httpx clients that are not reported.
        on_first_use: Called with an SDK client whose httpx client is not known.
    """

    def __init__(
        self, name: str, known: WeakRegistry[AnyClient], on_first_use: Callable[[Any], None]
    ) -> None:
        self._name = name
        self._known_ids = known.by_id
        self._on_first_use = on_first_use

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        try:
            client = instance.__dict__[self._name]
        except (AttributeError, KeyError):  # read from the class, or before the constructor set it
            name = type(owner if instance is None else instance).__name__
            raise AttributeError(f"{name!r} object has no attribute {self._name!r}") from None
        # None: the SDK builds the client when it is first used.
        if client is not None and id(client) not in self._known_ids:
            self._on_first_use(instance)
        return client

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def __delete__(self, instance: Any) -> None:
        try:
            del instance.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None


def transports_of(client: AnyClient) -> list[tuple[Pattern, AnyTransport]]:
    """A client's own transport and its proxy mounts (a mount may be None: no proxy there)."""
    return [
        (None, client._transport),
        *((pattern, mount) for pattern, mount in client._mounts.items() if mount is not None),
    ]


def set_transport(client: Any, pattern: Pattern, transport: AnyTransport) -> None:
    """Replace the transport of a client that `transports_of` lists under this pattern."""
    if pattern is None:
        client._transport = transport
    else:
        client._mounts[pattern] = transport


def is_built_like(client: AnyClient, other: AnyClient) -> bool:
    """Whether two clients have the same types of transports; a user's own client has others.

    TLS contexts are not compared.
    """
    return (
        type(client) is type(other)
        and client.timeout == other.timeout
        and _kinds_of_transports(client) == _kinds_of_transports(other)
    )


def _kinds_of_transports(client: AnyClient) -> list[tuple[Pattern, type[AnyTransport]]]:
    return [(pattern, type(transport)) for pattern, transport in transports_of(client)]


# Where a client keeps the arguments of its constructor. All tested releases have these parameters
# and `_use_pyqwest`, and no others.
_ATTRIBUTE_OF: Final = {
    "api_key": "api_key",
    "base_url": "base_url",
    "timeout": "timeout",
    "max_retries": "max_retries",
    "default_headers": "_custom_headers",
    "default_query": "_custom_query",
    "_strict_response_validation": "_strict_response_validation",
    "_auth": "_auth",
    "_client_config": "_client_config",
}
_USE_PYQWEST: Final = "_use_pyqwest"
"""Parameter of tinker 0.22.0 to 0.22.2, whose clients do not store it."""
_CLASS_OF_OWN_CLIENTS: Final = "AsyncHttpxClientWrapper"


def constructor_arguments(sdk_client: Any, init: Callable[..., None]) -> dict[str, Any] | None:
    """Keyword arguments that build another SDK client with the same kind of transport.

    Args:
        sdk_client: A client that exists.
        init: The constructor of its class.

    Returns:
        The arguments; None if the program passed in the httpx client, which they cannot rebuild, or
        if the constructor has an unknown parameter.
    """
    own = type(vars(sdk_client)["_client"])
    modules = {base.__module__ for base in type(sdk_client).__mro__}
    if own.__name__ != _CLASS_OF_OWN_CLIENTS or own.__module__ not in modules:
        return None
    _, *names = inspect.signature(init).parameters
    wanted = set(names) - {"http_client"}
    if not wanted <= {*_ATTRIBUTE_OF, _USE_PYQWEST}:
        return None
    arguments = {
        name: getattr(sdk_client, attribute)
        for name, attribute in _ATTRIBUTE_OF.items()
        if name in wanted and hasattr(sdk_client, attribute)
    }
    if _USE_PYQWEST in wanted:
        transport = vars(sdk_client)["_client"]._transport
        arguments[_USE_PYQWEST] = type(transport).__module__.startswith("pyqwest.")
    return arguments


def twin_of(transport: AnyTransport) -> AnyTransport | None:
    """Copy one of httpx's own transports, without its connections; None if that is not possible.

    The copy shares the loaded certificates, because loading them takes tens of milliseconds of the
    event loop, and has the same limits and the same proxy.
    """
    if type(transport) not in (httpx.AsyncHTTPTransport, httpx.HTTPTransport):
        return None
    if list(vars(transport)) != ["_pool"]:
        return None
    pool: Any = vars(transport)["_pool"]
    names = set(inspect.signature(type(pool)).parameters)
    if not hasattr(pool, "_proxy_auth"):
        # The credentials are in the headers for the proxy.
        names.discard("proxy_auth")
    if not all(hasattr(pool, f"_{name}") for name in names):
        return None
    twin = object.__new__(type(transport))
    twin.__dict__["_pool"] = type(pool)(**{name: getattr(pool, f"_{name}") for name in names})
    return twin


def borrower(
    build: Callable[[], AnyClient], pattern: Pattern, first: AnyTransport
) -> Callable[[], AnyTransport]:
    """A function that builds another transport like one of a client's, as the SDK does.

    Args:
        build: Builds another client.
        pattern: The transport's key in `transports_of`.
        first: The existing transport.
    """

    def borrow() -> AnyTransport:
        twin = None
        try:
            twin = twin_of(first)
        except Exception:
            log_fault("building a transport like another one")
        if twin is not None:
            return twin
        client = build()
        # `_mounts` compares its keys by their pattern, so our key finds the new client's mount.
        transport = client._transport if pattern is None else client._mounts[pattern]
        if isinstance(client, httpx.Client):
            # The garbage collector does not close a sync client, so the transport stays open.
            assert isinstance(transport, httpx.BaseTransport)
            return transport
        assert isinstance(transport, httpx.AsyncBaseTransport)
        return BorrowedTransport(transport, client)

    return borrow
