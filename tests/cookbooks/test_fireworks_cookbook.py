"""Fireworks' cookbook before the local gateway: `make cookbooks-fireworks`."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.cookbooks.judge import GONE, Client, Row, write
from tests.gateways.judge import found_rows
from tinker_guard import install_guard
from tinker_guard.gateway import FAULTS, Fault

if TYPE_CHECKING:
    from pathlib import Path

_COOKBOOK: Final = os.environ.get("FIREWORKS_COOKBOOK")
pytestmark = pytest.mark.skipif(
    _COOKBOOK is None,
    reason="needs a checkout of github.com/fw-ai/cookbook: FIREWORKS_COOKBOOK=... "
    "make cookbooks-fireworks",
)

_CLIENTS: Final = {
    "Fireworks' cookbook, `ReconnectableClient`": "reconnectable",
    "Fireworks' cookbook, `sft_loop`": "supervised",
}
_NAMES: Final = ("dispatch", "poll", "reply-lost", "stale-replica")
_FAULTS: Final = (*(FAULTS[name] for name in _NAMES), GONE)


rows = found_rows("cookbooks-fireworks", len(_CLIENTS) * len(_FAULTS), write)


@pytest.fixture(scope="module", params=_CLIENTS)
def client(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Client:
    loops = importlib.import_module("tests.cookbooks.fireworks_loops")
    train = getattr(loops, _CLIENTS[request.param])
    place = tmp_path_factory.mktemp("runs")
    return Client(request.param, train, loops.Trainer(), model, place)


def test_without_a_fault_a_guarded_run_is_the_unguarded_one(client: Client) -> None:
    assert client.fault_free.died_of is None
    install_guard()
    assert client.run(FAULTS["none"]) == (client.fault_free, 0)


@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: fault.name)
def test_a_guarded_run_ends_as_it_should(client: Client, fault: Fault, rows: list[Row]) -> None:
    rows.append(client.try_out(fault))
