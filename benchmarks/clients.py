"""One false 404 met by the clients that are not the SDK's own, unguarded and guarded.

    python -m benchmarks.clients

Needs fireworks-ai with its extra `training-sdk`, in an environment such as `make matrix` makes:
`.matrix/fireworks-ai-1.2.30/bin/python`. Each line of what it prints is a row of docs/clients.md.
"""

# A tool for the command line: it prints.
# ruff: noqa: T201

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

import httpx
import requests

from examples.requests_adapter import GuardedAdapter
from testkit.rest_clients import (
    async_client_of,
    is_healthy,
    new_holder,
    set_account,
    trainer_manager,
)
from tinker_guard import (
    Fault,
    LocalGateway,
    Race,
    SyncGuardTransport,
    install_guard,
    uninstall_guard,
)
from tinker_guard.core.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_FALSE_404: Final = Fault(races=(Race("healthz", 1, 0.0),))


def wait_for_trainer(gateway: LocalGateway) -> str:
    """Wait for a trainer as the SDK does before a run: job state, health check, 5 s, again."""
    manager = trainer_manager(gateway.origin, gateway.api_key)
    set_account(manager, "demo")
    endpoint = manager.wait_for_existing("job-1")
    assert endpoint.base_url == gateway.base_url
    return "ready"


def check_health(gateway: LocalGateway) -> str:
    """Ask for the trainer's health once."""
    manager = trainer_manager(gateway.origin, gateway.api_key)
    return "healthy" if is_healthy(manager, gateway.base_url) else "not healthy"


def send_with_async_client(gateway: LocalGateway) -> str:
    """Send over the async client of a REST client whose base URL is the trainer route."""

    async def send() -> str:
        client = await async_client_of(new_holder(gateway.base_url))
        headers = {"X-Api-Key": gateway.api_key}
        answer = await client.get(f"{gateway.base_url}/api/v1/healthz", headers=headers)
        await client.aclose()
        return f"{answer.status_code}"

    return asyncio.run(send())


def send_with_httpx(gateway: LocalGateway, *, is_guarded: bool) -> str:
    """Send over a sync client of the program's own."""
    make = httpx.HTTPTransport
    transport = SyncGuardTransport(make(), new_transport=make) if is_guarded else make()
    with httpx.Client(transport=transport, headers={"X-Api-Key": gateway.api_key}) as client:
        return f"{client.get(f'{gateway.base_url}/api/v1/healthz').status_code}"


def send_with_requests(gateway: LocalGateway, *, is_guarded: bool) -> str:
    """Send over a session of `requests`."""
    with requests.Session() as session:
        if is_guarded:
            session.mount("http://", GuardedAdapter())
        session.headers["X-Api-Key"] = gateway.api_key
        return f"{session.get(f'{gateway.base_url}/api/v1/healthz', timeout=5).status_code}"


CLIENTS: Final[dict[str, Callable[[LocalGateway], Any]]] = {
    "`TrainerJobManager.wait_for_existing()`, sync httpx": wait_for_trainer,
    "`TrainerJobManager._check_healthz()`, sync httpx": check_health,
    "`_RestClient`'s async httpx client": send_with_async_client,
}
OWN_CLIENTS: Final[dict[str, Callable[..., Any]]] = {
    "an `httpx.Client` of the program's own": send_with_httpx,
    "a `requests.Session` of the program's own": send_with_requests,
}


def main() -> None:
    """Print the table."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    print("| client | unguarded | guarded |\n|---|---|---|")
    for name, send in (CLIENTS | OWN_CLIENTS).items():
        cells = []
        for is_guarded in (False, True):
            ROUTES.clear()
            with LocalGateway(ONE_FALSE_404) as gateway:
                if is_guarded:
                    install_guard()
                given = {"is_guarded": is_guarded} if name in OWN_CLIENTS else {}
                began = time.perf_counter()
                came_of_it = send(gateway, **given)
                cells.append(f"{came_of_it}, {time.perf_counter() - began:.2f} s")
                uninstall_guard()
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
