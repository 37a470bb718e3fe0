"""The SDK that the tests drive, and what its release can do.

`make matrix` runs the tests with many releases. What differs between them is told here, so that a
test need not know them: it asks for a feature, and is skipped with the reason where a release
lacks it.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tinker_guard.install.sdks import SDKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinker_guard.gateway.faults import Transport

_installed = next((sdk for sdk in SDKS if sdk.is_installed()), None)
if _installed is None:
    pytest.skip("needs the tinker SDK or fireworks-ai", allow_module_level=True)

# The gateway needs an extra, which may be missing where there is no SDK.
from tinker_guard.gateway import Fault, LocalGateway  # noqa: E402

NAME = f"{_installed.distribution} {_installed.version}"
IS_FIREWORKS = _installed.distribution == "fireworks-ai"

_core = _installed.holder_module.removesuffix(".lib.internal_client_holder")
_root = "fireworks.training.sdk" if IS_FIREWORKS else "tinker"

holder = importlib.import_module(_installed.holder_module)
client_class: Any = getattr(holder, _installed.client_name)
types = importlib.import_module(f"{_root}.types")
_exceptions = importlib.import_module(f"{_core}._exceptions")
NotFoundError: type[Exception] = _exceptions.NotFoundError
SdkError: type[Exception] = _exceptions.TrainingError if IS_FIREWORKS else _exceptions.TinkerError

_parameters = inspect.signature(client_class.__init__).parameters
_has_flag = "_use_pyqwest" in _parameters
"""As tinker 0.22.0 has, in the place of a configuration."""
_config: set[str] = set()
"""What a server can choose for the clients of this release."""
if _has_flag or "_client_config" in _parameters:
    _config = set(types.ClientConfigResponse.model_fields)
HAS_PYQWEST = "use_pyqwest_transport" in _config
HAS_JSON_AND_PROTOBUF = not IS_FIREWORKS and "proto_write_fwdbwd" in _config
HAS_SESSION_POLLER = "sample_use_retrieve_futures" in _config
"""Whether one poll asks for all samples of a sampling session."""
HAS_SIDECAR = importlib.util.find_spec(f"{_core}.lib.sidecar") is not None
"""Whether samples can be asked for by a process beside the user's, `TINKER_SUBPROCESS_SAMPLING`."""
_sampling = importlib.import_module(f"{_core}.lib.public_interfaces.sampling_client")
CAN_PICKLE_CLIENTS = hasattr(_sampling, "_unpickle_sampling_client")

TRANSPORTS = [
    pytest.param(
        "pyqwest",
        marks=pytest.mark.skipif(not HAS_PYQWEST, reason=f"{NAME} does not send over pyqwest"),
    ),
    "httpx",
]
"""Values for `@pytest.mark.parametrize("transport", ...)`."""

ONCE_EACH = [
    (seq_id, "forward_backward" if seq_id % 2 else "optim_step") for seq_id in range(1, 11)
]
"""The work of five steps."""


def work_of(gateway: LocalGateway) -> list[tuple[int, str]]:
    """What the trainer has done."""
    return [(done.seq_id, done.operation) for done in gateway.applied]


class Gateway(LocalGateway):
    """A gateway whose key looks like one of the SDK's.

    A Fireworks client with a `tml-` key behaves like one of tinker.
    """

    api_key = "fw-local-gateway-key" if IS_FIREWORKS else LocalGateway.api_key


def client(*, transport: Transport | None = None, **kwargs: Any) -> Any:
    """Build the SDK's async client, over one inner transport or the one that it chooses."""
    if transport is not None and HAS_PYQWEST:
        use_pyqwest = transport == "pyqwest"
        if _has_flag:
            kwargs["_use_pyqwest"] = use_pyqwest
        else:
            kwargs["_client_config"] = types.ClientConfigResponse(use_pyqwest_transport=use_pyqwest)
    return client_class(**kwargs)


def holder_loop() -> Any:
    """The event loop on which the SDK's holders work; None if it was not started."""
    return holder._internal_client_holder_thread_singleton.loop_if_started()


def start_holder_loop() -> Any:
    """The same, started if it was not."""
    return holder._internal_client_holder_thread_singleton.get_loop()


def take_out_holder(client: Any) -> Any:
    """Take a client's holder, which the SDK would keep open for ever, out of the SDK's cache."""
    holders = holder.sessionless_holder_cache._holders
    (key,) = [key for key, held in holders.items() if held is client.holder]
    return holders.pop(key)


def pyqwest_transport() -> Any:
    """What the SDK sends over if it is not told otherwise."""
    return importlib.import_module(f"{_core}._base_client")._default_pyqwest_transport()


@contextmanager
def connected(gateway: LocalGateway) -> Iterator[Any]:
    """A service client, closed in the end, come what may."""
    root, config = importlib.import_module(_root), {}
    if IS_FIREWORKS and gateway.fault.transport == "httpx":
        # It has a configuration of its own and does not ask the server for one.
        firetitan = importlib.import_module("fireworks.training.sdk.client")
        settings = firetitan.FIRETITAN_TINKER_CLIENT_CONFIG | {"use_pyqwest_transport": False}
        config["_client_config"] = settings
    with garbage_kept():
        service = root.ServiceClient(base_url=gateway.base_url, api_key=gateway.api_key, **config)
        try:
            yield service
        finally:
            # Closing sends requests too, which a fault may still hit.
            with suppress(SdkError):
                _close(service)


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Keep the garbage collector from the threads of event loops; it runs here afterwards.

    The SDK forgets the httpx client of its first request. If it is collected on a thread with a
    running loop, such as the gateway's, its finalizer leaves the closing to that loop. By then
    asyncio has closed the socket itself, and if the SDK's next connection has got the same file
    descriptor meanwhile, that one is no longer watched: its answer comes and is never read
    (python/cpython#130141). On a thread without a running loop, the finalizer does nothing.
    """
    if not gc.isenabled():
        # Somebody else sees to it.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


CLOSE_TIMEOUT = 5.0
"""Seconds that closing may take; it takes a few milliseconds."""
_closed: list[Any] = []
"""Service clients of old releases, kept from the garbage collector.

It may run on the SDK's own event loop, and there tinker 0.3.0's destructor waits for that very
loop, for ever.
"""


def _close(service: Any) -> None:
    if not hasattr(service, "close"):
        service.holder.close()
        _closed.append(service)
    elif "status" in inspect.signature(service.close).parameters:
        # On Python 3.11, now and then for ever: pyqwest reads answers in `asyncio.wait_for`, which
        # there loses a cancellation that comes as its result does (python/cpython#86296). The SDK's
        # poller then idles on, and closing waits for its end. The guard has no part in it.
        with suppress(TimeoutError):
            service.close("success").result(CLOSE_TIMEOUT)
    else:
        service.close()


def create_training_client(service: Any) -> Any:
    """Create a model, and wait until it is there."""
    return for_running_loop(
        service.create_lora_training_client(base_model="tinker-guard/bigram", rank=8)
    )


def for_running_loop(created: Any) -> Any:
    """A client; older releases return it itself, newer ones a future of it."""
    return created.result() if hasattr(created, "result") else created


def soon_over(fault: Fault) -> Fault:
    """The same fault with races of 0.2 s, which is two of the guard's pauses.

    So is a route that is late everywhere; where another replica has it, nobody waits for it.
    """
    late = fault.route_known_after
    return replace(
        fault,
        races=tuple(replace(race, seconds=min(race.seconds, 0.2)) for race in fault.races),
        route_known_after=(0.4,) if len(late) == fault.replicas == 1 else late,
    )


def operations_of(fault: Fault) -> set[str]:
    """The operations whose requests set the fault off; without them, nothing goes wrong."""
    operations = {race.operation for race in fault.races}
    operations |= {lost.operation for lost in fault.lost_replies}
    if fault.stop is not None:
        operations.add(fault.stop.operation)
    return operations | set(fault.trainer_lacks)
