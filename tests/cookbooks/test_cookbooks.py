"""Real clients before a real server, with and without the guard: `make cookbooks`.

The oracles are all that a run has measured and all weights that it has saved: with a fault and the
guard, they equal those without the fault to the last digit. Where the job is gone, the guarded run
dies of what the unguarded one dies of.
"""

from __future__ import annotations

import gc
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.gateways.judge import put_table
from tinker_guard import install_guard
from tinker_guard.gateway import FAULTS, Fault, JobStop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cookbooks.server import Server

_CLIENTS: Final = {
    "tinker 0.38.0": "loops:train_with_the_sdk",
    "tinker-cookbook 0.6.1, supervised": "recipes:supervised",
    "tinker-cookbook 0.6.1, DPO": "recipes:preferences",
    "tinker-cookbook 0.6.1, RL": "recipes:rewards",
    "tinker-cookbook 0.6.1, asynchronous RL": "recipes:rewards_while_sampling",
}
"""Loops, each by its module here and its name there."""
_NAMES: Final = ("dispatch", "poll", "sample", "reply-lost", "stale-replica")
_GONE: Final = Fault(
    "deleted",
    "the job is deleted when the second forward_backward is sent",
    stop=JobStop("forward_backward", occurrence=2),
)
_FAULTS: Final = (*(FAULTS[name] for name in _NAMES), _GONE)


class Ended(NamedTuple):
    """How a run ended."""

    measured: Any
    weights: list[str]
    """A digest for each time that weights were saved for sampling, in their order."""
    died_of: str | None
    not_found: int
    """How many 404s the gateway gave, to requests and probes."""


class Client:
    """A client with a training loop, before the server.

    Args:
        name: What the table calls it.
        train: The loop.
        server: The server.
        model: The model that it trains.
        place: An empty directory.
    """

    def __init__(
        self, name: str, train: Callable[..., Any], server: Server, model: Path, place: Path
    ) -> None:
        self.name = name
        self._train = train
        self._server = server
        self._model = model
        self._place = place
        self._runs = 0
        self.fault_free: Ended = self.run(FAULTS["none"])
        """How a run without guard and fault ends."""

    def run(self, fault: Fault) -> Ended:
        """Train from the start."""
        from tests.cookbooks.server import Gateway

        self._runs += 1
        place = self._place / str(self._runs)
        place.mkdir()
        before = self._server.saved()
        measured, died_of = None, None
        with (
            pytest.MonkeyPatch.context() as patch,
            Gateway(self._server, fault) as gateway,
        ):
            patch.setenv("NO_PROXY", "127.0.0.1")
            patch.setenv("TINKER_API_KEY", gateway.api_key)
            patch.setenv("TINKER_TELEMETRY", "0")
            # Nobody is asked about a model that is here.
            patch.setenv("HF_HUB_OFFLINE", "1")
            try:
                measured = self._train(gateway, str(self._model), place)
            except Exception as error:
                died_of = type(error).__name__
            not_found = sum(exchange.status == 404 for exchange in gateway.requests)
            assert gateway.unexpected == []
        self._server.forget(gateway.forwarding.models)
        gc.collect()
        saved = self._server.saved()
        weights = [digest for path, digest in saved.items() if path not in before]
        return Ended(measured, weights, died_of, not_found)


@pytest.fixture(scope="module")
def rows() -> Iterator[list[tuple[str, ...]]]:
    """What the tests of this module found; written down if all of them did."""
    found: list[tuple[str, ...]] = []
    yield found
    page = os.environ.get("TINKER_GUARD_GATEWAYS_PAGE")
    if page and len(found) == len(_CLIENTS) * len(_FAULTS):
        head = ("client", "fault", "unguarded", "guarded", "404s met")
        put_table(Path(page), [head, ("---",) * len(head), *found], "cookbooks")


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
    assert client.run(FAULTS["none"]) == client.fault_free


@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: fault.name)
def test_a_guarded_run_ends_as_it_should(
    client: Client, fault: Fault, rows: list[tuple[str, ...]]
) -> None:
    unguarded = client.run(fault)
    assert unguarded.died_of is not None

    install_guard()
    guarded = client.run(fault)
    assert guarded.not_found > client.fault_free.not_found
    if fault is _GONE:
        assert guarded.died_of == unguarded.died_of
    else:
        assert guarded._replace(not_found=0) == client.fault_free._replace(not_found=0)
    rows.append(
        (
            client.name,
            fault.description,
            f"`{unguarded.died_of}`",
            "equal" if guarded.died_of is None else f"`{guarded.died_of}`",
            str(guarded.not_found - client.fault_free.not_found),
        )
    )
