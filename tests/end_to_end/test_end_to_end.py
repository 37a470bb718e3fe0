"""The real SDK over real sockets against the local gateway, guarded.

The oracle is the loss curve and the trainer's log: with a fault and the guard, the curve equals
the fault-free one to the last digit, and every `seq_id` is applied once.
"""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end import sdk
from tests.end_to_end.leftovers import LEFT_BEHIND
from tests.end_to_end.sdk import ONCE_EACH, TRANSPORTS, Gateway, connected, work_of
from tinker_guard import GuardSettings, install_guard
from tinker_guard.gateway import FAULTS, Fault, LocalGateway, LostReply, Race
from tinker_guard.gateway.train import train_five_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tinker_guard.gateway.faults import Transport

pytestmark = [*LEFT_BEHIND, pytest.mark.usefixtures("loopback")]


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Old releases close no connection, and uninstalling the guard lets go of more of them."""
    yield
    gc.collect()


def train(fault: Fault) -> tuple[list[float], LocalGateway]:
    with Gateway(fault) as gateway, connected(gateway) as client:
        return train_five_steps(client, sdk.types), gateway


@pytest.fixture(scope="module")
def fault_free_run() -> tuple[list[float], LocalGateway]:
    return train(FAULTS["none"])


@pytest.fixture(scope="module")
def fault_free_losses(fault_free_run: tuple[list[float], LocalGateway]) -> list[float]:
    return fault_free_run[0]


@pytest.fixture(scope="module")
def operations(fault_free_run: tuple[list[float], LocalGateway]) -> set[str]:
    """What this release of the SDK asks a trainer."""
    return {exchange.path.removeprefix("/api/v1/") for exchange in fault_free_run[1].requests}


SURVIVED = [
    "none",
    "fresh-404",
    "dispatch",
    "poll",
    "reply-lost",
    "late-route",
    "stale-replica",
    "create-model",
    "get-info",
    "optim-step",
    "client-config",
    "plain-text",
    "half-stale",
    "control-plane-down",
]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", SURVIVED)
def test_guarded_training_equals_fault_free_training(
    name: str, transport: Transport, fault_free_losses: list[float], operations: set[str]
) -> None:
    install_guard()
    fault = sdk.soon_over(replace(FAULTS[name], transport=transport))
    if unsent := sdk.operations_of(fault) - operations:
        pytest.skip(f"{sdk.NAME} does not send {', '.join(sorted(unsent))} here")
    started_at = time.monotonic()
    losses, gateway = train(fault)
    if name == "half-stale":
        # Half of the replicas do not know the route for 20 s, which nobody has to wait for.
        assert time.monotonic() - started_at < 10
    assert losses == fault_free_losses
    assert work_of(gateway) == ONCE_EACH
    assert gateway.unexpected == []
    assert gateway.api_key not in repr(gateway.requests)
    if name not in ("none", "fresh-404"):
        assert any(exchange.answered_by == "gateway" for exchange in gateway.requests)
    resent_alike(gateway)


@pytest.mark.skipif(
    not sdk.HAS_JSON_AND_PROTOBUF, reason=f"{sdk.NAME} does not let the server choose the body"
)
def test_bodies_in_json_where_the_server_decides(fault_free_losses: list[float]) -> None:
    install_guard()
    losses, gateway = train(sdk.soon_over(replace(FAULTS["dispatch"], protobuf=False)))
    assert losses == fault_free_losses
    assert work_of(gateway) == ONCE_EACH
    resent_alike(gateway)


def resent_alike(gateway: LocalGateway) -> None:
    """Every request with the same `seq_id` had the same key and the same bytes."""
    seen: dict[tuple[str, int], tuple[str | None, str]] = {}
    for exchange in gateway.requests:
        if exchange.seq_id is not None:
            sent = exchange.idempotency_key, exchange.body_sha256
            assert seen.setdefault((exchange.path, exchange.seq_id), sent) == sent


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_deleted_job_ends_the_run_at_once(transport: Transport) -> None:
    install_guard()
    with (
        Gateway(replace(FAULTS["deleted"], transport=transport)) as gateway,
        connected(gateway) as client,
        pytest.raises(sdk.NotFoundError, match="Trainer job not found or not running"),
    ):
        train_five_steps(client, sdk.types)
    dispatches = [e for e in gateway.requests if e.path == "/api/v1/forward_backward"]
    assert [exchange.status for exchange in dispatches] == [200, 200, 404]
    # One question for each 404 of the gateway, and none that would judge an earlier one. What the
    # SDK says when it ends (telemetry, the end of the session) can meet the gate once more.
    judged = [e for e in gateway.requests if e.status == 404 or e.answered_by == "control_plane"]
    first = judged[: 1 + next(i for i, e in enumerate(judged) if e.answered_by == "control_plane")]
    assert [e.path for e in first[:-1]] == ["/api/v1/forward_backward"]
    assert gateway.questions <= sum(1 for e in judged if e.answered_by == "gateway") <= 3
    assert work_of(gateway) == ONCE_EACH[:4]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_without_a_control_plane_the_404_is_handed_back_when_the_budget_is_over(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    install_guard(GuardSettings(retry_timeout=0.5))
    lost = Fault(
        races=(Race("forward_backward", 2, 60.0),), control_plane="down", transport=transport
    )
    with (
        Gateway(lost) as gateway,
        connected(gateway) as client,
        pytest.raises(sdk.NotFoundError),
    ):
        train_five_steps(client, sdk.types)
    assert work_of(gateway)[:2] == ONCE_EACH[:2]
    assert "(unverified, control_plane_error)" in caplog.text
    assert "is out of order (500)" in caplog.text


def test_a_job_deleted_before_the_start_costs_one_question(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault = Fault(job_states=((0.0, "JOB_STATE_DELETED"),))

    def start_of_a_run() -> LocalGateway:
        with (
            Gateway(fault) as gateway,
            pytest.raises(sdk.NotFoundError),
            connected(gateway) as client,
        ):
            sdk.create_training_client(client)
        return gateway

    # One release sends its first request twice, and an answer other than RUNNING serves one 404.
    requests_sent = len(start_of_a_run().requests)
    install_guard()
    gateway = start_of_a_run()
    assert gateway.questions == requests_sent
    assert {e.path for e in gateway.requests if e.answered_by == "gateway"} == {
        "/api/v1/get_server_capabilities"
    }
    assert "genuine_not_found, job_not_running" in caplog.text


@pytest.mark.usefixtures("sdk_telemetry")
def test_several_faults_in_one_run(fault_free_losses: list[float]) -> None:
    install_guard()
    fault = Fault(
        replicas=3,
        assignment="random",
        seed=7,
        route_known_after=(0.0, 0.3, 0.6),
        races=(
            Race("forward_backward", 1, 0.2),
            Race("retrieve_future", 3, 0.2),
            Race("optim_step", 2, 0.0),
            Race("retrieve_future", 8, 0.3, replicas=(0, 1)),
        ),
        lost_replies=(LostReply("forward_backward", 4), LostReply("optim_step", 5)),
    )
    losses, gateway = train(fault)
    assert losses == fault_free_losses
    assert work_of(gateway) == ONCE_EACH
    resent_alike(gateway)


def test_a_guard_installed_after_the_client(fault_free_losses: list[float]) -> None:
    fault = Fault(races=(Race("forward_backward", 2, 0.2), Race("retrieve_future", 6, 0.2)))
    with Gateway(fault) as gateway, connected(gateway) as client:
        created = sdk.create_training_client(client)
        install_guard()
        losses = train_five_steps(_Given(created), sdk.types)
    assert losses == fault_free_losses
    assert work_of(gateway) == ONCE_EACH


class _Given:
    """Stands for a service client whose training client exists already."""

    def __init__(self, training_client: Any) -> None:
        self._training_client = training_client

    def create_lora_training_client(self, **_: Any) -> Any:
        return self._training_client


def test_uninstalled_the_sdk_dies_again() -> None:
    from tinker_guard import uninstall_guard

    install_guard()
    uninstall_guard()
    with (
        Gateway(FAULTS["dispatch"]) as gateway,
        connected(gateway) as client,
        pytest.raises(sdk.NotFoundError),
    ):
        train_five_steps(client, sdk.types)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_recovered_dispatch_in_a_trace(spans: InMemorySpanExporter, transport: Transport) -> None:
    install_guard()
    _, gateway = train(sdk.soon_over(replace(FAULTS["dispatch"], transport=transport)))
    finished = spans.get_finished_spans()
    (root,) = [
        span
        for span in finished
        if (span.attributes or {}).get("tinker_guard.outcome") == "recovered"
        and span.name == "POST /api/v1/forward_backward"
    ]
    attributes = dict(root.attributes or {})
    resends = attributes.pop("tinker_guard.retries")
    assert isinstance(resends, int)
    assert resends >= 1
    port = int(gateway.origin.rpartition(":")[2])
    assert attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": port,
        "tinker_guard.account": "demo",
        "tinker_guard.job": "job-1",
        "tinker_guard.operation": "forward_backward",
        "tinker_guard.outcome": "recovered",
        "tinker_guard.verdict": "routing_race",
        "input.value": "POST /api/v1/forward_backward",
        "output.value": "recovered: routing_race, job_running",
        "tinker_guard.verdict.reason": "job_running",
        "tinker_guard.not_found.source": "gateway",
        "tinker_guard.not_found.gateway": "fireworks",
    }
    everything = "".join(span.to_json() for span in finished)
    assert gateway.api_key not in everything
    assert "stainless-python-retry" not in everything
    # One CLIENT span for each exchange of the recovery, whoever emits it.
    below = [span for span in finished if _is_below(span, root, finished)]
    actions = [span for span in below if span.kind.name == "INTERNAL"]
    assert len([span for span in below if span.kind.name == "CLIENT"]) == 1 + len(actions)
    for span in actions:
        assert [below_it.kind.name for below_it in below if _is_below(below_it, span, below)] == [
            "CLIENT"
        ]
    resent = [span for span in actions if span.name == "resend POST /api/v1/forward_backward"]
    assert len(resent) == resends


def _is_below(span: Any, root: Any, spans: Any) -> bool:
    by_id = {candidate.context.span_id: candidate for candidate in spans}
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        if span is root:
            return True
    return False


@pytest.mark.usefixtures("sdk_telemetry")
def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tinker_guard")
    install_guard()
    _, gateway = train(sdk.soon_over(FAULTS["dispatch"]))
    assert gateway.api_key not in caplog.text
