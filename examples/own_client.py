"""A client of your own behind the guard, for those who call a trainer without an SDK.

TINKER_API_KEY=... python examples/own_client.py https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB
"""

from __future__ import annotations

import asyncio
import os
import sys

import httpx

from tinker_guard import GuardTransport


def guarded_client(trainer_url: str, api_key: str) -> httpx.AsyncClient:
    """Build a client whose requests to a trainer see through routing races.

    Args:
        trainer_url: The trainer's route, without `/api/v1`.
        api_key: Key for the trainer, and for the control plane at the same origin.
    """

    def new_transport() -> httpx.AsyncBaseTransport:
        # TLS, HTTP/2, limits and a proxy are set here: httpx ignores those of the client, and
        # HTTPS_PROXY, when the client is given a transport.
        return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=50))

    return httpx.AsyncClient(
        transport=GuardTransport(new_transport(), new_transport=new_transport),
        base_url=trainer_url,
        headers={"X-Api-Key": api_key},
        # For one exchange. A race may take `retry_timeout` on top of it.
        timeout=60,
    )


async def main(trainer_url: str) -> None:
    """Print what the trainer can do."""
    async with guarded_client(trainer_url, os.environ["TINKER_API_KEY"]) as client:
        response = await client.get("/api/v1/get_server_capabilities")
    # A 404 that comes through is true, or nobody could say; the log tells which.
    response.raise_for_status()
    sys.stdout.write(response.text + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
