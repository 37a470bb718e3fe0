"""A guarded client of your own, for programs that call a trainer without an SDK.

TINKER_API_KEY=... python examples/own_client.py https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB
"""

from __future__ import annotations

import asyncio
import os
import sys

import httpx

from tinker_guard import GuardTransport


def guarded_client(trainer_url: str, api_key: str) -> httpx.AsyncClient:
    """Build a client whose requests to a trainer survive routing races.

    Args:
        trainer_url: The trainer's route, without `/api/v1`.
        api_key: Key for the trainer, and for the control plane at the same origin.
    """

    def new_transport() -> httpx.AsyncBaseTransport:
        # Set TLS, HTTP/2, limits and a proxy here: for a client with a transport, httpx ignores
        # the client's own, and HTTPS_PROXY.
        return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=50))

    return httpx.AsyncClient(
        transport=GuardTransport(new_transport(), new_transport=new_transport),
        base_url=trainer_url,
        headers={"X-Api-Key": api_key},
        # For one exchange. A race may take `retry_timeout` in addition.
        timeout=60,
    )


async def main(trainer_url: str) -> None:
    """Print the trainer's capabilities."""
    async with guarded_client(trainer_url, os.environ["TINKER_API_KEY"]) as client:
        response = await client.get("/api/v1/get_server_capabilities")
    # A 404 here is genuine, or could not be judged, or outlasted the budget; see the log.
    response.raise_for_status()
    sys.stdout.write(response.text + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
