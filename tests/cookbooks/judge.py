"""Runs of real clients with a fault, and what must come of them.

The oracles are all that a run has measured and all weights that it has saved: with a fault and the
guard, they equal those without the fault to the last digit. Where the job is gone, the guarded run
dies of the gateway's 404, as the unguarded one does.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import pytest

from tests.gateways.judge import put_table
from tinker_guard import install_guard
from tinker_guard.gateway import FAULTS, Fault, JobStop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tinker_guard.gateway import LocalGateway

_GATEWAY_SAYS: Final = "Trainer job not found or not running"
GONE: Final = Fault(
    "deleted",
    "the job is deleted when the second forward_backward is sent",
    stop=JobStop("forward_backward", occurrence=2),
)


class Server(Protocol):
    """What is behind the gateway."""

    def behind(self, fault: Fault) -> LocalGateway:
        """Return a gateway with this fault, before a trainer that has done nothing."""

    def saved(self) -> dict[str, str]:
        """Return a digest for each path to which weights were saved, in their order."""

    def forget(self, gateway: LocalGateway) -> None:
        """Unload the models that came through this gateway."""


class Ended(NamedTuple):
    """How a run ended."""

    measured: Any
    weights: list[str]
    """A digest for each time that weights were saved for sampling, in their order."""
    died_of: str | None
    is_of_404: bool
    """Whether it died of the gateway's 404, in whatever words of the client."""


class Row(NamedTuple):
    """One row of the table."""

    client: str
    fault: str
    unguarded: str
    guarded: str
    not_found: int
    """How many 404s of the gateway the guarded run met, probes included."""


class Client:
    """A client with a training loop.

    Args:
        name: What the table calls it.
        train: The loop.
        server: What is behind the gateway.
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
        self.fault_free: Ended = self.run(FAULTS["none"])[0]
        """How a run without guard and fault ends."""

    def run(self, fault: Fault) -> tuple[Ended, int]:
        """Train from the start; how that ended, and how many 404s the gateway gave."""
        self._runs += 1
        place = self._place / str(self._runs)
        place.mkdir()
        before = self._server.saved()
        measured, died_of, said = None, None, ""
        with self._server.behind(fault) as gateway, surroundings(gateway.api_key):
            try:
                measured = self._train(gateway, str(self._model), place)
            except Exception as error:
                died_of, said = type(error).__name__, "".join(format_exception(error))
            exchanges = gateway.requests
            assert gateway.unexpected == []
        self._server.forget(gateway)
        gc.collect()
        saved = self._server.saved()
        weights = [digest for path, digest in saved.items() if path not in before]
        by_gateway = [one for one in exchanges if one.answered_by == "gateway"]
        is_of_404 = _GATEWAY_SAYS in said
        return Ended(measured, weights, died_of, is_of_404), len(by_gateway)

    def try_out(self, fault: Fault) -> Row:
        """Train with the fault, unguarded and guarded."""
        unguarded, _ = self.run(fault)
        assert unguarded.is_of_404
        install_guard()
        guarded, not_found = self.run(fault)
        assert not_found > 0
        if fault is GONE:
            # In its own words or the SDK's: which request met it first is chance.
            assert guarded.is_of_404
        else:
            assert guarded == self.fault_free
        came_of_it = "equal" if guarded.died_of is None else f"`{guarded.died_of}`"
        return Row(self.name, fault.description, f"`{unguarded.died_of}`", came_of_it, not_found)


@contextmanager
def surroundings(api_key: str) -> Iterator[None]:
    """Set the environment of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("TINKER_API_KEY", api_key)
        patch.setenv("TINKER_TELEMETRY", "0")
        # Nobody is asked about a model that is here.
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def write(page: Path, rows: list[Row], target: str) -> None:
    """Put the table into a page, in the place of that of the target's last time."""
    head = ("client", "fault", "unguarded", "guarded", "404s met")
    lines = [tuple(map(str, row)) for row in rows]
    put_table(page, [head, ("---",) * len(head), *lines], target)
