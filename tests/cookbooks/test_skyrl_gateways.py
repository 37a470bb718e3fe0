"""SkyRL's real server behind two replicas of real gateways: `make gateways-skyrl`.

The faults are the gateways' own, as in `tests/gateways`. Between a gateway and the server stands
the local one without a fault: it is the control plane, and adds what SkyRL lacks of this SDK.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.cookbooks.judge import surroundings
from tests.gateways.fleet import Fault, Fleet
from tests.gateways.judge import FAULTS, Row, found_rows, run, try_out
from tests.gateways.programs import Nginx, Traefik, is_in_environment
from tinker_guard.settings import SettingValues

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.cookbooks.server import Server
    from tests.gateways.fleet import Trainer
    from tests.gateways.programs import Gateway

_GATEWAYS: Final[tuple[type[Gateway], ...]] = (Nginx, Traefik)
_MISSING: Final = [
    *([] if find_spec("skyrl") else ["skyrl"]),
    *(kind.program for kind in _GATEWAYS if not is_in_environment(kind.program)),
]
pytestmark = pytest.mark.skipif(
    bool(_MISSING),
    reason=f"needs {', '.join(_MISSING)}; `make gateways-skyrl` installs and runs it",
)

rows = found_rows("gateways-skyrl", len(_GATEWAYS) * len(FAULTS))


@pytest.fixture(scope="module", params=_GATEWAYS, ids=lambda kind: kind.name)
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    kind: type[Gateway] = request.param
    with Fleet(kind, tmp_path_factory.mktemp(kind.name)) as fleet:
        yield fleet


@pytest.mark.parametrize("fault", FAULTS)
def test_training_on_skyrl_through_a_gateway_whose_replica_lacks_the_route(
    fault: Fault,
    fleet: Fleet,
    server: Server,
    model: Path,
    rows: list[Row],
    spans: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    from tests.cookbooks.loops import train_with_the_sdk
    from tests.cookbooks.server import Forwarding

    @contextmanager
    def before_skyrl(fault: Fault) -> Iterator[Trainer]:
        with fleet.trainer(fault) as trainer:
            trainer.world.trainer = Forwarding(server.url, trainer.app.looped)
            yield trainer

    def train(trainer: Trainer) -> tuple[Any, list[str]]:
        """All that was measured, and a digest of the weights."""
        before = server.saved()
        try:
            with surroundings(trainer.api_key):
                measured = train_with_the_sdk(trainer, str(model), tmp_path)
        finally:
            server.forget(trainer)
        return measured, [digest for path, digest in server.saved().items() if path not in before]

    fault_free, _, _ = run(before_skyrl, "none", train)
    assert len(fault_free[1]) == 1
    lacked = "client/dynamic_config"
    asked, unasked = try_out(before_skyrl, fault, fault_free, spans, SettingValues(), train, lacked)
    assert (asked.questions > 0, unasked.questions) == (True, 0)
    assert asked.writers == unasked.writers == {("gateway", fleet.kind.label)}
    name = f"SkyRL 0.4.0 behind {fleet.kind.name} {fleet.kind.version()}"
    rows.append(Row(name, fleet.not_found(), FAULTS[fault], asked, unasked))
