"""The real SDK through two replicas of real gateways, one of which lacks the route for a while.

The oracle is the same as in `test_end_to_end.py`: the loss curve, and the trainer's log. With
`TINKER_GUARD_GATEWAYS_PAGE`, what was met is written into that page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.control_plane.kubernetes_api import ApiServer, deployment, kubeconfig, serving
from tinker_guard.control_plane import kubernetes
from tinker_guard.settings import SettingValues

from .fleet import Fault, Fleet
from .judge import FAULTS, Row, found_rows, try_out
from .programs import GATEWAYS, WHEELS, Nginx, installed, is_in_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from .programs import Gateway

_MISSING: Final = [name for name in WHEELS if not is_in_environment(name)]

pytestmark = pytest.mark.skipif(
    bool(_MISSING), reason=f"needs {', '.join(_MISSING)}; `make gateways` installs and runs it"
)

rows = found_rows("gateways", len(GATEWAYS) * len(FAULTS))


@pytest.fixture(scope="module", params=GATEWAYS, ids=lambda kind: kind.name)
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    kind: type[Gateway] = request.param
    if installed(kind.program) is None:
        pytest.fail(f"{kind.program} is not installed. As root: apt-get install {kind.program}")
    with Fleet(kind, tmp_path_factory.mktemp(kind.name)) as fleet:
        yield fleet


@pytest.mark.parametrize("fault", FAULTS)
def test_training_through_a_gateway_whose_replica_lacks_the_route(
    fault: Fault,
    fleet: Fleet,
    losses: list[float],
    rows: list[Row],
    spans: InMemorySpanExporter,
) -> None:
    asked, unasked = try_out(fleet.trainer, fault, losses, spans, SettingValues())
    assert (asked.questions > 0, unasked.questions) == (True, 0)
    assert asked.writers == unasked.writers == {("gateway", fleet.kind.label)}
    name = f"{fleet.kind.name} {fleet.kind.version()}"
    rows.append(Row(name, fleet.not_found(), FAULTS[fault], asked, unasked))


def test_training_while_kubernetes_says_that_the_trainer_runs(
    losses: list[float],
    spans: InMemorySpanExporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By answers as its API server gives them; nginx stands for an ingress controller."""
    ready = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    server = ApiServer(200, deployment(1, **ready))
    plane = SettingValues(
        control_plane="kubernetes", control_plane_object="training/deployments/{job}"
    )
    kubernetes.api_client.cache_clear()
    with serving(server) as origin, Fleet(Nginx, tmp_path) as fleet:
        path = str(kubeconfig(tmp_path, origin))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
        asked, unasked = try_out(fleet.trainer, "late", losses, spans, plane)
    kubernetes.api_client.cache_clear()
    assert asked.questions == unasked.questions == 0
    assert {path for path, _ in server.requests} == {
        "/apis/apps/v1/namespaces/training/deployments/job-1"
    }
    assert {headers["authorization"] for _, headers in server.requests} == {"Bearer sa-token"}
