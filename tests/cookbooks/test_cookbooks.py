"""Real clients before a real server, with and without the guard: `make cookbooks`.

The oracles are all that a run has measured and all weights that it has saved: with a fault and the
guard, they equal those without the fault to the last digit. Where the job is gone, the guarded run
dies of what the unguarded one dies of.
"""

from __future__ import annotations

import gc
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tinker_guard import install_guard, uninstall_guard
from tinker_guard.core.routes import ROUTES
from tinker_guard.gateway import FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cookbooks.server import Server

_MISSING: Final = [name for name in ("skyrl", "tinker_cookbook") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(_MISSING), reason=f"needs {', '.join(_MISSING)}; `make cookbooks` installs and runs it"
    ),
    pytest.mark.timeout(600),
    # The clients' own, and those of what they leave behind.
    pytest.mark.filterwarnings("ignore"),
]

_FAULTS: Final = ("dispatch", "poll", "sample", "reply-lost", "stale-replica", "deleted")
_CLIENTS: Final = {"tinker's own client, supervised": "train_with_the_sdk"}


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
        self.fault_free = self.run("none")
        """How a run without guard and fault ends."""

    def run(self, fault: str) -> Ended:
        """Train from the start."""
        from tests.cookbooks.server import Gateway

        self._runs += 1
        place = self._place / str(self._runs)
        place.mkdir()
        before = self._server.saved()
        measured, died_of = None, None
        with (
            pytest.MonkeyPatch.context() as patch,
            Gateway(self._server, FAULTS[fault]) as gateway,
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
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cookbooks.model import make_model

    place = tmp_path_factory.mktemp("model")
    make_model(place)
    return place


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.cookbooks.server import running

    with running(model, tmp_path_factory.mktemp("skyrl")) as server:
        yield server


@pytest.fixture(scope="module", params=_CLIENTS)
def client(
    request: pytest.FixtureRequest,
    server: Server,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Client:
    train = getattr(importlib.import_module("tests.cookbooks.loops"), _CLIENTS[request.param])
    return Client(request.param, train, server, model, tmp_path_factory.mktemp("runs"))


def test_a_guarded_run_without_a_fault_is_the_unguarded_one(client: Client) -> None:
    assert client.fault_free.died_of is None
    install_guard()
    assert client.run("none") == client.fault_free


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_guarded_run_ends_as_without_the_fault(client: Client, fault: str) -> None:
    unguarded = client.run(fault)
    print(client.name, fault, unguarded)
    install_guard()
    guarded = client.run(fault)
    print("guarded", guarded)
    assert guarded.not_found > client.fault_free.not_found
    if fault == "deleted":
        assert guarded.died_of == unguarded.died_of is not None
    else:
        assert guarded[:3] == client.fault_free[:3]
    uninstall_guard()
    ROUTES.clear()
