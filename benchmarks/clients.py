"""One false 404 met by the clients that are not the SDK's own, unguarded and guarded.

    python -m benchmarks.clients

Needs fireworks-ai with its extra `training-sdk`, in an environment such as `make matrix` makes:
`.matrix/fireworks-ai-1.2.30/bin/python`. Each line of what it prints is a row of docs/clients.md.
"""

# A tool for the command line: it prints.
# ruff: noqa: T201

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import requests

from examples.requests_adapter import GuardedAdapter
from testkit.rest_clients import (
    async_client_of,
    deployment_manager,
    deployment_sampler,
    is_healthy,
    new_holder,
    post,
    service_client,
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

SERVERLESS: Final = "/training/v1/serverless"
DEPLOYMENT: Final = "dep-1"
MODEL: Final = "accounts/fireworks/models/m"


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
        # Kept: the SDK closes the client with the object that holds it.
        holder = new_holder(gateway.base_url)
        client = await async_client_of(holder)
        headers = {"X-Api-Key": gateway.api_key}
        answer = await client.get(f"{gateway.base_url}/api/v1/healthz", headers=headers)
        await client.aclose()
        return f"{answer.status_code}"

    return asyncio.run(send())


def hot_load(gateway: LocalGateway) -> str:
    """Load a snapshot onto a deployment."""
    manager = deployment_manager(gateway.origin, gateway.api_key)
    set_account(manager, "demo")
    manager.hotload(DEPLOYMENT, MODEL, "snapshot-1")
    return f"loaded {len(gateway.world.serving.loaded)} time"


def wait_for_hot_load(gateway: LocalGateway) -> str:
    """Wait for a snapshot to be loaded: its state, 5 s, again."""
    manager = deployment_manager(gateway.origin, gateway.api_key)
    set_account(manager, "demo")
    gateway.world.serving.loaded.append("snapshot-1")
    return f"loaded: {manager.wait_for_hotload(DEPLOYMENT, MODEL, 'snapshot-1')}"


def complete(gateway: LocalGateway) -> str:
    """Ask a deployment for a completion; the SDK sends again, 5 s after a 404."""
    model = f"accounts/demo/deployments/{DEPLOYMENT}"

    async def send() -> str:
        sampler = deployment_sampler(gateway.origin, model, gateway.api_key)
        answer, _ = await sampler.async_completions_stream([1, 2], max_tokens=1)
        return f"{len(answer['choices'])} completion"

    return asyncio.run(send())


def create_sampling_route(gateway: LocalGateway) -> str:
    """Have the gateway write a sampler's route at the serverless trainer."""
    answer = post(new_holder(gateway.origin + SERVERLESS), "/api/v1/create_sampling_route")
    return f"{answer.status_code}"


def create_model(gateway: LocalGateway) -> str:
    """Create a session and a model at the serverless trainer."""
    client = service_client(gateway.origin + SERVERLESS, "fw-key")
    client.create_lora_training_client(base_model="tinker-guard/bigram").get_info()
    return "created"


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


class Row(NamedTuple):
    """One client, and what it meets."""

    client: str
    send: Callable[..., str]
    operation: str = "healthz"
    is_own: bool = False
    """Whether the program guards it by itself."""
    routes: tuple[str, ...] = ()
    """The setting."""


CLIENTS: Final = (
    Row("`TrainerJobManager.wait_for_existing()`, sync httpx", wait_for_trainer),
    Row("`TrainerJobManager._check_healthz()`, sync httpx", check_health),
    Row("`_RestClient`'s async httpx client", send_with_async_client),
    Row("`DeploymentManager.hotload()`, sync httpx", hot_load, "hot_load"),
    Row("`DeploymentManager.wait_for_hotload()`, sync httpx", wait_for_hot_load, "hot_load"),
    Row("`DeploymentSampler.async_completions_stream()`, async httpx", complete, "completions"),
    *(
        Row(f"serverless `{operation}`, {what}", send, operation, routes=routes)
        for operation, what, send in (
            ("create_sampling_route", "sync httpx", create_sampling_route),
            ("create_session", "the SDK's client", create_model),
            ("create_model", "the SDK's client", create_model),
        )
        for routes in ((), (SERVERLESS,))
    ),
    Row("an `httpx.Client` of the program's own", send_with_httpx, is_own=True),
    Row("a `requests.Session` of the program's own", send_with_requests, is_own=True),
)


def measure(row: Row, *, is_guarded: bool) -> str:
    """Let a client meet one false 404.

    Returns:
        What came of it, and after how long.
    """
    ROUTES.clear()
    # Fireworks' serverless trainer knows no such path.
    fault = Fault(races=(Race(row.operation, 1, 0.0),), trainer_lacks=("get_server_capabilities",))
    with LocalGateway(fault if row.routes else replace(fault, trainer_lacks=())) as gateway:
        if is_guarded:
            install_guard(routes=row.routes)
        given = {"is_guarded": is_guarded} if row.is_own else {}
        began = time.perf_counter()
        try:
            came_of_it = row.send(gateway, **given)
        except Exception as error:
            came_of_it = f"dies: `{type(error).__name__}`"
        seconds = time.perf_counter() - began
        uninstall_guard()
    return f"{came_of_it}, {seconds:.2f} s"


def main() -> None:
    """Print the table."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    logging.disable()
    print("| client | unguarded | guarded |\n|---|---|---|")
    for row in CLIENTS:
        cells = [measure(row, is_guarded=is_guarded) for is_guarded in (False, True)]
        name = row.client + (f", `routes={row.routes[0]}`" if row.routes else "")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
