"""tinker's own client and tinker-cookbook before SkyRL's real server: `make cookbooks`."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import pytest

from tests.cookbooks.judge import GONE, Client, Row, write
from tests.gateways.judge import found_rows
from tinker_guard import install_guard
from tinker_guard.gateway import FAULTS, Fault

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cookbooks.server import Server

_MISSING: Final = [name for name in ("skyrl", "tinker_cookbook") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(_MISSING), reason=f"needs {', '.join(_MISSING)}; `make cookbooks` installs and runs it"
)

_CLIENTS: Final = {
    "tinker 0.38.0": "loops:train_with_the_sdk",
    "tinker-cookbook 0.6.1, supervised": "recipes:supervised",
    "tinker-cookbook 0.6.1, DPO": "recipes:preferences",
    "tinker-cookbook 0.6.1, RL": "recipes:rewards",
    "tinker-cookbook 0.6.1, asynchronous RL": "recipes:rewards_while_sampling",
}
"""Loops, each by its module here and its name there."""
_NAMES: Final = ("dispatch", "poll", "sample", "reply-lost", "stale-replica")
_FAULTS: Final = (*(FAULTS[name] for name in _NAMES), GONE)


rows = found_rows("cookbooks", len(_CLIENTS) * len(_FAULTS), write)


@pytest.fixture(scope="module", params=_CLIENTS)
def client(
    request: pytest.FixtureRequest,
    server: Server,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Client:
    module, _, name = _CLIENTS[request.param].partition(":")
    train = getattr(importlib.import_module(f"tests.cookbooks.{module}"), name)
    return Client(request.param, train, server, model, tmp_path_factory.mktemp("runs"))


def test_without_a_fault_a_guarded_run_is_the_unguarded_one(client: Client) -> None:
    assert client.fault_free.died_of is None
    install_guard()
    assert client.run(FAULTS["none"]) == (client.fault_free, 0)


@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: fault.name)
def test_a_guarded_run_ends_as_it_should(client: Client, fault: Fault, rows: list[Row]) -> None:
    rows.append(client.try_out(fault))
