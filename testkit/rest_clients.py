"""The REST clients of Fireworks' SDK: the installed ones, or a stand-in of the same shape."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE: Final = "fireworks.training.sdk._rest_client"
TRAINER_MODULE: Final = "fireworks.training.sdk.trainer"
IS_REAL: Final = importlib.util.find_spec("fireworks") is not None

REST_CLIENT: Final = """
import asyncio
import httpx

def _make_sync_client(verify):
    return httpx.Client(verify=verify, timeout=httpx.Timeout(60.0))

def _make_async_client(verify):
    timeout = httpx.Timeout(connect=30.0, read=600.0, write=30.0, pool=30.0)
    return httpx.AsyncClient(verify=verify, timeout=timeout)

class _RestClient:
    def __init__(self, api_key, base_url="https://api.fireworks.ai"):
        self.api_key = api_key
        self.base_url = base_url
        self._base_verify = base_url.startswith("https:")
        self._sync_client = _make_sync_client(self._base_verify)
        self._async_client = None
        self._async_client_loop = None

    def _get_async_client(self):
        loop = asyncio.get_running_loop()
        if self._async_client is None or self._async_client.is_closed:
            self._async_client = _make_async_client(self._base_verify)
        elif self._async_client_loop not in (None, loop):
            self._async_client = _make_async_client(self._base_verify)
        self._async_client_loop = loop
        return self._async_client

    def _headers(self, **extra):
        return {"X-Api-Key": self.api_key, **extra}

    def _get(self, path, **kwargs):
        return self._sync_client.get(self.base_url + path, headers=self._headers(), **kwargs)

    def close(self):
        self._sync_client.close()
"""
"""What `_rest_client.py` of fireworks-ai 1.2.30 does, as far as the guard has to do with it."""

TRAINER: Final = """
from fireworks.training.sdk._rest_client import _RestClient

class TrainerJobManager(_RestClient):
    def _check_healthz(self, base_url, timeout=5):
        try:
            headers = self._headers(Authorization=f"Bearer {self.api_key}")
            answer = self._sync_client.get(
                f"{base_url}/api/v1/healthz", headers=headers, timeout=timeout
            )
            return answer.status_code == 200
        except Exception:
            return False
"""


DEPLOYMENT: Final = """
from fireworks.training.sdk._rest_client import _RestClient

class DeploymentManager(_RestClient):
    def hotload(self, deployment_id, base_model, snapshot_identity, timeout=60):
        name = f"accounts/{self._account_id}/deployments/{deployment_id}"
        headers = {"fireworks-model": base_model, "fireworks-deployment": name}
        answer = self._sync_client.request(
            "POST",
            f"{self.base_url}/hot_load/v1/models/hot_load",
            headers=self._headers(Authorization=f"Bearer {self.api_key}", **headers),
            json={"identity": snapshot_identity, "reset_prompt_cache": True},
            timeout=timeout,
        )
        answer.raise_for_status()
        return answer.json()
"""


def write_stand_in(place: Path, rest_client: str | None = REST_CLIENT) -> None:
    """Write a package like fireworks-ai.

    Args:
        place: A directory on `sys.path`.
        rest_client: The module with the REST clients; None for a release that has none.
    """
    package = place / "fireworks" / "training" / "sdk"
    package.mkdir(parents=True, exist_ok=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "trainer.py").write_text(TRAINER)
    (package / "deployment.py").write_text(DEPLOYMENT)
    (package / "_rest_client.py").unlink(missing_ok=True)
    if rest_client is not None:
        (package / "_rest_client.py").write_text(rest_client)
    importlib.invalidate_caches()


@contextmanager
def not_imported_yet() -> Iterator[None]:
    """Have the modules imported anew, and be as before in the end."""
    kept = {name: module for name, module in sys.modules.items() if _is_concerned(name)}
    for name in kept:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_concerned(name)]:
            del sys.modules[name]
        sys.modules.update(kept)


def _is_concerned(name: str) -> bool:
    if not IS_REAL:
        return name.partition(".")[0] == "fireworks"
    # The rest of the SDK may be in use, and has nothing to do with these.
    is_other = name.startswith(("fireworks.training.sdk._core", "fireworks.training.sdk.types"))
    return name.startswith("fireworks.training.sdk.") and not is_other


def rest_module() -> Any:
    """The module with the REST client class; imports it."""
    return importlib.import_module(MODULE)


def new_holder(base_url: str = "https://api.test") -> Any:
    """A REST client, with a sync httpx client and later an async one in it."""
    return rest_module()._RestClient(api_key="fw-key", base_url=base_url)


def forget_how_it_was_built(holder: Any) -> None:
    """Take away what the SDK builds a REST client's httpx clients from."""
    del holder._base_verify


def trainer_manager(base_url: str, api_key: str) -> Any:
    """What manages trainer jobs over a REST client; imports it."""
    module = importlib.import_module(TRAINER_MODULE)
    return module.TrainerJobManager(api_key=api_key, base_url=base_url)


def deployment_manager(base_url: str, api_key: str) -> Any:
    """What manages and hot-loads deployments over a REST client; imports it."""
    module = importlib.import_module("fireworks.training.sdk.deployment")
    return module.DeploymentManager(api_key=api_key, base_url=base_url)


def deployment_sampler(base_url: str, model: str, api_key: str) -> Any:
    """What asks a deployment for completions over a REST client; imports it."""
    module = importlib.import_module("fireworks.training.sdk.sampling")
    return module.DeploymentSampler(base_url, model, api_key)


def service_client(base_url: str, api_key: str) -> Any:
    """What opens a session at a trainer over the SDK's own client; imports it."""
    module = importlib.import_module("fireworks.training.sdk._core")
    return module.ServiceClient(base_url=base_url, api_key=api_key)


def sync_client_of(holder: Any) -> Any:
    """A REST client's sync httpx client, read as the SDK reads it."""
    return holder._sync_client


def put_sync_client(holder: Any, client: Any) -> None:
    """Have a REST client send over another httpx client."""
    holder._sync_client = client


async def async_client_of(holder: Any) -> Any:
    """A REST client's async httpx client, read as the SDK reads it; built at the first use."""
    return holder._get_async_client()


def put_async_client(holder: Any, client: Any) -> None:
    """Have a REST client send over another httpx client, for the running loop."""
    holder._async_client = client
    holder._async_client_loop = None


def set_account(manager: Any, account: str) -> None:
    """Tell the account, for which the SDK would ask its control plane."""
    manager._account_id = account


def is_healthy(manager: Any, base_url: str) -> bool:
    """One health check, as the SDK polls it while it waits for a trainer."""
    healthy: bool = manager._check_healthz(base_url)
    return healthy


def post(holder: Any, path: str) -> Any:
    """One request of the SDK to a server that its base URL names."""
    return holder._post(path, json={})


def get(holder: Any, path: str) -> Any:
    """One request of the SDK to its control plane."""
    return holder._get(path)
